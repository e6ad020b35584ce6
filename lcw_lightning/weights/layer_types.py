"""The layer types whose weights can be constrained: a new type is added here."""

from torch import nn

__all__ = ["SPATIAL_DIMS", "TRANSPOSED", "WEIGHT_NAMES"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SPATIAL_DIMS: dict[type[nn.Module], int] = {nn.Linear: 0}
SPATIAL_DIMS |= {kind: dims for kinds in (CONVOLUTIONS, TRANSPOSED) for dims, kind in enumerate(kinds, start=1)}
"""Axes after the channels, of layer types that map one input by one weight when they are called."""

WEIGHT_NAMES: dict[type[nn.Module], str] = {
    **dict.fromkeys(SPATIAL_DIMS, "weight"),
    nn.Bilinear: "weight",
    nn.RNNBase: "weight_*",
    nn.RNNCellBase: "weight_*",
    nn.MultiheadAttention: "*_proj_weight",
}
"""Glob of the names of a layer type's weights. Embeddings, norms and biases are left out."""
