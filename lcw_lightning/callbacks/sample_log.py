"""Log sampled training steps: numbers of each, figures and the verdict of some."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lcw_lightning.analysis.condition import condition_of, zero_gains
from lcw_lightning.analysis.report import Report, verdict_lines
from lcw_lightning.callbacks.charts import bands, charts
from lcw_lightning.callbacks.loggers import Shown, lay_out_charts, log_shown, say_what_is_not_taken, takes
from lcw_lightning.observation.snapshot import Snapshot
from lcw_lightning.observation.statistics import Statistic
from lcw_lightning.plotting import rgb_array
from lcw_lightning.plotting.snapshots import plot_snapshots
from lcw_lightning.weights.plan import plan_weights

__all__ = ["PLOTTED_SAMPLES", "SampleLog"]

PLOTTED_SAMPLES = (0, *(4**power for power in range(1, 20)))  # and the last sample


class SampleLog:
    """Log the samples of one run. A callback calls these methods on all ranks.

    Args:
        every_n_steps: Number of steps between two samples.
        figures: Whether figures are plotted.
        histograms: Whether histograms are logged.
    """

    def __init__(self, every_n_steps: int, figures: bool, histograms: bool) -> None:
        self.every_n_steps = every_n_steps
        self.figures = figures
        self.histograms = histograms
        self._is_drawn = False
        self._zero_gains: list[str] = []
        self._is_laid_out = False

    def start(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Decide, before a step, what is shown of it; return whether that needs samples of values."""
        taken = set[str]().union(*map(takes, trainer.loggers))
        self._is_drawn = bool(trainer.loggers) and self._is_plotted(trainer)
        self._zero_gains = list(zero_gains(pl_module)) if self._is_drawn else []  # the step may move them
        with_figures = self.figures and self._is_drawn and "images" in taken
        return with_figures or (self.histograms and "histograms" in taken)

    def verdict(
        self,
        pl_module: LightningModule,
        sample: Snapshot,
        statistics: dict[str, dict[str, float]],
        patterns: tuple[Sequence[str], Sequence[str]],
    ) -> str:
        """Return the verdict in words, on the weights that patterns include and exclude; empty if it is not drawn."""
        if not self._is_drawn:
            return ""
        plan = plan_weights(pl_module, "seen", *patterns)
        reached = {id(parameter) for parameter in pl_module.parameters() if parameter.grad is not None}
        condition = condition_of(pl_module, sample, statistics, plan, reached)
        condition = condition._replace(zero_gains=self._zero_gains)
        report = Report(statistics, condition, recurrence=sample.recurrence())
        return "\n\n".join(verdict_lines("", report))

    def log(
        self,
        trainer: Trainer,
        first: Mapping[str, float],
        statistics: Mapping[str, Mapping[str, float]],
        values: Mapping[tuple[str, Any], Tensor],
        verdict: str,
        step: int,
        gates: Mapping[str, Mapping[str, Mapping[str, float]]],
    ) -> None:
        """Log what is shown of a step to all loggers, on the first rank.

        Args:
            trainer: Has the loggers.
            first: The numbers that are read first, by tag.
            statistics: Of each layer.
            values: Samples of values by layer and quantity.
            verdict: Empty if there is none.
            step: Its number.
            gates: Statistics of the gates of recurrent layers, by layer and gate.
        """
        if not trainer.is_global_zero:
            return
        rows = dict(statistics) | {f"{layer}.{gate}": row for layer, by in gates.items() for gate, row in by.items()}
        by_layer = {f"{name}/{layer}": value for layer, row in rows.items() for name, value in row.items()}
        figures = plot_snapshots({"": statistics}, {"": values}, Statistic) if self._is_drawn and self.figures else {}
        shown = Shown(
            scalars={**first, **by_layer},
            bands=bands(statistics),
            images={tag: rgb_array(figure) for tag, figure in figures.items()},
            histograms={f"{quantity}/{layer}": v for (layer, quantity), v in values.items() if self.histograms},
            texts={"verdict": verdict} if verdict else {},
        )
        if not self._is_laid_out:
            self._lay_out(trainer, first, dict.fromkeys(tag.partition("/")[0] for tag in by_layer))
        for logger in trainer.loggers:
            log_shown(logger, shown, step)

    def _lay_out(self, trainer: Trainer, first: Iterable[str], statistics: Iterable[str]) -> None:
        wanted = {"images": self.figures, "histograms": self.histograms, "texts": True}
        say_what_is_not_taken(trainer.loggers, [name for name, is_wanted in wanted.items() if is_wanted])
        layout = charts(first, statistics)
        for logger in trainer.loggers:
            lay_out_charts(logger, layout)
        self._is_laid_out = True

    def _is_plotted(self, trainer: Trainer) -> bool:
        number = trainer.global_step // self.every_n_steps
        end = trainer.estimated_stepping_batches  # -1 or infinity where it is unknown
        is_last = trainer.global_step < end <= trainer.global_step + self.every_n_steps
        return number in PLOTTED_SAMPLES or is_last
