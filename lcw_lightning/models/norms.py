"""Place the norms of convolutional networks, and check the networks' settings."""

from collections import OrderedDict
from collections.abc import Callable
from typing import get_args

from torch import nn

from lcw_lightning.models.mlp import Norm

__all__ = ["check_settings", "normed_activation"]


def normed_activation(channels: int, activation: Callable[[], nn.Module], norm: Norm) -> nn.Sequential:
    """Return an activation with its norm before it (``batch``, ``layer``), after it (``standardization``), or none.

    Layer normalization is over all channels and positions of a sample, with one gain and one shift per channel.

    Args:
        channels: Channels of the activation's input.
        activation: Makes one activation module.
        norm: Name of the norm.

    Example:
        >>> [type(module).__name__ for module in normed_activation(64, nn.ReLU, "batch")]
        ['BatchNorm2d', 'ReLU']
    """
    if norm == "none":
        return nn.Sequential(OrderedDict(activation=activation()))
    # GroupNorm with one group, because torch's LayerNorm would need the size of the images.
    norm_module = nn.GroupNorm(1, channels) if norm == "layer" else nn.BatchNorm2d(channels)
    if norm == "standardization":
        return nn.Sequential(OrderedDict(activation=activation(), norm=norm_module))
    return nn.Sequential(OrderedDict(norm=norm_module, activation=activation()))


def check_settings(network: nn.Module, norm: str, **sizes: int) -> None:
    """Raise unless a network can be built with these settings.

    Raises:
        ValueError: Unknown norm, or a size below 1.
    """
    name = type(network).__name__
    if norm not in get_args(Norm):
        raise ValueError(f"{name} supports the norms {', '.join(get_args(Norm))}; got {norm!r}.")
    for size, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} needs a {size} of at least 1, got {value}.")
