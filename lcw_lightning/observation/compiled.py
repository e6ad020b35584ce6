"""Networks that torch has compiled: hooks on them fire in eager mode only."""

from contextlib import ExitStack

import torch
from torch import nn

from lcw_lightning.compat import is_compiled_here

__all__ = ["eager_mode", "is_compiled"]


class _EagerMode:
    """Runs compiled networks eagerly while at least one block holds it.

    Unlike :func:`torch.compiler.set_stance`, which restores the stance that it found, it may be left in any order:
    callbacks that each hold it for one training step leave it in the order in which they entered.
    """

    def __init__(self) -> None:
        self._holders = 0
        self._stance = ExitStack()

    def __enter__(self) -> None:
        if self._holders == 0:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        self._holders += 1

    def __exit__(self, *_: object) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._stance.close()


eager_mode = _EagerMode()
"""A context within which compiled networks run eagerly, so that hooks on them fire."""


def is_compiled(model: nn.Module) -> bool:
    """Return whether torch has compiled ``model`` or a part of it, in place or in a wrapper."""
    return any(map(is_compiled_here, model.modules()))
