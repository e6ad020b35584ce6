"""Log activation-shift statistics of every layer, every n steps, as scalars and figures."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lcw_lightning.callbacks.evaluation_sparsity import EvaluationSparsity
from lcw_lightning.callbacks.gradient_scale import gradient_scale
from lcw_lightning.callbacks.loggers import lay_out_charts, log_histograms, log_images, log_scalars, takes_images
from lcw_lightning.observation.snapshot import Snapshot
from lcw_lightning.plotting import rgb_array
from lcw_lightning.plotting.snapshots import plot_snapshots

__all__ = [
    "ShiftMonitor",
]

DRAWN = (0, *(4**power for power in range(1, 20)))


class ShiftMonitor(EvaluationSparsity):
    """Log how far the activations of every layer shift and how gradients grow, as ``statistic/layer``.

    Layers are Linear and Bilinear ones, convolutions, recurrent layers and attention, as
    :class:`~lcw_lightning.observation.observed_layers.ObservedLayer` says. The statistics are those of
    :func:`lcw_lightning.observation.statistics.network_statistics`, of one training batch (under DDP of the union of
    all ranks' batches) and the weights that it used. Hooks exist during a sampled step alone, other steps cost nothing,
    and training is bit for bit the same with and without. Works with every Lightning logger. A compiled network runs
    the sampled steps eagerly. ``gradient_std`` is that of the mean loss over the sampled batch, whatever loss scaling,
    accumulation and number of ranks make of it.

    TensorBoard also gets a chart a statistic with all layers in it, under "Custom scalars". Loggers that take images
    (TensorBoard, MLflow, W&B) get figures: ``depth/statistic`` shows a statistic of all layers, ``boxes/by_layer`` box
    plots of z and dL/dz (paper, Fig. 4), ``units/layer`` those of 20 units of the inputs of three layers (Figs. 2
    and 3).
    Drawing takes longer than a step, so they are drawn of samples 0, 4, 16, 64 and so on, and of the last one.

    Validation and test log ``val/sparsity`` and ``test/sparsity``, the fraction of exact zeros over the whole data set,
    as :class:`~lcw_lightning.callbacks.evaluation_sparsity.EvaluationSparsity` says.

    Args:
        every_n_steps: Optimizer steps from sample to sample, the first at step 0; 0 turns the monitor off.
        figures: Draw figures.
        histograms: Log histograms of z and dL/dz of every layer to TensorBoard, at every sample.
        include: Glob patterns on weight names ``layer.weight``, such as ``network.*``.
        exclude: Glob patterns of weights to leave out.

    Raises:
        ValueError: ``every_n_steps`` is negative, or, at the first sample, a pattern matches no weight. A module
            without layers is passed over where no patterns are given.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        figures: bool = True,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        histograms: bool = False,
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"ShiftMonitor needs every_n_steps >= 0, got {every_n_steps}.")
        super().__init__(include, exclude, enabled=every_n_steps > 0)
        self.every_n_steps = every_n_steps
        self.figures = figures
        self.histograms = histograms
        self._sampling = ExitStack()
        self._sample: Snapshot | None = None
        self._sampled_step: int | None = None
        self._draws = False
        self._has_charts = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sampled_step = None
        self._has_charts = False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        # With accumulated gradients several batches share a step: the first is the sample.
        if not trainer.loggers or self.every_n_steps == 0 or step % self.every_n_steps or step == self._sampled_step:
            return
        self._sampled_step = step
        layers = self.layers(pl_module)
        if not layers:
            return  # there are none, or all are lazy still
        self._draws = self.figures and any(map(takes_images, trainer.loggers)) and self._is_drawn(trainer)
        with_values = self._draws or self.histograms
        self._sample = Snapshot(layers, pl_module.device, gradient_scale(trainer, pl_module), with_values)
        self._sampling.enter_context(self._sample.watching())

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._sample is not None and self._sampled_step is not None:
            self._log(trainer, self._sample, self._sampled_step)
        self._discard()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._discard()  # a module that skips a batch never ends it

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._discard()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._discard()

    def _is_drawn(self, trainer: Trainer) -> bool:
        number = trainer.global_step // self.every_n_steps
        end = trainer.estimated_stepping_batches  # -1 or infinity where nobody knows
        is_last = trainer.global_step < end <= trainer.global_step + self.every_n_steps
        return number in DRAWN or is_last

    def _log(self, trainer: Trainer, sample: Snapshot, step: int) -> None:
        statistics = sample.statistics()
        values = sample.values() if sample.samples is not None else {}
        if not (statistics and trainer.is_global_zero):
            return
        scalars = {f"{name}/{layer}": value for layer, row in statistics.items() for name, value in row.items()}
        images = {}
        if self._draws:
            figures = plot_snapshots({"": statistics}, {"": values})
            images = {tag: rgb_array(figure) for tag, figure in figures.items()}
        for logger in trainer.loggers:
            if not self._has_charts:
                lay_out_charts(logger, dict.fromkeys(tag.partition("/")[0] for tag in scalars))
            log_scalars(logger, scalars, step)
            log_images(logger, images, step)
            if self.histograms:
                log_histograms(logger, {f"{quantity}/{layer}": v for (layer, quantity), v in values.items()}, step)
        self._has_charts = True

    def _discard(self) -> None:
        self._sampling.close()
        self._sample = None
