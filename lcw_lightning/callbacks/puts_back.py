"""The base class of callbacks that leave a module as it was when a run fails before its first backward pass."""

from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lcw_lightning.weights.restoring import unless_it_fails

__all__ = ["PutsBack"]

_KEPT: WeakKeyDictionary[nn.Module, ExitStack] = WeakKeyDictionary()
"""What is kept of each module by all callbacks together: it must be put back in reverse order."""


class PutsBack(Callback):
    """Keep a module as it is before the callback changes it, until the first backward pass begins.

    Takes memory for a copy of the module until then. In manual optimization, where a module may call backward past
    Lightning, it is kept until the first batch ends.
    """

    def keep(self, pl_module: LightningModule) -> ExitStack:
        """Keep the module as it is now; to exit the returned stack with an error puts it back at once."""
        kept = ExitStack()
        kept.enter_context(unless_it_fails(pl_module))
        _KEPT.setdefault(pl_module, ExitStack()).push(kept)
        return kept

    def let_go(self, pl_module: LightningModule) -> None:
        """Keep the module no longer."""
        _KEPT.pop(pl_module, ExitStack()).close()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.let_go(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        callbacks = [c for c in trainer.callbacks if isinstance(c, PutsBack)]  # type: ignore[attr-defined]
        if not pl_module.automatic_optimization and self is callbacks[-1]:  # one before it may still fail
            self.let_go(pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.let_go(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        _KEPT.pop(pl_module, ExitStack()).__exit__(type(exception), exception, exception.__traceback__)
