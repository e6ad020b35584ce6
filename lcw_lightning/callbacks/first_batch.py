"""The base class of callbacks that initialize weights in the forward pass of the first training batch."""

import warnings
from collections.abc import KeysView
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from typing_extensions import override

from lcw_lightning.callbacks.forgetting import forget_module
from lcw_lightning.callbacks.twins import is_a
from lcw_lightning.weights.freshness import is_initialized, mark_initialized
from lcw_lightning.weights.selection import listed

__all__ = ["FirstBatchInit"]


class FirstBatchInit(Callback):
    """Arm the layers of a fresh module before its first training batch, and disarm them after it.

    A module is fresh at step 0 unless it is marked as initialized. The first batch marks it.

    Attributes:
        by_hand: How to do the same by hand before fit, as advice in a warning.
        if_missed: The consequence for layers that the first batch did not reach, for a warning.
    """

    by_hand: ClassVar[str]
    if_missed: ClassVar[str]

    def __init__(self) -> None:
        self._armed = ExitStack()
        self._waiting: KeysView[str] | None = None  # the layers not yet reached, while armed

    @property
    def is_active(self) -> bool:
        """Whether the settings ask for an initialization."""
        raise NotImplementedError

    @property
    def is_armed(self) -> bool:
        """Whether layers initialize themselves in the present batch."""
        return self._waiting is not None

    def armed(self, module: LightningModule) -> AbstractContextManager[KeysView[str]]:
        """Return the context in which layers initialize themselves; it yields the names of those not yet reached."""
        raise NotImplementedError

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        finders = [c for c in trainer.callbacks if is_a(c, LearningRateFinder)]  # type: ignore[attr-defined]
        if finders and self.is_active and stage == "fit" and _is_fresh(trainer, pl_module):
            warnings.warn(
                f"LearningRateFinder tests rates before the first batch initializes the weights; {self.by_hand} "
                f"before fit, and leave {type(self).__name__} out.",
                stacklevel=2,
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.is_active and _is_fresh(trainer, pl_module):
            self._waiting = self._armed.enter_context(self.armed(pl_module))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._waiting is None:
            return
        if self._waiting:
            missed = listed(sorted(self._waiting))
            warnings.warn(f"the first batch did not reach {missed}; {self.if_missed}.", stacklevel=2)
        mark_initialized(pl_module)
        self._disarm()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._disarm()  # on_train_batch_end is not called for a batch that the module skips

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._disarm()
        forget_module(self)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._disarm()
        forget_module(self)

    def _disarm(self) -> None:
        self._armed.close()
        self._waiting = None


def _is_fresh(trainer: Trainer, pl_module: LightningModule) -> bool:
    # Not trainer.ckpt_path: Lightning's tuners leave there the checkpoint of untrained weights that they restored.
    return trainer.global_step == 0 and not is_initialized(pl_module)
