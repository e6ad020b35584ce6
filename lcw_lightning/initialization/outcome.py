"""What an initialization did to each layer: by which factor it was rescaled, or why it was left as it is."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lcw_lightning.weights.selection import by_reason, listed
from lcw_lightning.weights.ties import Places, tied_to_other_type
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["Outcome", "obstacle_to_initialization"]


@dataclass
class Outcome:
    """The record of an initialization, which it fills in as it goes.

    Example:
        >>> outcome = Outcome("minibatch initialization", "rescaled")
        >>> outcome.factors |= {"0.weight": (0.5, 0.5), "2.weight": (1.25, 1.25)}
        >>> outcome.left["4.weight"] = "zero weights"
        >>> outcome.summary
        "minibatch initialization: 2 of 3 layers rescaled by factors 0.5 to 1.2; left as they are: '4.weight' (zero
        weights)"
    """

    action: str
    done: str
    """The participle of what is done to a layer."""
    changed: set[str] = field(default_factory=set)
    """Layers that were changed without a factor."""
    factors: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The smallest and the largest factor of each layer that was rescaled."""
    left: dict[str, str] = field(default_factory=dict)
    """Why each of the other layers was left as it is."""
    partly: dict[str, str] = field(default_factory=dict)
    """Which units of a layer were left as they are."""
    copies: set[str] = field(default_factory=set)
    """Frozen layers that were changed as copies of trained ones."""
    refused: set[str] = field(default_factory=set)
    """Layers that were left for what the minibatch showed."""

    def add(self, name: str, factor: Tensor, varies: Tensor) -> None:
        """Record that a layer was rescaled, except for units that do not vary."""
        factors = factor[varies]
        self.factors[name] = factors.min().item(), factors.max().item()
        if num_left := int((~varies).sum()):
            self.partly[name] = f"{num_left} of {len(varies)} units, which do not vary"

    def repeat(self, name: str, copy: str) -> None:
        """Record of the copy of a layer what is recorded of the layer."""
        self.copies.add(copy)
        records: tuple[dict[str, Any], ...] = self.factors, self.left, self.partly
        for record in records:
            record.update({copy: record[name]} if name in record else {})

    def leave(self, name: str, reason: str) -> None:
        """Record why a layer was left, after a look at its minibatch."""
        self.left[name] = reason
        self.refused.add(name)

    @property
    def summary(self) -> str:
        """What was done, and what was left for what reasons, in one line."""
        done = self.changed | self.factors.keys()
        rest = {**self.left, **self.partly}
        left = f"; left as they are: {by_reason(rest)}" if rest else ""
        if copies := self.copies & done:
            left += (
                f"; frozen, but changed as copies of trained ones: {listed(sorted(copies))} (exclude leaves them alone)"
            )
        return (
            f"{self.action}: {len(done)} of {len(done) + len(self.left)} layers {self.done}{self._by_factors()}{left}"
        )

    def check(self) -> None:
        """Raise if none of the layers that the minibatch reached could be changed.

        Raises:
            ValueError: With the reasons.
        """
        if self.refused and not self.factors:
            raise ValueError(
                f"{self.action} needs a layer that can be {self.done}, but left are: {by_reason(self.left)}; look for "
                "constant inputs, dead units before a layer and weights that are zero."
            )

    def _by_factors(self) -> str:
        if not self.factors:
            return ""
        smallest = min(low for low, _ in self.factors.values())
        largest = max(high for _, high in self.factors.values())
        of = "" if not self.changed else f", {listed(self.factors)} rescaled"
        by = f"a factor of {smallest:.2g}" if smallest == largest else f"factors {smallest:.2g} to {largest:.2g}"
        return f"{of} by {by}"


def obstacle_to_initialization(ref: WeightRef, is_seen: bool, places: Places) -> str | None:
    """Return why an initialization does not change a weight; None if it may.

    Args:
        ref: The weight.
        is_seen: Whether the initialization sees the weight's preactivations.
        places: Of all parameters of the model. With an embedding's weight the inputs of earlier layers would change.
    """
    if not ref.parameters:
        return "no parameter; a hook computes it"
    if ref.is_complex:
        return "complex numbers"
    if not any(parameter.requires_grad for parameter in ref.parameters):
        return "frozen"
    if tied := tied_to_other_type(ref, places):
        return tied
    return None if is_seen else "hooks do not see its preactivations"
