"""Initial weights: rescaled on the first minibatch, drawn at the edge of chaos, or those of a trained plain network.

Constrained weights stay constrained, and are scaled by what the first forward pass shows. It does not use Lightning.
"""

from lcw_lightning.initialization.convert import convert_
from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_
from lcw_lightning.initialization.minibatch import minibatch_init_

__all__ = ["convert_", "edge_of_chaos_init_", "minibatch_init_"]
