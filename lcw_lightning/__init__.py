"""Linearly constrained weights for PyTorch and Lightning."""

from lcw_lightning.activations import ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU, SoftThreshold
from lcw_lightning.analysis.analyze import analyze
from lcw_lightning.callbacks.constraint import ConstraintCallback
from lcw_lightning.callbacks.edge_of_chaos_init import EdgeOfChaosInitCallback
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.callbacks.shift_monitor import ShiftMonitor
from lcw_lightning.checkpoints.load import load_from_checkpoint
from lcw_lightning.classifier import GeometricDecay, ImageClassifier
from lcw_lightning.constraints.constrain import constrain
from lcw_lightning.constraints.fold import fold
from lcw_lightning.constraints.normalizations import centered_weight_norm
from lcw_lightning.constraints.zero_sum import linearly_constrained
from lcw_lightning.data.digits import Digits
from lcw_lightning.data.vision import CIFAR10, CIFAR100, MNIST, FashionMNIST
from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_
from lcw_lightning.initialization.minibatch import minibatch_init_
from lcw_lightning.models.deep_cnn import DeepCNN
from lcw_lightning.models.mlp import MLP
from lcw_lightning.models.preact_resnet import PreActResNet18
from lcw_lightning.models.vgg import VGG19

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MLP",
    "MNIST",
    "VGG19",
    "ClippedShiftedReLU",
    "ClippedSoftThreshold",
    "ConstraintCallback",
    "DeepCNN",
    "Digits",
    "EdgeOfChaosInitCallback",
    "FashionMNIST",
    "GeometricDecay",
    "ImageClassifier",
    "MinibatchInitCallback",
    "PreActResNet18",
    "ShiftMonitor",
    "ShiftedReLU",
    "SoftThreshold",
    "analyze",
    "centered_weight_norm",
    "constrain",
    "edge_of_chaos_init_",
    "fold",
    "linearly_constrained",
    "load_from_checkpoint",
    "minibatch_init_",
]
