"""Initialize weights from the first training batch, in the very forward that trains."""

import warnings
from contextlib import ExitStack
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lcw_lightning.initialization import is_initialized, mark_initialized, rescale_on_first_forward
from lcw_lightning.layers import listed

__all__ = ["MinibatchInitCallback"]


class MinibatchInitCallback(Callback):
    """Rescale each layer on its first training input, so that preactivations have ``target_std`` (Section 4.3).

    Happens once, during the first training batch of a fresh run, never on resume nor when a checkpoint's weights were
    loaded; there is no extra batch and no extra pass through the network. Biases start at zero. Frozen weights are
    left alone. Under DDP every rank uses the statistics of the union of their batches. A compiled network runs that
    one batch in eager mode.

    Args:
        target_std: Standard deviation of the preactivations over the minibatch.
        granularity: ``layer`` scales a layer by one factor, activation shift included in its std; ``unit`` scales each
            unit by its own; ``none`` leaves the weights as they were drawn.

    Raises:
        ValueError: In the first batch, for an input that is not finite or a layer whose preactivation is constant.

    Warns:
        UserWarning: Layers that the first batch did not reach keep their weights.
    """

    def __init__(self, target_std: float = 1.0, granularity: Literal["none", "layer", "unit"] = "layer") -> None:
        self.target_std = target_std
        self.granularity = granularity
        self._armed = ExitStack()
        self._waiting: set[str] = set()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.granularity == "none" or not _is_fresh(trainer, pl_module):
            return
        mark_initialized(pl_module)
        self._armed.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code skips hooks
        self._waiting = self._armed.enter_context(
            rescale_on_first_forward(pl_module, self.target_std, self.granularity)
        )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._waiting:
            warnings.warn(
                f"the first batch did not reach {listed(sorted(self._waiting))}; they keep the weights they had.",
                stacklevel=2,
            )
        self._disarm()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._disarm()

    def _disarm(self) -> None:
        self._armed.close()
        self._waiting = set()


def _is_fresh(trainer: Trainer, pl_module: LightningModule) -> bool:
    resumed = trainer.ckpt_path is not None or trainer.global_step > 0
    return not resumed and not is_initialized(pl_module)
