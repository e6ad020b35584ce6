"""Multilayer perceptron."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from lcw_lightning.models.norms import Norm, check_settings, normed_activation

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Fully connected network: ``depth`` hidden layers of ``width`` units, then logits (paper, Section 6.1).

    Inputs of any shape ``(batch, ...)`` are flattened; the output has shape ``(batch, num_classes)``. Weights are
    initialized as in Glorot & Bengio, uniformly with variance 2 / (fan_in + fan_out), and biases are zero, as the paper
    does for the methods that it compares with. Minibatch initialization rescales the weights.

    Args:
        in_features: Numbers per sample, such as 64 for an 8 x 8 image.
        num_classes: Number of logits.
        depth: Number of hidden layers.
        width: Units of each hidden layer.
        activation: Makes one activation module: a module class, or its class path on the command line.
        norm: ``batch`` (on the preactivation; the paper's BN), ``standardization`` (BatchNorm on the activation; the
            paper's SL), ``batch+standardization`` (both; the paper's BN+SL), ``layer`` (on the preactivation), or
            ``none``.

    Raises:
        ValueError: Unknown norm, an activation that makes no module, or a size below 1.

    Example:
        >>> import torch
        >>> MLP(in_features=64, num_classes=10, depth=3, width=16)(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        depth: int = 50,
        width: int = 256,
        activation: Callable[[], nn.Module] = nn.Sigmoid,
        norm: Norm = "none",
    ) -> None:
        sizes = {"in_features": in_features, "num_classes": num_classes, "depth": depth, "width": width}
        check_settings(self, norm, **sizes)
        widths = [in_features] + [width] * depth
        hidden = [_hidden_layer(fan_in, fan_out, activation, norm) for fan_in, fan_out in pairwise(widths)]
        output = nn.Linear(width, num_classes)
        super().__init__(OrderedDict(flatten=nn.Flatten(), hidden=nn.Sequential(*hidden), output=output))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


def _hidden_layer(fan_in: int, fan_out: int, activation: Callable[[], nn.Module], norm: Norm) -> nn.Sequential:
    linear = nn.Linear(fan_in, fan_out)
    return nn.Sequential(OrderedDict(linear=linear, **normed_activation(fan_out, activation, norm, images=False)))
