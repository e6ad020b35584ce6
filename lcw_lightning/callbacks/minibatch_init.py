"""Initialize weights from the first training batch, in the forward pass that trains."""

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

    The callback acts once, during the first training batch of a fresh run, without an extra batch or an extra pass
    through the network. It does nothing on resume, in a second fit of the same module, for a module made by
    :func:`~lcw_lightning.load_from_checkpoint`, and for an :class:`~lcw_lightning.ImageClassifier` that was loaded in
    any way. It cannot recognize other modules with loaded weights, so do not use it with them. Biases start at zero.
    Frozen weights do not change. Under DDP every rank uses the statistics of the union of all ranks' batches. A
    compiled network runs this one batch eagerly.

    Weights under ``wn`` and ``cwn`` are initialized as in Salimans & Kingma: each unit's gain and bias are set so that
    its preactivation has mean zero and ``target_std``. Weights under ``sn``, whose norm is always 1, and their layers'
    biases keep the values that they were drawn with.

    Args:
        target_std: Standard deviation of the preactivations over the minibatch.
        granularity: ``layer`` scales a layer by one factor, where the std includes the activation shift; ``unit``
            scales each unit by its own factor; ``wn`` and ``cwn`` always do the latter; ``none`` leaves all weights as
            they were drawn.

    Raises:
        ValueError: In the first batch, for a layer whose preactivation is constant or not finite, or whose
            parametrization cannot hold a rescaled weight, such as a user's spectral_norm.

    Warns:
        UserWarning: The first batch did not reach some layers, which keep their weights; or a LearningRateFinder would
            test learning rates on weights that are not initialized yet.
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
