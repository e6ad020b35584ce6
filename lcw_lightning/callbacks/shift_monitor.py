"""Log activation-shift statistics of every layer, every n steps."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lcw_lightning.layers import WeightRef
from lcw_lightning.patterns import listed, select_weights
from lcw_lightning.recording import Quantity, observe
from lcw_lightning.statistics import NetworkMoments, layer_statistics

__all__ = ["ShiftMonitor"]


class ShiftMonitor(Callback):
    """Log how far the activations of every layer shift and how gradients grow, as ``statistic/layer``.

    Layers are Linear ones and convolutions. The statistics are those of
    :func:`lcw_lightning.statistics.layer_statistics`, of one training batch (under DDP of the union of all ranks'
    batches) and the weights that it used. Hooks exist during a sampled step alone, other steps cost nothing, and
    training is bit for bit the same with and without. Works with every Lightning logger. A compiled network runs the
    sampled steps eagerly. ``gradient_std`` is that of the mean loss over the sampled batch, whatever loss scaling,
    accumulation and number of ranks make of it.

    Args:
        every_n_steps: Optimizer steps from sample to sample, the first at step 0; 0 turns the monitor off.
        include: Glob patterns on weight names ``layer.weight``, such as ``network.*``.
        exclude: Glob patterns of weights to leave out.

    Raises:
        ValueError: ``every_n_steps`` is negative, or, at the first sample, a pattern matches no weight, or nothing that
            hooks see: the states inside recurrent layers and attention are their own.
    """

    def __init__(self, every_n_steps: int = 50, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> None:
        if every_n_steps < 0:
            raise ValueError(f"ShiftMonitor needs every_n_steps >= 0, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.include = list(include)
        self.exclude = list(exclude)
        self._sampling = ExitStack()
        self._sample: _Sample | None = None
        self._sampled_step: int | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sampled_step = None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        # With accumulated gradients several batches share a step: the first is the sample.
        if not trainer.loggers or self.every_n_steps == 0 or step % self.every_n_steps or step == self._sampled_step:
            return
        self._sampled_step = step
        selected = select_weights(pl_module, self.include, self.exclude)
        weights = {name: ref for name, ref in selected.items() if ref.is_observable}
        if not weights:
            raise ValueError(
                f"ShiftMonitor sees Linear layers and convolutions, of which there is none among {listed(selected)}."
            )
        self._sample = _Sample(weights, pl_module.device, _gradient_unit(trainer, pl_module))
        layers = {name: ref.layer for name, ref in self._sample.layers.items()}
        self._sampling.enter_context(observe(layers, self._sample.observe))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._sample is not None:
            scalars = self._sample.scalars()
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=self._sampled_step)
        self._discard()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._discard()  # a module that skips a batch never ends it

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._discard()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._discard()

    def _discard(self) -> None:
        self._sampling.close()
        self._sample = None


class _Sample:
    """What one sampled step has shown so far."""

    def __init__(self, weights: dict[str, WeightRef], device: torch.device, gradient_unit: float) -> None:
        self.gradient_unit = gradient_unit
        self.layers = {name.removesuffix(".weight"): ref for name, ref in weights.items()}
        self.moments = NetworkMoments(self.layers).to(device)
        self.weights: dict[str, tuple[Tensor, Tensor | None]] = {}

    def observe(self, name: str, quantity: Quantity, values: Tensor) -> None:
        self.moments.update(name, quantity, values)
        if quantity == "preactivation":
            self.units_and_bias(name)

    def units_and_bias(self, name: str) -> tuple[Tensor, Tensor | None]:
        # A copy at first use, since the optimizer steps before the statistics are made.
        if name not in self.weights:
            self.weights[name] = _copied(self.layers[name])
        return self.weights[name]

    def scalars(self) -> dict[str, float]:
        tensors: dict[str, Tensor] = {}
        for name, moments in self.moments.compute().items():
            statistics = layer_statistics(moments, self.layers[name], *self.units_and_bias(name))
            if "gradient_std" in statistics:
                statistics["gradient_std"] /= self.gradient_unit
            tensors |= {f"{statistic}/{name}": value for statistic, value in statistics.items()}
        return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True)) if tensors else {}


@torch.no_grad()
def _copied(ref: WeightRef) -> tuple[Tensor, Tensor | None]:
    bias = ref.layer.bias
    return ref.units.clone(), bias.clone() if isinstance(bias, Tensor) else None


def _gradient_unit(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return what multiplies dL/dz in a rank's backward pass, for L the mean loss over all ranks' batch."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    loss_scale = float(scaler.get_scale()) if scaler is not None else 1.0
    accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
    return loss_scale * trainer.world_size / accumulated
