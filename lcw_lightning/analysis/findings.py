"""What a report consists of: statistics, what is known of the layers, findings and advice."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["CONSTRAIN", "Condition", "Finding", "RESCALE", "Statistics"]


Statistics = Mapping[str, Mapping[str, float]]
"""Numbers by name, by layer in forward order."""


class Condition(NamedTuple):
    """What is known of the layers beside their statistics: names of layers, and numbers by name."""

    unreached: Sequence[str] = ()
    """Never called."""
    frozen: Sequence[str] = ()
    """No weight requires a gradient."""
    zero: Sequence[str] = ()
    """All weights are zero."""
    zero_sum: Sequence[str] = ()
    """Constrained to a zero sum."""
    input_values: Mapping[str, int] = {}
    """How many values each input channel had, over samples and positions."""
    gradient_values: Mapping[str, int] = {}
    """How many values dL/dz had, over channels, samples and positions."""


class Finding(NamedTuple):
    """One thing that is the matter, and what to try, the likeliest first."""

    says: str
    advice: tuple[str, ...] = ()


CONSTRAIN = "constrain the weights: constrain(network), or ConstraintCallback, or --constraint.kind=lcw"


RESCALE = (
    "rescale the weights on a minibatch: minibatch_init_(network, inputs), or MinibatchInitCallback (for sparse "
    "activations draw them at the edge of chaos: edge_of_chaos_init_(network, inputs), or EdgeOfChaosInitCallback)"
)
