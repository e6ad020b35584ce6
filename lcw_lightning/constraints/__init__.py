"""Constraints: what a weight may be, how a constraint goes onto a weight, and how it comes off.

Stands on ``weights`` and ``theory`` alone. It knows nothing of activations, checkpoints or Lightning.
"""

from lcw_lightning.constraints.constrain import constrain, constrained_weights
from lcw_lightning.constraints.fold import fold
from lcw_lightning.constraints.kinds import Kind, Method

__all__ = ["constrain", "constrained_weights", "fold", "Kind", "Method"]
