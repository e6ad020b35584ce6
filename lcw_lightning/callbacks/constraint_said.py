"""Say what a constraint takes from weights that may have been trained."""

import warnings
from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lcw_lightning.constraints.kinds import PARAMETRIZATIONS
from lcw_lightning.constraints.trained import batches_seen, taken_by_projection
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["say_what_projection_takes"]


def say_what_projection_takes(module: nn.Module, weights: Mapping[str, WeightRef], kind: str) -> str:
    """Return what projection takes from plain weights, for the line that says what is constrained.

    Warns:
        UserWarning: The weights are not what zero-mean random initialization draws, or BatchNorm layers have seen
            batches: the constraint would change the function of trained weights.
    """
    constraint = PARAMETRIZATIONS[kind]
    changes_weights = constraint.sums_to_zero or constraint.has_fixed_norm
    if not changes_weights or not (taken := taken_by_projection(weights)):
        return ""
    batches = batches_seen(module.modules())
    evidence = (
        str(taken[0]) if taken[0].is_alarming else f"BatchNorm layers have seen {batches} batches" if batches else ""
    )
    if evidence:
        way_out = (
            "convert_(module, inputs) before fit keeps it on average."
            if constraint.sums_to_zero
            else f"kind {kind!r} divides each weight by its norm; list the weights that must not change in exclude."
        )
        _warn(f"{evidence}; if these weights were trained, the constraint changes their function: {way_out}")
    if not constraint.sums_to_zero:
        return ""
    most = max(taken, key=lambda each: each.share)
    return f"; projection takes at most {100 * most.share:.2g} % of a squared norm, that of {most.name!r}"


@rank_zero_only
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
