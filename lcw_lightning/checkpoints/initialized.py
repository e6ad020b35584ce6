"""Whether the weights of a checkpoint are freshly drawn, or were rescaled, trained or loaded."""

from collections.abc import Mapping
from typing import Any

from lcw_lightning.compat import num_trained_batches
from lcw_lightning.weights.freshness import INITIALIZED

__all__ = ["is_initialized_in"]


def is_initialized_in(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's weights were initialized from a batch, loaded, or trained.

    A callback of this package has put the fact into its state; a run without one has trained steps or batches.

    Example:
        >>> is_initialized_in({"global_step": 0, "callbacks": {"MinibatchInitCallback": {INITIALIZED: True}}})
        True
        >>> is_initialized_in({"global_step": 0, "callbacks": {}})  # as Lightning's tuners write
        False
    """
    callbacks = checkpoint.get("callbacks")
    states = [checkpoint, *(callbacks.values() if isinstance(callbacks, Mapping) else ())]  # a damaged file has others
    is_marked = any(isinstance(state, Mapping) and bool(state.get(INITIALIZED)) for state in states)
    return is_marked or checkpoint.get("global_step") != 0 or num_trained_batches(checkpoint) > 0
