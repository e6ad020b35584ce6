"""Initialize weights from the first training batch, in the very forward that trains."""

import warnings
from collections.abc import KeysView
from contextlib import ExitStack
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from typing_extensions import override

from lcw_lightning.initialization import is_initialized, mark_initialized, rescale_on_first_forward
from lcw_lightning.patterns import listed

__all__ = ["MinibatchInitCallback"]


class MinibatchInitCallback(Callback):
    """Rescale each layer on its first training input, so that preactivations have ``target_std`` (Section 4.3).

    Happens once, during the first training batch of a fresh run, never on resume, in a second fit of the same module,
    nor for a module that :func:`~lcw_lightning.load_from_checkpoint` made, nor for an
    :class:`~lcw_lightning.ImageClassifier` that was loaded in any way; another module with loaded weights looks fresh,
    so leave this callback off there. There is no extra batch and no extra pass through the
    network. Biases start at zero. Frozen weights are left alone. Under DDP every rank uses the statistics of the union
    of their batches. A compiled network runs that one batch eagerly.

    Weights under ``wn`` and ``cwn`` start as Salimans & Kingma have it: each unit's gain and bias are set so that its
    preactivation has mean zero and ``target_std``. Weights under ``sn``, whose norm is 1 for good, and their layers'
    biases keep what they were drawn as.

    Args:
        target_std: Standard deviation of the preactivations over the minibatch.
        granularity: ``layer`` scales a layer by one factor, activation shift included in its std; ``unit`` scales each
            unit by its own, as ``wn`` and ``cwn`` do under both; ``none`` leaves all weights as they were drawn.

    Raises:
        ValueError: In the first batch, for a layer whose preactivation is constant or not finite, or whose
            parametrization cannot hold a rescaled weight, such as a spectral_norm of the user's own.

    Warns:
        UserWarning: Layers that the first batch did not reach keep their weights; a LearningRateFinder tries its rates
            on weights that are not initialized yet.
    """

    def __init__(self, target_std: float = 1.0, granularity: Literal["none", "layer", "unit"] = "layer") -> None:
        self.target_std = target_std
        self.granularity = granularity
        self._armed = ExitStack()
        self._waiting: KeysView[str] | None = None  # the layers not yet reached, while armed

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        finders = [c for c in trainer.callbacks if isinstance(c, LearningRateFinder)]  # type: ignore[attr-defined]
        if finders and self.granularity != "none" and stage == "fit" and _is_fresh(trainer, pl_module):
            warnings.warn(
                "LearningRateFinder tries its rates before the first batch initializes the weights; rescale them with "
                "minibatch_init_(module, inputs) before fit, and leave MinibatchInitCallback out.",
                stacklevel=2,
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.granularity != "none" and _is_fresh(trainer, pl_module):
            context = rescale_on_first_forward(pl_module, self.target_std, self.granularity)
            self._waiting = self._armed.enter_context(context)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._waiting is None:
            return
        if self._waiting:
            missed = listed(sorted(self._waiting))
            warnings.warn(f"the first batch did not reach {missed}; they keep the weights they had.", stacklevel=2)
        mark_initialized(pl_module)
        self._disarm()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._disarm()  # a module that skips its first batch never ends it

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._disarm()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._disarm()

    def _disarm(self) -> None:
        self._armed.close()
        self._waiting = None


def _is_fresh(trainer: Trainer, pl_module: LightningModule) -> bool:
    # Not trainer.ckpt_path: Lightning's tuners leave there what they restored, the untrained weights.
    return trainer.global_step == 0 and not is_initialized(pl_module)
