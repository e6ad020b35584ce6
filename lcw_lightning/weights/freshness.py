"""Whether a network's weights are freshly drawn, or were rescaled, trained or loaded."""

from torch import nn

from lcw_lightning.weights.settings import check_model

__all__ = ["INITIALIZED", "is_initialized", "mark_fresh", "mark_initialized"]

INITIALIZED = "lcw_lightning_initialized"
"""The key of the fact in a callback's state, and in checkpoints that ImageClassifier of version 0.1.0 wrote."""

_MARK = "_lcw_initialized"


def mark_initialized(model: nn.Module) -> None:
    """Mark the weights of ``model`` as rescaled, trained or loaded, and so no longer freshly drawn."""
    vars(model)[_MARK] = True


def mark_fresh(module: nn.Module) -> None:
    """Say that the weights of ``module`` are freshly drawn again, so that the next fit initializes them.

    :class:`~lcw_lightning.MinibatchInitCallback` and :class:`~lcw_lightning.EdgeOfChaosInitCallback` initialize a
    module once. Call this after the module's weights were drawn anew, or its first state dict was loaded again, as in
    cross-validation with one module.

    Raises:
        ValueError: It is no module.

    Example:
        >>> module = nn.Linear(4, 2)
        >>> first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        >>> for fold in range(3):
        ...     _ = module.load_state_dict(first)
        ...     mark_fresh(module)  # trainer.fit(module, ...) initializes it
    """
    check_model(module)
    for part in module.modules():
        vars(part).pop(_MARK, None)


def is_initialized(model: nn.Module) -> bool:
    """Return whether ``model`` or a part of it was marked by :func:`mark_initialized`, and not fresh since.

    A part may be a converted network, or a module that was loaded from a checkpoint.
    """
    return any(_MARK in vars(part) for part in model.modules())
