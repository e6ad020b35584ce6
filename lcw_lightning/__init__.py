"""Linearly constrained weights for PyTorch and Lightning."""

from lcw_lightning.callbacks.constraint import ConstraintCallback
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.callbacks.shift_monitor import ShiftMonitor
from lcw_lightning.checkpoints import load_from_checkpoint
from lcw_lightning.classifier import GeometricDecay, ImageClassifier
from lcw_lightning.constraints import constrain, fold
from lcw_lightning.data.digits import Digits
from lcw_lightning.initialization import minibatch_init_
from lcw_lightning.models.mlp import MLP
from lcw_lightning.parametrizations import linearly_constrained

__all__ = [
    "MLP",
    "ConstraintCallback",
    "Digits",
    "GeometricDecay",
    "ImageClassifier",
    "MinibatchInitCallback",
    "ShiftMonitor",
    "constrain",
    "fold",
    "linearly_constrained",
    "load_from_checkpoint",
    "minibatch_init_",
]
