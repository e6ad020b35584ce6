"""Initialize weights from the first training batch, in the forward pass that trains."""

from collections.abc import KeysView, Sequence
from contextlib import AbstractContextManager
from typing import Literal, get_args

from lightning.pytorch import LightningModule
from typing_extensions import override

from lcw_lightning.callbacks.first_batch import FirstBatchInit
from lcw_lightning.initialization.minibatch import BY_HAND, Granularity, new_outcome, rescale_on_first_forward
from lcw_lightning.initialization.outcome import Outcome
from lcw_lightning.initialization.ranks import Meet
from lcw_lightning.weights.settings import check_choice, check_patterns, check_positive

__all__ = ["MinibatchInitCallback"]


class MinibatchInitCallback(FirstBatchInit):
    """Rescale each layer on its first training input, so that preactivations have ``target_std`` (Section 4.3).

    The callback acts once, during the first training batch of a fresh run, without an extra batch or an extra pass
    through the network. It does nothing on resume, in a second fit of the same module, for a module made by
    :func:`~lcw_lightning.load_from_checkpoint`, and for an :class:`~lcw_lightning.ImageClassifier` that was loaded in
    any way. It cannot recognize other modules with loaded weights, so do not use it with them. Biases start at zero.
    Frozen weights do not change. Under DDP every rank uses the statistics of the union of all ranks' batches. A
    compiled network runs this one batch eagerly.

    Recurrent layers are rescaled gate by gate, attention by the projections of query, key and value and by its output,
    as :func:`~lcw_lightning.initialization.minibatch.rescale_on_first_forward` describes.

    Weights under ``wn`` and ``cwn`` get the gains and biases of Salimans & Kingma: each unit's preactivation has mean
    zero and ``target_std``. Weights under ``sn``, whose norm is always 1, and their layers'
    biases keep the values that they were drawn with. So do layers that cannot be rescaled, for the reasons that
    :func:`~lcw_lightning.minibatch_init_` lists. After the first batch one line says by which factors layers were
    rescaled, and which were left for which reasons.

    Args:
        target_std: Standard deviation of the preactivations over the minibatch.
        granularity: ``layer`` scales a layer by one factor, where the std includes the activation shift; ``unit``
            scales each unit by its own factor; ``wn`` and ``cwn`` always do the latter; ``none`` leaves all weights as
            they were drawn.
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names, of weights to leave as they are.
        recurrent_share: Share of the recurrent part in the variance of each gate of RNN, LSTM and GRU, between 0 and 1.

    Raises:
        ValueError: At construction, for an invalid setting, such as patterns that are no list. In the first batch, for
            a pattern that matches no weight, preactivations that are NaN or infinite, if no layer can be rescaled, or
            if no factors are found for a gate of a recurrent layer.
        RuntimeError: In the first batch, on all ranks, if they take different layers.

    Warns:
        UserWarning: The first batch did not reach some layers, which keep their weights; or a LearningRateFinder would
            test learning rates on weights that are not initialized yet.
    """

    by_hand = BY_HAND
    if_missed = "they keep the weights they had"

    def __init__(
        self,
        target_std: float = 1.0,
        granularity: Literal["none", "layer", "unit"] = "layer",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        recurrent_share: float = 0.5,
    ) -> None:
        check_positive("MinibatchInitCallback", "target_std", target_std)
        check_choice("MinibatchInitCallback", "granularity", granularity, ("none", *get_args(Granularity)))
        check_patterns("MinibatchInitCallback", include, exclude)
        super().__init__()
        self.target_std = target_std
        self.granularity = granularity
        self.include = include
        self.exclude = exclude
        self.recurrent_share = recurrent_share

    @property
    @override
    def is_active(self) -> bool:
        return self.granularity != "none"

    @override
    def new_outcome(self) -> Outcome:
        return new_outcome()

    @override
    def armed(self, module: LightningModule, outcome: Outcome, meet: Meet) -> AbstractContextManager[KeysView[str]]:
        assert self.granularity != "none"
        settings = self.target_std, self.granularity, self.include, self.exclude
        return rescale_on_first_forward(module, *settings, outcome, meet, self.recurrent_share)
