"""Residual network of 18 layers with full preactivation (He et al., Identity Mappings in Deep Residual Networks)."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from typing_extensions import override

from lcw_lightning.models.norms import Norm, check_settings, normed_activation

__all__ = ["PreActResNet18", "ResidualUnit"]

# A stage of two residual units each: channels, in units of the width, and stride of the first unit.
STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))


class PreActResNet18(nn.Sequential):
    """ResNet18 with full preactivation for small images: eight residual units (paper, Section 6.2).

    It consists of a convolution, four stages of two :class:`ResidualUnit` each, BatchNorm and ReLU, the mean over
    positions, and the logits. The stages have 1, 1/2, 1/4 and 1/8 of the resolution, from 32 x 32 pixels down to 4 x 4.
    Images may have any size. The output has shape ``(batch, num_classes)``.

    Convolutions are named ``stem`` and ``stage2.unit1.conv1``, ``conv2`` or ``shortcut``; the last layer is ``output``.
    They have a bias only where no norm before the next activation has one. Weights have torch's default initialization,
    since the paper gives none.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the first stage; each later one has twice as many as the one before.
        activation: Makes one activation module: a module class, or its class path on the command line.
        norm: ``batch`` (before each activation; the paper's BN), ``standardization`` (BatchNorm on the activation; the
            paper's SL), ``batch+standardization`` (both), ``layer`` (before each activation, over all channels and
            positions of a sample), or ``none``.

    Raises:
        ValueError: Unknown norm, an activation that makes no module, or a size below 1.

    Example:
        >>> import torch
        >>> PreActResNet18(num_classes=100, width=4)(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 100])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        activation: Callable[[], nn.Module] = nn.ReLU,
        norm: Norm = "batch",
    ) -> None:
        check_settings(self, norm, num_classes=num_classes, in_channels=in_channels, width=width)
        channels = width
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_conv3x3(in_channels, channels, norm))
        for number, (multiple, stride) in enumerate(STAGES, start=1):
            unit1 = ResidualUnit(channels, multiple * width, stride, activation, norm)
            channels = multiple * width
            unit2 = ResidualUnit(channels, channels, 1, activation, norm)
            layers[f"stage{number}"] = nn.Sequential(OrderedDict(unit1=unit1, unit2=unit2))
        layers["activation"] = nn.Sequential(normed_activation(channels, activation, norm))
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(channels, num_classes)
        super().__init__(layers)


class ResidualUnit(nn.Module):
    """Apply norm, activation and convolution twice, and add the input; nothing follows the addition.

    Where the shape changes, the input passes the first norm and activation and a 1 x 1 convolution before it is added.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution.
        activation: Makes one activation module.
        norm: As in :class:`PreActResNet18`.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, activation: Callable[[], nn.Module], norm: Norm
    ) -> None:
        super().__init__()
        self.activation1 = nn.Sequential(normed_activation(in_channels, activation, norm))
        self.conv1 = _conv3x3(in_channels, channels, norm, stride)
        self.activation2 = nn.Sequential(normed_activation(channels, activation, norm))
        self.conv2 = _conv3x3(channels, channels, norm)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, height, width)`` to ``(batch, channels, height / stride, width / stride)``."""
        activated = self.activation1(x)
        identity: Tensor = x if self.shortcut is None else self.shortcut(activated)
        residual: Tensor = self.conv2(self.activation2(self.conv1(activated)))
        return identity + residual


def _conv3x3(in_channels: int, channels: int, norm: Norm, stride: int = 1) -> nn.Conv2d:
    has_bias = norm in ("none", "standardization")
    return nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=has_bias)
