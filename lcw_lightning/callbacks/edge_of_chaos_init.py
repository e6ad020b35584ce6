"""Draw weights at the edge of chaos before the first training batch, which the first layer is matched to."""

from collections.abc import KeysView
from contextlib import AbstractContextManager
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lcw_lightning.callbacks.first_batch import FirstBatchInit
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.initialization.edge_of_chaos import draw_and_match_on_first_forward

__all__ = ["EdgeOfChaosInitCallback"]


class EdgeOfChaosInitCallback(FirstBatchInit):
    """Draw all weights and biases anew at the edge of chaos of the network's activation (Price et al., ICLR 2024).

    Happens once, at the first training batch of a fresh run, where :class:`~lcw_lightning.MinibatchInitCallback` would
    rescale weights: not on resume, nor for weights that were loaded in the ways which that one knows of. What is drawn
    is what :func:`~lcw_lightning.edge_of_chaos_init_` draws: Linear and convolutions, the output layer included,
    under ``lcw`` and ``cwn`` with zero-sum weights. The first layer is matched to the batch in the very forward that
    trains, with no extra pass. Frozen weights are left alone. Under DDP all ranks get the weights of rank 0, matched to
    the union of their batches. A compiled network runs that one batch eagerly.

    The activation is that of the network's activation modules, which must be alike. Where it is applied in another way,
    call ``edge_of_chaos_init_(module, inputs, activation=...)`` before fit, and leave this callback out.

    Args:
        weights: ``gaussian``; ``delta_orthogonal`` (Xiao et al. 2018), for Linear and plain convolutions with odd
            kernels; ``none`` leaves all weights as they were drawn.
        q: Variance of the preactivations, the fixed point of the variance map: that for which sparse activations were
            made.

    Raises:
        ValueError: At setup, beside a MinibatchInitCallback that is on; in the first batch, whatever
            :func:`~lcw_lightning.edge_of_chaos_init_` raises.

    Warns:
        UserWarning: None of the layers ran in the first batch, so none is matched to it; a LearningRateFinder tries its
            rates on weights that are not drawn yet.
    """

    by_hand = "draw them with edge_of_chaos_init_(module, inputs)"
    if_missed = "they are drawn, but not matched to the data"

    def __init__(self, weights: Literal["none", "gaussian", "delta_orthogonal"] = "gaussian", q: float = 1.0) -> None:
        super().__init__()
        self.weights = weights
        self.q = q

    @property
    @override
    def is_active(self) -> bool:
        return self.weights != "none"

    @override
    def armed(self, module: LightningModule) -> AbstractContextManager[KeysView[str]]:
        assert self.weights != "none"
        return draw_and_match_on_first_forward(module, q=self.q, weights=self.weights)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if self.is_active and any(isinstance(c, MinibatchInitCallback) and c.is_active for c in callbacks):
            raise ValueError(
                "EdgeOfChaosInitCallback draws the weights that MinibatchInitCallback would rescale: turn that one off "
                "(--minibatch_init.granularity=none), or this one (--edge_of_chaos_init.weights=none)."
            )
