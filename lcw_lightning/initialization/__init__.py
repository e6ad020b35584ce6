"""Initial weights: rescaled on the first minibatch, or drawn at the edge of chaos.

Constrained weights stay constrained, and are scaled by what the first forward pass shows. It does not use Lightning.
"""

from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_
from lcw_lightning.initialization.minibatch import minibatch_init_

__all__ = ["edge_of_chaos_init_", "minibatch_init_"]
