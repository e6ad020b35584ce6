"""Place norms around activations, and check the settings of networks."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, get_args

from torch import nn

from lcw_lightning.models.activation import make_activation

__all__ = ["Norm", "check_settings", "normed_activation"]

Norm = Literal["none", "batch", "standardization", "batch+standardization", "layer"]


def normed_activation(
    features: int, activation: Callable[[], nn.Module], norm: Norm, *, images: bool = True
) -> OrderedDict[str, nn.Module]:
    """Return an activation and its norms by name, in the order of the forward pass.

    ``batch`` and ``layer`` stand before the activation, ``standardization`` after it, and ``batch+standardization`` is
    both. Layer normalization is over all channels and positions of a sample, with one gain and one shift per channel.

    Args:
        features: Channels of images, or length of vectors.
        activation: Makes one activation module.
        norm: Name of the norm.
        images: Whether its input has shape ``(batch, features, height, width)``, not ``(batch, features)``.

    Example:
        >>> list(normed_activation(64, nn.ReLU, "batch+standardization"))
        ['norm', 'activation', 'standardization']
    """
    batch_norm = nn.BatchNorm2d if images else nn.BatchNorm1d
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    if norm.startswith("batch"):
        modules["norm"] = batch_norm(features)
    elif norm == "layer":
        # GroupNorm with one group, because torch's LayerNorm would need the size of the images.
        modules["norm"] = nn.GroupNorm(1, features) if images else nn.LayerNorm(features)
    modules["activation"] = make_activation(activation)
    if norm.endswith("standardization"):
        modules["standardization" if "norm" in modules else "norm"] = batch_norm(features)
    return modules


def check_settings(network: nn.Module, norm: str, **sizes: int) -> None:
    """Raise unless a network can be built with these settings.

    Raises:
        ValueError: Unknown norm, or a size below 1.
    """
    name = type(network).__name__
    if norm not in get_args(Norm):
        raise ValueError(f"{name} supports the norms {', '.join(get_args(Norm))}; got {norm!r}.")
    for size, value in sizes.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} needs a {size} of at least 1, got {value!r}.")
