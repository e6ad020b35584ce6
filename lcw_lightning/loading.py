"""Load a state dict whole or not at all."""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lcw_lightning.overrides import override_method, restore_method

__all__ = ["all_or_nothing", "describe_misfit", "load_all_or_nothing"]


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Within the block, ``model.load_state_dict`` loads all that it is given or, if that does not fit, nothing.

    Torch loads what fits before it raises. Here the model is then as it was, and a ValueError says in one message what
    did not fit. Takes memory for a copy of the model while it loads.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with all_or_nothing(layer):
        ...     layer.load_state_dict({"weight": torch.ones(1, 2)})
        Traceback (most recent call last):
        ValueError: the state dict does not fit Linear, and nothing of it was loaded: Missing key(s) in state_dict: ...
    """
    override_method(model, "load_state_dict", partial(load_all_or_nothing, model))
    try:
        yield
    finally:
        restore_method(model, "load_state_dict")


def load_all_or_nothing(model: nn.Module, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``load(...)``; if it fails, leave the tensors of ``model`` as they were."""
    before = _snapshot(model)
    try:
        return load(*args, **kwargs)
    except Exception as error:
        _restore(before)
        if problems := describe_misfit(error):
            raise ValueError(
                f"the state dict does not fit {type(model).__name__}, and nothing of it was loaded: {problems} Build "
                "the model, and constrain it, as in the run that wrote it."
            ) from error
        raise


def describe_misfit(error: Exception) -> str:
    """Return what torch says did not fit, in one paragraph; nothing for an error of another kind.

    Example:
        >>> describe_misfit(RuntimeError("Error(s) in loading state_dict for Linear: Missing key(s): bias."))
        'Missing key(s): bias.'
        >>> describe_misfit(RuntimeError("out of memory"))
        ''
    """
    _, found, problems = str(error).partition("loading state_dict for ")
    return textwrap.shorten(problems.partition(":")[2], 500, placeholder=" ...") if found else ""


_Snapshot = list[tuple[dict[str, Any], str, Tensor, Tensor]]


def _snapshot(model: nn.Module) -> _Snapshot:
    return [
        (tensors, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None and not is_lazy(tensor)
    ]


@torch.no_grad()
def _restore(before: _Snapshot) -> None:
    for tensors, name, tensor, value in before:
        tensor.copy_(value)
        tensors[name] = tensor
