"""Train any image classification network with Lightning."""

import math
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lcw_lightning.checkpoints.initialized import is_initialized_in
from lcw_lightning.checkpoints.record import read_record, save_record
from lcw_lightning.compat import is_made_by_cli
from lcw_lightning.weights.failing_layer import failing_layer_named
from lcw_lightning.weights.freshness import mark_initialized
from lcw_lightning.weights.settings import check_model

__all__ = ["GeometricDecay", "ImageClassifier"]


class ImageClassifier(LightningModule):
    """Cross-entropy training of a network that maps images to logits; logs ``{train,val,test}/{loss,accuracy}``.

    Batches are pairs of images ``(batch, ...)`` and integer labels ``(batch,)``; prediction takes the same batches, or
    images alone, and returns logits ``(batch, num_classes)``. Checkpoints include the constraints on the network. A
    checkpoint that the command line wrote loads with ``ImageClassifier.load_from_checkpoint(path)``; a checkpoint
    written from Python needs the same arguments again, ``load_from_checkpoint(path, network=..., optimizer=...)``.

    Args:
        network: Maps images to logits.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes a scheduler from the optimizer; it steps once per epoch. ReduceLROnPlateau watches
            ``val/loss``.
        compile: Compile the network with ``torch.compile``.
        channels_last: Keep images, which then have shape ``(batch, channels, height, width)``, and kernels in torch's
            order ``channels_last``, which is faster on GPUs with tensor cores.

    Raises:
        ValueError: The network is no module, or ``optimizer`` makes none; in a step, if a layer cannot take its input,
            or labels and logits do not fit each other.

    Example:
        >>> from functools import partial
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> classifier = ImageClassifier(network, optimizer=partial(torch.optim.SGD, lr=0.1))
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        check_model(network)
        if not callable(optimizer):
            raise ValueError(
                "ImageClassifier needs a function that makes the optimizer from parameters, such as "
                f"functools.partial(torch.optim.SGD, lr=0.1); got a {type(optimizer).__name__}."
            )
        super().__init__()
        # Modules and callables made in Python are not safe to save in a checkpoint; the command line's config is.
        if is_made_by_cli():
            self.save_hyperparameters()
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self.channels_last = channels_last
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        if compile:
            self.network.compile()
        stages = ("train", "val", "test")
        # By default torchmetrics skips NaN losses, so a diverged run would look good. Replacing NaN by NaN keeps them;
        # nan_strategy="disable" would drop the weights of the mean.
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanMetric(nan_strategy=math.nan) for stage in stages})
        self.accuracies = nn.ModuleDict({f"{stage}_accuracy": MulticlassAccuracy(average="micro") for stage in stages})

    @override
    def forward(self, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(images)
        return logits

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val")

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "test")

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        images = batch[0] if isinstance(batch, tuple | list) else batch
        with failing_layer_named():
            return self.forward(images)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.lr_scheduler(optimizer), "monitor": "val/loss"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        save_record(self, checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        read_record(checkpoint).restore(self)
        if is_initialized_in(checkpoint):
            mark_initialized(self)

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        with failing_layer_named():
            logits = self.forward(images)
        loss = _cross_entropy(logits, labels)
        mean_loss = cast(Metric, self.losses[f"{stage}_loss"])
        accuracy = cast(Metric, self.accuracies[f"{stage}_accuracy"])
        mean_loss.update(loss.detach(), weight=len(labels))
        accuracy.update(logits, labels)
        # Metric objects are logged, so that Lightning reduces them over batches and ranks as the metric defines.
        shown = {f"{stage}/loss": mean_loss, f"{stage}/accuracy": accuracy}
        self.log_dict(shown, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    try:
        return cross_entropy(logits, labels)
    except (IndexError, RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        labels = torch.as_tensor(labels)
        found = f", between {labels.min().item()} and {labels.max().item()}" if labels.numel() else ""
        raise ValueError(
            "ImageClassifier needs logits (batch, num_classes) and labels (batch,) from 0 to num_classes - 1; got "
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}, {labels.dtype}{found}."
        ) from error


class GeometricDecay(LambdaLR):
    r"""Multiply the learning rate by ``factor`` after every ``every_n_epochs`` epochs, down to ``floor`` (Section 6).

    In epoch :math:`t`: :math:`\max(\mathrm{lr}\cdot\mathrm{factor}^{\lfloor t/n \rfloor}, \mathrm{floor})`, and never
    above the initial rate. A fraction :math:`n` runs through the same rates in fewer epochs: the schedule of 300 epochs
    and :math:`n = 3` is, at :math:`n = 0.3`, that of 30 epochs, each with the rate of every tenth epoch.

    Args:
        optimizer: The optimizer, whose groups have the initial learning rates.
        factor: Factor in (0, 1].
        every_n_epochs: Number of epochs between two steps, above 0.
        floor: Lowest learning rate.

    Raises:
        ValueError: A factor outside (0, 1], a period that is not positive, a negative floor.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> schedule = GeometricDecay(sgd, factor=0.5, floor=0.04)
        >>> [round(schedule.lr_lambdas[0](epoch), 3) for epoch in range(3)]
        [1.0, 0.5, 0.4]
    """

    def __init__(
        self, optimizer: Optimizer, factor: float = 0.95, every_n_epochs: float = 1, floor: float = 0.001
    ) -> None:
        if not (0 < factor <= 1 and every_n_epochs > 0 and floor >= 0):
            raise ValueError(
                "GeometricDecay needs 0 < factor <= 1, every_n_epochs > 0 and floor >= 0, got "
                f"factor={factor}, every_n_epochs={every_n_epochs}, floor={floor}."
            )

        def relative_rate(initial: float, epoch: int) -> float:
            lowest = min(1.0, floor / initial) if initial else 1.0
            steps = math.floor(epoch / every_n_epochs + 1e-9)  # a step that is due now is not lost to rounding
            return max(factor**steps, lowest)

        super().__init__(optimizer, [partial(relative_rate, group["lr"]) for group in optimizer.param_groups])
