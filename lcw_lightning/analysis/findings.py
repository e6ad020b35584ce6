"""The parts of a report: statistics, the condition of the layers, findings, and advice that several findings give."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["CONSTRAIN", "Condition", "Finding", "RESCALE", "Statistics"]

Statistics = Mapping[str, Mapping[str, float]]
"""The value of each statistic by name, by layer in forward order."""


class Condition(NamedTuple):
    """What is known of the layers beside their statistics: names of layers, and numbers by layer."""

    unreached: Sequence[str] = ()
    """Layers that were never called."""
    read: Sequence[str] = ()
    """Layers that were not called, but whose weights were read: a gradient has reached them."""
    frozen: Sequence[str] = ()
    """Layers none of whose weights requires a gradient."""
    by_states: Sequence[str] = ()
    """Recurrent layers of which the loss reads last states alone, so that no gradient reaches their output z."""
    zero: Sequence[str] = ()
    """Layers whose weights are all zero."""
    zero_gains: Sequence[str] = ()
    """Gains of norms and of residual branches that are all zero."""
    normalized: bool = False
    """Whether the network has a layer of normalization."""
    sparse: bool = False
    """Whether the activations are meant to be zero for most inputs: those of ``lcw_lightning.activations``."""
    zero_sum: Sequence[str] = ()
    """Layers whose weights sum to zero in every unit."""
    input_values: Mapping[str, int] = {}
    """Number of values per input channel, over samples and positions."""
    gradient_values: Mapping[str, int] = {}
    """Number of values of dL/dz, over channels, samples and positions."""
    gate_shift: Mapping[str, float] = {}
    """The largest shift ratio among the gates of a recurrent layer, by layer; its own one is that of its states."""
    unknown: Mapping[str, str] = MappingProxyType({})
    """Why matrices are not seen, by name, such as those in layers of unknown type."""
    seen_share: float = 1.0
    """Part of the numbers in the chosen matrices that layers of known type hold."""


class Finding(NamedTuple):
    """One thing that is the matter, and what to try, the most promising first."""

    says: str
    advice: tuple[str, ...] = ()


CONSTRAIN = "constrain the weights: constrain(network), or ConstraintCallback, or --constraint.kind=lcw"
RESCALE = (
    "rescale the weights on a minibatch: minibatch_init_(network, inputs), or MinibatchInitCallback (for sparse "
    "activations draw them at the edge of chaos: edge_of_chaos_init_(network, inputs), or EdgeOfChaosInitCallback)"
)
