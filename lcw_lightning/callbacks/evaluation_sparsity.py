"""Log how many activations are exactly zero over a whole validation or test set."""

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lcw_lightning.callbacks.loggers import log_scalars
from lcw_lightning.observation.observed_layers import ObservedLayer, observed_layers
from lcw_lightning.observation.sparsity import ActivationSparsity, is_compiled
from lcw_lightning.weights.weight_ref import named_weights

__all__ = ["EvaluationSparsity"]


class EvaluationSparsity(Callback):
    """Log the fraction of activations that are exactly zero, as the metrics ``val/sparsity`` and ``test/sparsity``.

    As Price et al. (ICLR 2024) measure it: of a whole data set, on all ranks; where there are several data sets, of
    all together. It is the mean over layers of the fraction in their inputs. The layer that is called first is left
    out, since its input is the data, so a network of one layer has no such metric; what is pooled or normalized between
    an activation and the next layer counts as the layer gets it. A test also gives loggers each
    layer's, as ``test_sparsity/layer``.

    Hooks exist during batches alone, and results stay bit for bit the same. A network that torch has compiled runs as
    it is, and nothing is counted; nor is it inside a TransformerEncoderLayer, which torch fuses.

    Args:
        include: Glob patterns on weight names ``layer.weight``: layers to count.
        exclude: Glob patterns of weights to leave out.
        enabled: False counts nothing.

    Raises:
        ValueError: A pattern matches no weight. A module without layers is passed over where no patterns are given.
    """

    def __init__(self, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), enabled: bool = True) -> None:
        self.include = list(include)
        self.exclude = list(exclude)
        self.enabled = enabled
        self._counting = ExitStack()
        self._sparsity: ActivationSparsity | None = None
        self._by_layer: dict[str, float] = {}  # of the last evaluation, until a test has logged it

    def layers(self, pl_module: LightningModule) -> dict[str, ObservedLayer]:
        """Return the layers that the patterns choose."""
        if self.include == ["*"] and not self.exclude and not named_weights(pl_module):
            return {}  # nobody asked for any
        return observed_layers(pl_module, self.include, self.exclude)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_counted = self.enabled and not trainer.sanity_checking and not is_compiled(pl_module)
        if is_counted and (chosen := self.layers(pl_module)):
            self._sparsity = ActivationSparsity(pl_module, chosen, pl_module.device)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._sparsity is not None:
            self._counting.enter_context(self._sparsity.watching())

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._counting.close()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        by_layer = {} if self._sparsity is None else self._sparsity.by_layer()
        self._stop_counting()
        if not by_layer:
            return
        # All ranks have this mean already; sync_dist says so to Lightning.
        mean = torch.tensor(fmean(by_layer.values()), device=pl_module.device)
        pl_module.log(f"{'test' if trainer.testing else 'val'}/sparsity", mean, sync_dist=True, batch_size=1)
        self._by_layer = by_layer

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After the metrics of the test, which a CSV file's first row shall hold.
        if self._by_layer and trainer.is_global_zero:
            scalars = {f"test_sparsity/{name}": value for name, value in self._by_layer.items()}
            for logger in trainer.loggers:
                log_scalars(logger, scalars, trainer.global_step)
        self._by_layer = {}

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_counting()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop_counting()

    def _stop_counting(self) -> None:
        self._counting.close()
        self._sparsity = None
