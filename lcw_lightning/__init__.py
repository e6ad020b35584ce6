"""Linearly constrained weights for PyTorch and Lightning.

A public name is imported when it is first used, so a command or a script waits only for what it needs.
"""

from typing import TYPE_CHECKING

_MODULES = {
    "CIFAR10": "data.vision",
    "CIFAR100": "data.vision",
    "MLP": "models.mlp",
    "MNIST": "data.vision",
    "VGG19": "models.vgg",
    "ClippedShiftedReLU": "activations",
    "ClippedSoftThreshold": "activations",
    "ConstraintCallback": "callbacks.constraint",
    "DeepCNN": "models.deep_cnn",
    "Digits": "data.digits",
    "EdgeOfChaosInitCallback": "callbacks.edge_of_chaos_init",
    "FashionMNIST": "data.vision",
    "GeometricDecay": "classifier",
    "ImageClassifier": "classifier",
    "ImageFolder": "data.image_folder",
    "LossWatch": "callbacks.loss_watch",
    "MinibatchInitCallback": "callbacks.minibatch_init",
    "PreActResNet18": "models.preact_resnet",
    "RecurrentClassifier": "models.recurrent",
    "ShiftMonitor": "callbacks.shift_monitor",
    "ShiftedReLU": "activations",
    "SoftThreshold": "activations",
    "analyze": "analysis.analyze",
    "centered_weight_norm": "constraints.normalizations",
    "constrain": "constraints.constrain",
    "convert_": "initialization.convert",
    "edge_of_chaos_init_": "initialization.edge_of_chaos",
    "fold": "constraints.fold",
    "linearly_constrained": "constraints.zero_sum",
    "load_from_checkpoint": "checkpoints.load",
    "mark_fresh": "weights.freshness",
    "minibatch_init_": "initialization.minibatch",
    "plan_constraints": "constraints.plan",
    "register_layer_type": "weights.layer_types",
}
"""The module that defines each public name. Type checkers read the imports below instead; a test compares the two."""

if TYPE_CHECKING:
    from lcw_lightning.activations import ClippedShiftedReLU as ClippedShiftedReLU
    from lcw_lightning.activations import ClippedSoftThreshold as ClippedSoftThreshold
    from lcw_lightning.activations import ShiftedReLU as ShiftedReLU
    from lcw_lightning.activations import SoftThreshold as SoftThreshold
    from lcw_lightning.analysis.analyze import analyze as analyze
    from lcw_lightning.callbacks.constraint import ConstraintCallback as ConstraintCallback
    from lcw_lightning.callbacks.edge_of_chaos_init import EdgeOfChaosInitCallback as EdgeOfChaosInitCallback
    from lcw_lightning.callbacks.loss_watch import LossWatch as LossWatch
    from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback as MinibatchInitCallback
    from lcw_lightning.callbacks.shift_monitor import ShiftMonitor as ShiftMonitor
    from lcw_lightning.checkpoints.load import load_from_checkpoint as load_from_checkpoint
    from lcw_lightning.classifier import GeometricDecay as GeometricDecay
    from lcw_lightning.classifier import ImageClassifier as ImageClassifier
    from lcw_lightning.constraints.constrain import constrain as constrain
    from lcw_lightning.constraints.fold import fold as fold
    from lcw_lightning.constraints.normalizations import centered_weight_norm as centered_weight_norm
    from lcw_lightning.constraints.plan import plan_constraints as plan_constraints
    from lcw_lightning.constraints.zero_sum import linearly_constrained as linearly_constrained
    from lcw_lightning.data.digits import Digits as Digits
    from lcw_lightning.data.image_folder import ImageFolder as ImageFolder
    from lcw_lightning.data.vision import CIFAR10 as CIFAR10
    from lcw_lightning.data.vision import CIFAR100 as CIFAR100
    from lcw_lightning.data.vision import MNIST as MNIST
    from lcw_lightning.data.vision import FashionMNIST as FashionMNIST
    from lcw_lightning.initialization.convert import convert_ as convert_
    from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_ as edge_of_chaos_init_
    from lcw_lightning.initialization.minibatch import minibatch_init_ as minibatch_init_
    from lcw_lightning.models.deep_cnn import DeepCNN as DeepCNN
    from lcw_lightning.models.mlp import MLP as MLP
    from lcw_lightning.models.preact_resnet import PreActResNet18 as PreActResNet18
    from lcw_lightning.models.recurrent import RecurrentClassifier as RecurrentClassifier
    from lcw_lightning.models.vgg import VGG19 as VGG19
    from lcw_lightning.weights.freshness import mark_fresh as mark_fresh
    from lcw_lightning.weights.layer_types import register_layer_type as register_layer_type

    __version__: str
else:
    # Hidden from type checkers: they cannot compute __all__, and to them a module with __getattr__ has every name.
    from functools import cache
    from importlib import import_module
    from importlib.metadata import version
    from pkgutil import iter_modules

    __all__ = list(_MODULES)

    def __getattr__(name):
        if name in _MODULES:
            return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        if name in _submodules():
            return import_module(f"{__name__}.{name}")
        if name == "__version__":
            return version(__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return {*globals(), *__all__, *_submodules(), "__version__"}

    @cache
    def _submodules():  # the command line asks a thousand times
        return {module.name for module in iter_modules(__path__)}
