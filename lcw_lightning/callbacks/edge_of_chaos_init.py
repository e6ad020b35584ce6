"""Draw weights at the edge of chaos before the first training batch, and match the first layer to that batch."""

from collections.abc import KeysView, Sequence
from contextlib import AbstractContextManager
from typing import Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lcw_lightning.callbacks.first_batch import FirstBatchInit
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.initialization.edge_of_chaos import BY_HAND, draw_and_match_on_first_forward, new_drawing
from lcw_lightning.initialization.edge_of_chaos_plan import Draw
from lcw_lightning.initialization.outcome import Outcome
from lcw_lightning.initialization.ranks import Meet
from lcw_lightning.weights.settings import check_choice, check_patterns, check_positive

__all__ = ["EdgeOfChaosInitCallback"]


class EdgeOfChaosInitCallback(FirstBatchInit):
    """Draw all weights and biases anew at the edge of chaos of the network's activation (Price et al., ICLR 2024).

    The callback acts once, at the first training batch of a fresh run. Like
    :class:`~lcw_lightning.MinibatchInitCallback` it does nothing on resume and for loaded weights that it recognizes.
    As :func:`~lcw_lightning.edge_of_chaos_init_` does, it draws the weights of Linear layers and convolutions, the
    output layer included; under ``lcw`` and ``cwn`` they are zero-sum. The training forward pass itself matches the
    first layer to the batch, so no extra pass is needed. Frozen weights do not change. Under DDP all ranks get the
    weights of rank 0, matched to the union of their batches. A compiled network runs this one batch eagerly.

    The activation is taken from the network's activation modules, which must be alike. If the network applies it
    without a module, call ``edge_of_chaos_init_(module, inputs, activation=...)`` before fit, and leave this callback
    out.

    Args:
        weights: ``gaussian``; ``delta_orthogonal`` (Xiao et al. 2018), for Linear and plain convolutions with odd
            kernels; ``none`` leaves all weights as they were drawn.
        q: Variance of the preactivations, the fixed point of the variance map. For sparse activations give the q that
            they were made with.
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names, of weights to leave as they are.

    Raises:
        ValueError: At construction, for an invalid setting; at setup, if a MinibatchInitCallback is active too; in the
            first batch, in the cases of :func:`~lcw_lightning.edge_of_chaos_init_`.
        RuntimeError: In the first batch, on all ranks, if the first layer is not the same on all.

    Warns:
        UserWarning: None of the layers ran in the first batch, so none is matched to it; or a LearningRateFinder would
            test learning rates on weights that are not drawn yet.
    """

    draws = True
    by_hand = BY_HAND
    if_missed = "they are drawn, but not matched to the data"

    def __init__(
        self,
        weights: Literal["none", "gaussian", "delta_orthogonal"] = "gaussian",
        q: float = 1.0,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        check_choice("EdgeOfChaosInitCallback", "weights", weights, ("none", *get_args(Draw)))
        check_positive("EdgeOfChaosInitCallback", "q", q)
        check_patterns("EdgeOfChaosInitCallback", include, exclude)
        super().__init__()
        self.weights = weights
        self.q = q
        self.include = include
        self.exclude = exclude

    @property
    @override
    def is_active(self) -> bool:
        return self.weights != "none"

    @override
    def new_outcome(self) -> Outcome:
        return new_drawing()

    @override
    def armed(self, module: LightningModule, outcome: Outcome, meet: Meet) -> AbstractContextManager[KeysView[str]]:
        assert self.weights != "none"
        settings = self.q, self.weights, self.include, self.exclude
        return draw_and_match_on_first_forward(module, None, *settings, outcome, meet)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if self.is_active and any(isinstance(c, MinibatchInitCallback) and c.is_active for c in callbacks):
            raise ValueError(
                "EdgeOfChaosInitCallback draws the weights that MinibatchInitCallback would rescale: turn that off "
                "(--minibatch_init.granularity=none) or this callback (--edge_of_chaos_init.weights=none)."
            )
