"""Which network a report judges: its constraint, whether it was rescaled, its mode and its batch."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lcw_lightning.constraints.kinds import kind_of
from lcw_lightning.constraints.projection import is_projected
from lcw_lightning.weights.weight_ref import named_weights

__all__ = ["Judged", "judged"]


class Judged(NamedTuple):
    """The facts about a network that a verdict holds for.

    Example:
        >>> print(judged(nn.Sequential(nn.Linear(4, 2)), ([[0.0]], None)))
        1 of 1 weights unconstrained, in training mode
    """

    constraints: Mapping[str, int]
    """Number of weights by kind of constraint and method; those without one as ``unconstrained``."""
    training: bool
    """Whether the network was in training mode."""
    samples: int | None = None
    """In the batch; None if it is not known."""
    initialized: str | None = None
    """How the weights were initialized on the batch; None if the report does not know."""

    def __str__(self) -> str:
        weights = sum(self.constraints.values())
        parts = [f"{number} of {weights} weights {kind}" for kind, number in self.constraints.items()]
        parts += [self.initialized] if self.initialized else []
        parts.append(f"in {'training' if self.training else 'evaluation'} mode")
        return ", ".join(parts) + (
            "" if self.samples is None else f", on {self.samples} sample{'s' * (self.samples != 1)}"
        )


def judged(network: nn.Module, batch: Any, initialized: str | None = None) -> Judged:
    """Return the facts about a network and its batch."""
    constraints = Counter(
        "unconstrained" if (kind := kind_of(ref)) == "none" else f"under {kind}{' by project' * is_projected(ref)}"
        for ref in named_weights(network).values()
    )
    return Judged(dict(constraints), network.training, _num_samples(network, batch), initialized)


def _num_samples(network: nn.Module, batch: Any) -> int | None:
    if any(isinstance(module, nn.RNNBase) and not module.batch_first for module in network.modules()):
        return None  # the first axis may count steps
    first = next(_tensors(batch), None)
    return None if first is None else len(first)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor) and batch.dim():
        yield batch
    children = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    for child in children:
        yield from _tensors(child)
