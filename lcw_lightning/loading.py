"""Load a state dict whole or not at all."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["all_or_nothing", "guard_loading", "unguard_loading"]


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
    guard_loading(model)
    try:
        yield
    finally:
        unguard_loading(model)


def guard_loading(model: nn.Module) -> None:
    """Enter :func:`all_or_nothing` where no block can be, until :func:`unguard_loading`."""
    vars(model).setdefault("load_state_dict", _Guard(model))


def unguard_loading(model: nn.Module) -> None:
    """Leave :func:`all_or_nothing`."""
    if isinstance(vars(model).get("load_state_dict"), _Guard):
        del vars(model)["load_state_dict"]


class _Guard:
    """What stands in for the model's ``load_state_dict``."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = _snapshot(self.model)
        try:
            return type(self.model).load_state_dict(self.model, *args, **kwargs)
        except Exception as error:
            _restore(before)
            if not isinstance(error, RuntimeError):
                raise
            _, _, problems = str(error).partition(":")
            raise ValueError(
                f"the state dict does not fit {type(self.model).__name__}, and nothing of it was loaded: "
                f"{textwrap.shorten(problems, 500, placeholder=' ...')} Build the model, and constrain it, as in the "
                "run that wrote it."
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Guard":
        # A copy of the model, such as an average of its weights, must not load into the original.
        return _Guard(memo[id(self.model)])


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
