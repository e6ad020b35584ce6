"""Log activation-shift statistics of every layer, every n steps, as scalars and figures."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lcw_lightning.callbacks.evaluation_sparsity import EvaluationSparsity
from lcw_lightning.callbacks.finite_watch import FiniteWatch
from lcw_lightning.callbacks.forgetting import forget_module
from lcw_lightning.callbacks.gradient_scale import gradient_scale
from lcw_lightning.callbacks.sample_log import SampleLog
from lcw_lightning.callbacks.step_number import step_number
from lcw_lightning.observation.compiled import is_compiled
from lcw_lightning.observation.observed_layers import ObservedLayer, observed_layers
from lcw_lightning.observation.snapshot import Snapshot, SnapshotMemory
from lcw_lightning.observation.summary import summary
from lcw_lightning.weights.layer_types import layer_type_of
from lcw_lightning.weights.settings import check_patterns
from lcw_lightning.weights.weight_ref import named_weights

__all__ = ["ShiftMonitor"]


class ShiftMonitor(Callback):
    """Log how far the activations of every layer shift and how gradients grow, as ``statistic/layer``.

    Layers are Linear and Bilinear layers, convolutions, recurrent layers and attention, as described at
    :class:`~lcw_lightning.observation.observed_layers.ObservedLayer`. The statistics are defined at
    :class:`~lcw_lightning.observation.statistics.Statistic`. They are computed from one training batch (under DDP, from
    the union of all ranks' batches) and the weights that it used. Hooks exist during a sampled step only, so other
    steps cost nothing. Training is bit for bit the same with and without the monitor, but for compiled networks: their
    sampled steps run eagerly, which rounds otherwise and may draw other dropout masks. It works with every Lightning
    logger. ``gradient_std`` is that of the mean loss over the sampled batch, independent of loss scaling, gradient
    accumulation and the number of ranks. All calls of a layer in the sampled batch count, and all gradients that come
    back through it, those of a gradient penalty too. If an optimizer steps amid the batch, norms and the constraint's
    residual are those of the weights at the layer's first call. When numbers of a sample cease to be finite, one
    warning names the step and where; if a :class:`~lcw_lightning.LossWatch` says so of the loss, there is none beside
    it.

    Of recurrent layers the statistics are those of the hidden states. Beside them ``preactivation_mean``,
    ``preactivation_std`` and ``shift_ratio`` of each gate are logged as ``statistic/layer.gate``, such as
    ``shift_ratio/lstm.input_gate_l0``, as described at :class:`~lcw_lightning.observation.recurrences.Recurrence`. For
    these a sampled step computes each recurrent layer a second time, step by step.

    Four numbers come first, as metrics of the run that EarlyStopping and ModelCheckpoint can watch, with a logger or
    without: ``shift/shift_ratio_median``, ``shift/shift_ratio_max``, ``shift/gradient_decades`` (below 0 gradients
    vanish on their way back to the first layers, above 0 they explode) and ``shift/dead_units_max``, as defined at
    :func:`~lcw_lightning.observation.summary.summary`. All ranks have the same. A resumed run has those of its
    checkpoint until its next sample.

    In TensorBoard, "Custom scalars" shows two charts per statistic: the median, the lowest and the highest layer, and
    all layers. Loggers that take images (TensorBoard, MLflow, W&B) also get figures: ``depth/statistic`` plots a
    statistic of all layers, ``boxes/by_layer`` shows box plots of z and dL/dz (paper, Fig. 4), and ``units/layer`` box
    plots of 20 units of the inputs of three layers (Figs. 2 and 3). The same loggers get the ``verdict``, the text that
    ``lcw analyze`` prints. Plotting takes longer than a training step, so only samples 0, 4, 16, 64 and so on, and the
    last one, are plotted and judged. One message says what a logger does not take.

    Validation and test log ``val/sparsity`` and ``test/sparsity``, the fraction of exact zeros over the whole data set,
    as defined at :class:`~lcw_lightning.callbacks.evaluation_sparsity.EvaluationSparsity`. They are not counted in a
    compiled network, which stays compiled.

    Args:
        every_n_steps: Sample every n-th optimizer step, from step 0 on; 0 samples none.
        figures: Plot figures.
        histograms: Log histograms of z and dL/dz of every layer to TensorBoard and W&B, at every sample.
        include: Glob patterns on weight names ``layer.weight``, such as ``network.*``.
        exclude: Glob patterns of weights to leave out.
        sparsity: Log ``val/sparsity`` and ``test/sparsity``. By default they are logged if steps are sampled.

    Raises:
        ValueError: ``every_n_steps`` is no whole number from 0 on, or patterns are no list; or, at the first sample or
            evaluation, a pattern matches no weight. A module without layers is not an error unless patterns are given.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        figures: bool = True,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        histograms: bool = False,
        sparsity: bool | None = None,
    ) -> None:
        if not (isinstance(every_n_steps, int) and every_n_steps >= 0):
            raise ValueError(f"ShiftMonitor needs a whole number every_n_steps >= 0, got {every_n_steps!r}.")
        check_patterns("ShiftMonitor", include, exclude)
        self.every_n_steps = every_n_steps
        self.figures = figures
        self.include = list(include)
        self.exclude = list(exclude)
        self.histograms = histograms
        self.sparsity = every_n_steps > 0 if sparsity is None else sparsity
        self._finite_watch = FiniteWatch()
        self._memory = SnapshotMemory()
        self._zeros = EvaluationSparsity()
        self._sampling = ExitStack()
        self._sample: Snapshot | None = None
        self._sampled_step: int | None = None
        self._samples = SampleLog(every_n_steps, figures, histograms)
        self._first: dict[str, float] = {}  # what a person reads first, at the last sample
        self._is_begun = False  # whether a batch of this run has ended

    @property
    def not_finite(self) -> tuple[int, str] | None:
        """The first sampled step in which numbers were not finite, and where; None while all were finite."""
        return self._finite_watch.first

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(include=self.include, exclude=self.exclude)

    @override
    def state_dict(self) -> dict[str, Any]:
        return dict(self._first)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first = dict(state_dict)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._first = {}  # before a checkpoint's are loaded

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finite_watch = FiniteWatch()
        self._sampled_step = None
        self._is_begun = False
        self._samples = SampleLog(self.every_n_steps, self.figures, self.histograms)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = step_number(trainer, pl_module)
        # With accumulated gradients several batches share a step; the first of them is sampled.
        if self.every_n_steps == 0 or step % self.every_n_steps or step == self._sampled_step or trainer.barebones:
            return
        self._sampled_step = step
        if not (layers := self._layers(pl_module)):
            return  # the module has none, or all of them are still lazy
        with_values = self._samples.start(trainer, pl_module)
        scale = gradient_scale(trainer, pl_module)
        self._sample = Snapshot(layers, pl_module.device, scale, with_values, memory=self._memory)
        self._sampling.enter_context(self._sample.watching())

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._sample is not None:
            self._finite_watch.see_loss(loss)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._sample is not None and self._sampled_step is not None:
            self._log(trainer, pl_module, self._sample, self._sampled_step)
        elif not self._is_begun and self._first and not trainer.barebones:
            self._log_first(pl_module)  # a resumed run between two samples
        self._is_begun = True
        self._end_sample()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_sample()  # on_train_batch_end is not called for a batch that the module skips

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_counted = self.sparsity and not trainer.sanity_checking and not is_compiled(pl_module)
        if is_counted and (chosen := self._layers(pl_module)):
            self._zeros.start_epoch(pl_module, chosen)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._zeros.start_batch()

    @override
    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self._zeros.end_batch()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._zeros.end_epoch(trainer, pl_module)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._zeros.end_test(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._discard()
        forget_module(self)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._discard()
        forget_module(self)

    def _layers(self, pl_module: LightningModule) -> dict[str, ObservedLayer]:
        takes_all = self.include == ["*"] and not self.exclude
        is_bare = takes_all and not any(named_weights(layer) for layer in pl_module.modules() if layer_type_of(layer))
        return {} if is_bare else observed_layers(pl_module, self.include, self.exclude)

    def _log(self, trainer: Trainer, pl_module: LightningModule, sample: Snapshot, step: int) -> None:
        statistics = sample.statistics()
        self._finite_watch.look(trainer, statistics, step)
        values = sample.values() if sample.samples is not None else {}
        if not statistics:
            return
        # Ranks may have called layers in different orders.
        self._first = trainer.strategy.broadcast(summary(statistics, sample.num_values("preactivation_gradient")))
        self._log_first(pl_module)
        verdict = self._samples.verdict(pl_module, sample, statistics, (self.include, self.exclude))
        self._samples.log(trainer, self._first, statistics, values, verdict, step, sample.recurrence().gates)

    def _log_first(self, pl_module: LightningModule) -> None:
        pl_module.log_dict(self._first, on_step=True, on_epoch=False, logger=False, batch_size=1)

    def _end_sample(self) -> None:
        self._sampling.close()
        self._sample = None

    def _discard(self) -> None:
        self._end_sample()
        self._memory = SnapshotMemory()
        self._zeros.stop()
