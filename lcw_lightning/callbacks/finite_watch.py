"""Warn once, when numbers of a sampled training step cease to be finite."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lcw_lightning.analysis.failures import not_finite
from lcw_lightning.analysis.findings import Statistics
from lcw_lightning.observation.statistics import Statistic

__all__ = ["FiniteWatch"]


class FiniteWatch:
    """Looks at the samples of one run. A callback calls these methods on all ranks.

    Attributes:
        first: The first sampled step in which numbers were not finite, and where; None while all were finite.
    """

    def __init__(self) -> None:
        self.first: tuple[int, str] | None = None
        self._is_said = False
        self._is_loss_finite: Tensor | None = None

    def see_loss(self, loss: Tensor) -> None:
        """Note whether a loss of the sampled step is finite, without waiting for its device."""
        is_finite = loss.detach().isfinite().all()
        self._is_loss_finite = is_finite if self._is_loss_finite is None else self._is_loss_finite & is_finite

    def look(self, trainer: Trainer, statistics: Statistics, step: int) -> None:
        """Look at the statistics of a step, which are the same on all ranks."""
        is_loss_finite, self._is_loss_finite = self._is_loss_finite, None
        if (finding := not_finite(statistics, None)) is None:
            return
        if trainer.precision == "16-mixed" and not_finite(_forward(statistics), None) is None:
            return  # a GradScaler skips steps whose scaled gradients are not finite
        self.first = self.first or (step, finding.says)
        if self._is_said:
            return
        here = is_loss_finite is None or bool(is_loss_finite)
        if trainer.strategy.reduce_boolean_decision(here, all=True) or not _is_loss_watched(trainer):
            self._is_said = True
            rank_zero_warn(f"ShiftMonitor in step {step}: {finding.says} Training goes on; {finding.advice[0]}.")


def _forward(statistics: Statistics) -> Statistics:
    return {
        layer: {name: number for name, number in row.items() if name != Statistic.GRADIENT_STD}
        for layer, row in statistics.items()
    }


def _is_loss_watched(trainer: Trainer) -> bool:
    """Return whether a LossWatch says of a loss that it is not finite; it names the monitor's layer then."""
    from lcw_lightning.callbacks.loss_watch import LossWatch  # noqa: PLC0415 (which imports the monitor)

    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, LossWatch) for callback in callbacks)
