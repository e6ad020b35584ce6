"""Initialize weights from the first training batch, in the very forward that trains."""

from collections.abc import KeysView
from contextlib import AbstractContextManager
from typing import Literal

from lightning.pytorch import LightningModule
from typing_extensions import override

from lcw_lightning.callbacks.first_batch import FirstBatchInit
from lcw_lightning.initialization.minibatch import rescale_on_first_forward

__all__ = ["MinibatchInitCallback"]


class MinibatchInitCallback(FirstBatchInit):
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

    by_hand = "rescale them with minibatch_init_(module, inputs)"
    if_missed = "they keep the weights they had"

    def __init__(self, target_std: float = 1.0, granularity: Literal["none", "layer", "unit"] = "layer") -> None:
        super().__init__()
        self.target_std = target_std
        self.granularity = granularity

    @property
    @override
    def is_active(self) -> bool:
        return self.granularity != "none"

    @override
    def armed(self, module: LightningModule) -> AbstractContextManager[KeysView[str]]:
        assert self.granularity != "none"
        return rescale_on_first_forward(module, self.target_std, self.granularity)
