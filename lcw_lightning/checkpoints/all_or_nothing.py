"""Load a state dict completely or not at all."""

import textwrap
from collections.abc import Callable
from typing import Any

from torch import nn

from lcw_lightning.weights.restoring import unless_it_fails

__all__ = ["describe_misfit", "load_all_or_nothing"]


def load_all_or_nothing(model: nn.Module, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return ``load(...)``, such as ``model.load_state_dict``; if it fails, the tensors of ``model`` are as they were.

    Torch loads the tensors that fit before it raises, so this keeps a copy of the model in memory while it loads.

    Args:
        model: The module whose parameters and buffers are loaded.
        load: The function that loads them.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        ValueError: The state dict does not fit; one message lists all misfits.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> load_all_or_nothing(layer, layer.load_state_dict, {"weight": torch.ones(1, 2)})
        Traceback (most recent call last):
        ValueError: the state dict does not fit Linear, and nothing of it was loaded: Missing key(s) in state_dict: ...
    """
    try:
        with unless_it_fails(model):
            return load(*args, **kwargs)
    except Exception as error:
        if problems := describe_misfit(error):
            raise ValueError(
                f"the state dict does not fit {type(model).__name__}, and nothing of it was loaded: {problems} Build "
                "the model, and constrain it, as in the run that wrote it."
            ) from error
        raise


def describe_misfit(error: Exception) -> str:
    """Return in one paragraph what did not fit according to torch's error; empty for an error of another kind.

    Example:
        >>> describe_misfit(RuntimeError("Error(s) in loading state_dict for Linear: Missing key(s): bias."))
        'Missing key(s): bias.'
        >>> describe_misfit(RuntimeError("out of memory"))
        ''
    """
    _, found, problems = str(error).partition("loading state_dict for ")
    return textwrap.shorten(problems.partition(":")[2], 500, placeholder=" ...") if found else ""
