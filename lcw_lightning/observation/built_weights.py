"""Weights as a forward pass has built them by their parametrizations, so that nobody need build them again."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["built_weights"]


@contextmanager
def built_weights(refs: Iterable[WeightRef]) -> Iterator[dict[WeightRef, Tensor]]:
    """Yield a dict that receives, within the block, each parametrized weight that a graph holds, whenever it is built.

    They are detached.

    Example:
        >>> import torch
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))
        >>> ref = WeightRef(layer, "weight")
        >>> with built_weights([ref]) as built:
        ...     _ = layer(torch.ones(5, 2))
        >>> torch.equal(built[ref], layer.weight)
        True
    """
    built: dict[WeightRef, Tensor] = {}

    def keep(ref: WeightRef) -> Any:
        def hook(_: nn.Module, __: Any, weight: Tensor) -> None:
            # Who rescales a weight within a graph computes it again; elsewhere it may be rescaled after it was read.
            if weight.requires_grad:
                built[ref] = weight.detach()
            else:
                built.pop(ref, None)

        return hook

    with ExitStack() as hooks:
        for ref in refs:
            if is_parametrized(ref.layer, ref.name):
                held: Any = ref.layer.parametrizations
                hooks.enter_context(held[ref.name].register_forward_hook(keep(ref)))
        yield built
