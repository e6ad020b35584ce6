"""Constraints on weights, as parametrizations or by projection: how they are registered, recognized and removed.

This wing may use ``weights``, ``theory`` and ``compat`` alone: no activations, checkpoints or Lightning.
"""

from lcw_lightning.constraints.constrain import constrain, constrained_weights
from lcw_lightning.constraints.fold import fold
from lcw_lightning.constraints.kinds import Kind, Method

__all__ = ["constrain", "constrained_weights", "fold", "Kind", "Method"]
