"""The base class of callbacks that initialize weights in the forward pass of the first training batch."""

import warnings
from collections.abc import KeysView, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lcw_lightning.callbacks.forgetting import forget_module
from lcw_lightning.callbacks.puts_back import PutsBack
from lcw_lightning.callbacks.returned import Initialized, is_initialized_elsewhere, send_initialized
from lcw_lightning.callbacks.twins import is_a
from lcw_lightning.checkpoints.initialized import is_initialized_in
from lcw_lightning.constraints.trained import trained_evidence
from lcw_lightning.initialization.outcome import Outcome
from lcw_lightning.initialization.ranks import END_OF_FORWARD, Meet, alone, in_step
from lcw_lightning.weights.freshness import INITIALIZED, is_initialized, mark_initialized
from lcw_lightning.weights.selection import listed, select_weights

__all__ = ["FirstBatchInit"]


class FirstBatchInit(PutsBack):
    """Arm the layers of a fresh module before its first training batch, and disarm them after it.

    A module is fresh until a batch has initialized it; a batch that reaches no layer leaves it fresh. The fact is in
    the callback's state in every checkpoint, and comes back from worker processes. If the first forward pass raises,
    the module is left as it was.

    Attributes:
        by_hand: How to do the same by hand before fit, as advice in a warning.
        draws: Whether weights are drawn before the forward pass.
        if_missed: The consequence for layers that the first batch did not reach, for a warning.
    """

    by_hand: ClassVar[str]
    if_missed: ClassVar[str]
    draws: ClassVar[bool] = False
    include: Sequence[str]
    exclude: Sequence[str]

    def __init__(self) -> None:
        self._armed = ExitStack()
        self._kept = ExitStack()
        self._num_armed = 0
        self._is_trained = False  # whether the present batch has come to its backward pass
        self._is_done = False
        self._waiting: KeysView[str] | None = None  # the layers not yet reached, while armed
        self._outcome: Outcome | None = None  # what has been done so far, while armed
        self._meet: Meet = alone  # compares the ranks' places, while armed

    @property
    def is_active(self) -> bool:
        """Whether the settings ask for an initialization."""
        raise NotImplementedError

    @property
    def is_armed(self) -> bool:
        """Whether layers initialize themselves in the present batch."""
        return self._waiting is not None

    def new_outcome(self) -> Outcome:
        """Return an empty record of the initialization."""
        raise NotImplementedError

    def armed(self, module: LightningModule, outcome: Outcome, meet: Meet) -> AbstractContextManager[KeysView[str]]:
        """Return the context in which layers initialize themselves; it yields the names of those not yet reached."""
        raise NotImplementedError

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._is_done = False
        finders = [c for c in trainer.callbacks if is_a(c, LearningRateFinder)]  # type: ignore[attr-defined]
        if finders and self.is_active and stage == "fit" and not is_initialized(pl_module):
            warnings.warn(
                f"LearningRateFinder tests rates before the first batch initializes the weights; {self.by_hand} "
                f"before fit, and leave {type(self).__name__} out.",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_elsewhere": Initialized()}  # for processes that start without this one's memory

    @override
    def state_dict(self) -> dict[str, Any]:
        return {INITIALIZED: self._is_done}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._is_done = is_initialized_in(checkpoint)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        here = self._is_done or is_initialized(pl_module) or is_initialized_elsewhere(pl_module)
        if trainer.strategy.reduce_boolean_decision(here, all=False):
            self._mark(trainer, pl_module)
        elif self.is_active and trainer.is_global_zero:
            self._warn_of_trained_weights(pl_module)

    def _warn_of_trained_weights(self, pl_module: LightningModule) -> None:
        weights = select_weights(pl_module, self.include, self.exclude)
        changed = {name: ref for name, ref in weights.items() if any(p.requires_grad for p in ref.parameters)}
        if evidence := trained_evidence(pl_module, changed):
            warnings.warn(
                f"{type(self).__name__} initializes a module that may have been trained: {evidence}. If so, leave the "
                "callback out.",
                stacklevel=2,
            )

    def _mark(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_done = True
        mark_initialized(pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.is_active and not is_initialized(pl_module):
            self._kept = self.keep(pl_module)
            self._outcome = self.new_outcome()
            self._meet = self._armed.enter_context(in_step(self.by_hand))
            self._waiting = self._armed.enter_context(self.armed(pl_module, self._outcome, self._meet))
            self._num_armed = len(self._waiting)
            self._is_trained = False

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._is_trained = True
        self._meet(END_OF_FORWARD)
        if self._outcome is not None:
            self._outcome.check()
        super().on_before_backward(trainer, pl_module, loss)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._meet("at the end of the batch")
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._waiting is None:
            return
        if self._waiting and len(self._waiting) == self._num_armed:
            # In manual optimization nothing tells a skipped batch from one that has trained, which must not be undone.
            is_skipped = pl_module.automatic_optimization and not self._is_trained
            if is_skipped:  # what arming has drawn is taken back
                self._kept.__exit__(RuntimeError, RuntimeError(), None)
            if is_skipped or not self.draws:
                self._disarm()
                return
        if self._waiting:
            missed = listed(sorted(self._waiting))
            warnings.warn(f"the first batch did not reach {missed}; {self.if_missed}.", stacklevel=2)
        self._mark(trainer, pl_module)
        outcome = self._outcome
        self._disarm()
        if outcome is not None:
            rank_zero_info(outcome.summary)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._disarm()  # on_train_batch_end is not called for a batch that the module skips

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._disarm()
        if self._is_done:
            send_initialized(trainer, pl_module)
        forget_module(self)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._disarm()
        forget_module(self)

    def _disarm(self) -> None:
        self._armed.close()
        self._kept.close()
        self._waiting = self._outcome = None
        self._meet = alone
