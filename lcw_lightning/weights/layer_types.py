"""The registry of layer types: which parameters of a layer are weights, and where their units lie."""

import re
from typing import NamedTuple

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

__all__ = ["SPATIAL_DIMS", "LayerType", "is_embedding_or_norm", "layer_type_of", "register_layer_type"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SPATIAL_DIMS: dict[type[nn.Module], int] = {nn.Linear: 0}
SPATIAL_DIMS |= {kind: dims for kinds in (CONVOLUTIONS, TRANSPOSED) for dims, kind in enumerate(kinds, start=1)}
"""Axes after the channels, of torch's layer types that map one input by one weight when they are called."""

EMBEDDING_OR_NORM = re.compile(r"(Norm|Norm\dd|NormBase|Embed|Embeddings?|EmbeddingBag)$")


class LayerType(NamedTuple):
    """What the package knows of a layer type.

    Attributes:
        weights: Glob of the names of its weights. Embeddings, norms and biases are left out.
        unit_dim: Dimension of the weight that counts output units; 1 in transposed convolutions.
        spatial_dims: Axes after the channels, if a call of the layer maps one input by one weight; None if hooks on
            the layer do not see both sides of a weight.
    """

    weights: str = "weight"
    unit_dim: int = 0
    spatial_dims: int | None = 0


_TYPES: dict[type[nn.Module] | str, LayerType] = {
    **{kind: LayerType("weight", int(kind in TRANSPOSED), dims) for kind, dims in SPATIAL_DIMS.items()},
    # Recurrent layers do not expose their inner states; attention reads its output projection without calling it.
    NonDynamicallyQuantizableLinear: LayerType("weight", spatial_dims=None),
    nn.Bilinear: LayerType("weight", spatial_dims=None),
    nn.RNNBase: LayerType("weight_*", spatial_dims=None),
    nn.RNNCellBase: LayerType("weight_*", spatial_dims=None),
    nn.MultiheadAttention: LayerType("*_proj_weight", spatial_dims=None),
    "transformers.pytorch_utils.Conv1D": LayerType("weight", unit_dim=1),
    "torch_geometric.nn.dense.linear.Linear": LayerType("weight"),
}
"""By class, or by name where the library need not be installed. Subclasses are found too."""


def register_layer_type(layer_type: type[nn.Module], weight: str = "weight", unit_dim: int = 0) -> None:
    """Let the package constrain, initialize and observe a layer type that torch does not know.

    A call of the layer must map the last axis of one input by the weight, as :class:`~torch.nn.Linear` does. Bias and
    further parameters are left alone. Subclasses are found too, unless they are registered themselves. Register the
    type in every process that loads a checkpoint in which such a layer is constrained.

    Args:
        layer_type: Class of the layer.
        weight: Name of the weight.
        unit_dim: Dimension of the weight that counts output units: 0 for a weight of shape ``(out, in)``, 1 for
            ``(in, out)``.

    Raises:
        ValueError: The type is no class of modules, the weight's name is no name, or ``unit_dim`` is neither 0 nor 1.

    Example:
        >>> import torch
        >>> from lcw_lightning import constrain
        >>> class InOut(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = nn.Parameter(torch.randn(64, 10))
        ...
        ...     def forward(self, x):
        ...         return x @ self.kernel
        >>> register_layer_type(InOut, weight="kernel", unit_dim=1)
        >>> constrain(nn.Sequential(InOut()))
        ['0.kernel']
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise ValueError(f"register_layer_type() needs a class of torch.nn.Module, got {layer_type!r}.")
    if not weight.isidentifier():
        raise ValueError(
            f"register_layer_type() needs the name of a parameter of {layer_type.__name__}, got {weight!r}."
        )
    if unit_dim not in (0, 1):
        raise ValueError(f"unit_dim of {layer_type.__name__} is 0, for weights (out, in), or 1; got {unit_dim!r}.")
    _TYPES[layer_type] = LayerType(weight, unit_dim)


def layer_type_of(module: nn.Module) -> LayerType | None:
    """Return what is known of the nearest registered class of a module; None for an unknown layer type."""
    for kind in type(module).__mro__:
        if known := _TYPES.get(kind) or _TYPES.get(f"{kind.__module__}.{kind.__qualname__}"):
            return known
    return None


def is_embedding_or_norm(module: nn.Module) -> bool:
    """Return whether a module is an embedding or a norm, by the name of one of its classes.

    Example:
        >>> is_embedding_or_norm(nn.BatchNorm2d(3)), is_embedding_or_norm(nn.Linear(3, 2))
        (True, False)
    """
    return any(EMBEDDING_OR_NORM.search(kind.__name__) for kind in type(module).__mro__)
