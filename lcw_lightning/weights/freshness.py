"""Whether a network's weights are freshly drawn, or were rescaled, trained or loaded."""

from torch import nn

__all__ = ["is_initialized", "mark_initialized"]


def mark_initialized(model: nn.Module) -> None:
    """Mark the weights of ``model`` as rescaled, trained or loaded, and so no longer freshly drawn."""
    vars(model)["_lcw_initialized"] = True


def is_initialized(model: nn.Module) -> bool:
    """Return whether :func:`mark_initialized` was called on ``model``."""
    return "_lcw_initialized" in vars(model)
