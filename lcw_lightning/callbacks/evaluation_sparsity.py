"""Log how many activations are exactly zero over a whole validation or test set."""

from collections.abc import Container
from contextlib import ExitStack
from statistics import fmean

import torch
from lightning.pytorch import LightningModule, Trainer

from lcw_lightning.callbacks.loggers import log_scalars
from lcw_lightning.observation.sparsity import ActivationSparsity

__all__ = ["EvaluationSparsity"]


class EvaluationSparsity:
    """Log the fraction of activations that are exactly zero, as the metrics ``val/sparsity`` and ``test/sparsity``.

    The fraction is defined as in Price et al. (ICLR 2024): the mean over layers of the fraction of zeros in their
    inputs, over the whole data set and all ranks. Several data sets count as one. The layer that is called first is
    left out, because its input is the data, so a network of one layer has no such metric. An input is counted as the
    layer receives it, after any pooling or normalization that follows the activation. After a test, the fraction of
    each layer is logged too, as ``test_sparsity/layer``.

    Hooks exist during batches only, and results stay bit for bit the same. Layers inside a TransformerEncoderLayer,
    which torch fuses in evaluation, are not counted.

    A callback calls these methods from its hooks of the corresponding names.
    """

    def __init__(self) -> None:
        self._counting = ExitStack()
        self._sparsity: ActivationSparsity | None = None
        self._by_layer: dict[str, float] = {}  # of the last evaluation; emptied once a test has logged it

    def start_epoch(self, pl_module: LightningModule, chosen: Container[str]) -> None:
        """Start to count the zeros in the inputs of the chosen layers."""
        self._sparsity = ActivationSparsity(pl_module, chosen, pl_module.device)

    def start_batch(self) -> None:
        """Count this batch, if an epoch has been started."""
        if self._sparsity is not None:
            self._counting.enter_context(self._sparsity.watching())

    def end_batch(self) -> None:
        """Remove the hooks."""
        self._counting.close()

    def end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the mean over layers as a metric. Every rank must call this."""
        by_layer = {} if self._sparsity is None else self._sparsity.by_layer()
        self.stop()
        if not by_layer:
            return
        # All ranks have the same mean already; sync_dist tells Lightning so.
        mean = torch.tensor(fmean(by_layer.values()), device=pl_module.device)
        pl_module.log(f"{'test' if trainer.testing else 'val'}/sparsity", mean, sync_dist=True, batch_size=1)
        self._by_layer = by_layer

    def end_test(self, trainer: Trainer) -> None:
        """Log the fraction of each layer."""
        # After the test metrics, because the first row that is logged sets the columns of a CSV file.
        if self._by_layer and trainer.is_global_zero:
            scalars = {f"test_sparsity/{name}": value for name, value in self._by_layer.items()}
            for logger in trainer.loggers:
                log_scalars(logger, scalars, trainer.global_step)
        self._by_layer = {}

    def stop(self) -> None:
        """Remove the hooks and forget the counts, however the evaluation ended."""
        self._counting.close()
        self._sparsity = None
