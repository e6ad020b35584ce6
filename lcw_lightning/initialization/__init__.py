"""Initial weights: rescaled on the first minibatch, or drawn at the edge of chaos.

Changes weights within their constraints, by what it observes of the first forward pass. It knows nothing of Lightning.
"""

from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_
from lcw_lightning.initialization.minibatch import minibatch_init_

__all__ = ["edge_of_chaos_init_", "minibatch_init_"]
