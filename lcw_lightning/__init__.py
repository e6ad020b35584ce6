"""Linearly constrained weights for PyTorch and Lightning."""

from lcw_lightning.activations import ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU, SoftThreshold
from lcw_lightning.analysis import analyze
from lcw_lightning.callbacks.constraint import ConstraintCallback
from lcw_lightning.callbacks.edge_of_chaos_init import EdgeOfChaosInitCallback
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.callbacks.shift_monitor import ShiftMonitor
from lcw_lightning.checkpoints import load_from_checkpoint
from lcw_lightning.classifier import GeometricDecay, ImageClassifier
from lcw_lightning.constraints import constrain, fold
from lcw_lightning.data.digits import Digits
from lcw_lightning.data.vision import CIFAR10, CIFAR100, MNIST, FashionMNIST
from lcw_lightning.edge_of_chaos_init import edge_of_chaos_init_
from lcw_lightning.initialization import minibatch_init_
from lcw_lightning.models.deep_cnn import DeepCNN
from lcw_lightning.models.mlp import MLP
from lcw_lightning.models.preact_resnet import PreActResNet18
from lcw_lightning.models.vgg import VGG19
from lcw_lightning.normalizations import centered_weight_norm
from lcw_lightning.parametrizations import linearly_constrained

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
