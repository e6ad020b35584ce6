"""End a run, or warn, when its training loss ceases to be finite."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, distributed
from torch.nn.parameter import is_lazy
from typing_extensions import override

from lcw_lightning.callbacks.forgetting import forget_module
from lcw_lightning.callbacks.later import later
from lcw_lightning.callbacks.shift_monitor import ShiftMonitor
from lcw_lightning.callbacks.step_number import step_number

__all__ = ["LossWatch"]

SKIPPED_BATCHES = 10
"""Number of batches in a row whose loss is not finite, and whose steps a GradScaler skips, that counts as a failure."""


class _Place(NamedTuple):
    step: int
    epoch: int
    batch: int


class LossWatch(Callback):
    """End the run when the training loss is NaN or infinite, before a full checkpoint is written of such weights.

    A checkpoint of weights alone (``save_weights_only``), and one that is saved on an exception, may hold the weights
    of the step that failed.

    Each loss is looked at one batch later, so that no step waits for its device: the run ends after the batch that
    follows. The last loss is looked at before a validation, before a checkpoint that holds more than weights, and at
    the end of an epoch; so are the weights, which a finite loss can make NaN, such as one of inputs that are infinite.
    Under a distributed strategy the ranks' losses are summed up, beside the next step, and all ranks end in the same
    error. The loss is what ``training_step`` returns; in manual optimization it is what ``manual_backward`` gets, or
    else what is returned. Batches without a loss are passed over.

    In ``16-mixed`` precision a GradScaler skips the step of a loss that is not finite, which then harms nothing, as
    does an infinite gradient. There such a loss counts if a parameter or a buffer (a BatchNorm's running statistics)
    is NaN after it, or if it is one of 10 in a row, when nothing is learned.

    The message names the step (as in logs), the epoch and the batch, all from 0. If a
    :class:`~lcw_lightning.ShiftMonitor` has sampled that step, or an earlier one that was not finite, it names the
    layer.

    Args:
        if_not_finite: ``stop`` ends the run with an error, and ``lcw fit`` with exit status 1; ``warn`` warns once, and
            trains on.

    Raises:
        FloatingPointError: During fit, on all ranks, if the loss is not finite, or weights are NaN.
        ValueError: At construction, for another word than these.

    Warns:
        UserWarning: Once, in place of the error, if ``if_not_finite`` is ``warn``.
    """

    _place: _Place | None  # of the present batch
    _losses: list[Tensor]  # of the present batch
    _waiting: tuple[_Place, Callable[[], float]] | None  # the last batch that was not looked at
    _not_finite: list[_Place]  # the last batches in a row
    _is_said: bool

    def __init__(self, if_not_finite: Literal["stop", "warn"] = "stop") -> None:
        if if_not_finite not in ("stop", "warn"):
            raise ValueError(f"LossWatch needs if_not_finite='stop' or 'warn', got {if_not_finite!r}.")
        self.if_not_finite = if_not_finite
        self._restart()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._place = _Place(step_number(trainer, pl_module), trainer.current_epoch, batch_idx)
        self._losses = []

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not pl_module.automatic_optimization:
            self._losses.append(loss.detach())

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_said or self._place is None:
            return
        self._look(trainer, pl_module)
        returned = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        losses = self._losses or ([returned] if isinstance(returned, Tensor) else [])
        self._losses = []
        over_ranks = trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized()
        if not self._is_said and (losses or over_ranks):
            self._waiting = self._place, later(_zero_if_finite(losses, pl_module.device), over_ranks)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module)
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        if self._place is not None and not self._is_said and _hold_nan(trainer, trained):
            self._say(trainer, "weights are NaN after", self._place)

    on_validation_start = on_train_epoch_end

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.on_train_epoch_end(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restart()
        forget_module(self)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restart()
        forget_module(self)

    def _restart(self) -> None:
        self._place = self._waiting = None
        self._losses, self._not_finite = [], []
        self._is_said = False

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._waiting is None:
            return
        (place, read), self._waiting = self._waiting, None
        if math.isfinite(read()):
            self._not_finite = []
            return
        self._not_finite.append(place)
        is_skipped = trainer.precision == "16-mixed" and len(self._not_finite) < SKIPPED_BATCHES
        if not is_skipped or _hold_nan(trainer, [*pl_module.parameters(), *pl_module.buffers()]):
            self._say(trainer, "the training loss is not finite in", self._not_finite[0])

    def _say(self, trainer: Trainer, problem: str, place: _Place) -> None:
        self._is_said = True
        says = f"{problem} step {place.step} (batch {place.batch} of epoch {place.epoch}){_layer(trainer, place.step)}"
        if self.if_not_finite == "warn":
            rank_zero_warn(f"{says}; training goes on, as LossWatch(if_not_finite='warn') asks.")
            return
        raise FloatingPointError(
            f"{says}; look for NaN and infinity in that batch, or lower the learning rate, and go on from an earlier "
            "checkpoint. LossWatch(if_not_finite='warn'), or --loss_watch.if_not_finite=warn, trains on."
        )


def _zero_if_finite(losses: list[Tensor], device: torch.device) -> Tensor:
    """Return a number that is zero if all losses are finite, else NaN: no sum of it overflows."""
    zeros = [loss.detach().mul(0).sum().to(device, torch.float32) for loss in losses]
    return torch.stack(zeros).sum() if zeros else torch.zeros((), device=device)


def _hold_nan(trainer: Trainer, tensors: Iterable[Tensor]) -> bool:
    here = any(bool(tensor.isnan().any()) for tensor in tensors if not is_lazy(tensor))
    return trainer.strategy.reduce_boolean_decision(here, all=False)


def _layer(trainer: Trainer, step: int) -> str:
    monitors: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    seen = [c.not_finite for c in monitors if isinstance(c, ShiftMonitor) and c.not_finite is not None]
    return next(
        (f" (ShiftMonitor in step {number}: {says.rstrip('.')})" for number, says in seen if number <= step), ""
    )
