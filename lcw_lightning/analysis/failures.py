"""What makes the rest of a verdict moot: numbers that are not finite, signals that are gone, layers left out."""

import math
from collections.abc import Iterator, Mapping, Sequence

from lcw_lightning.analysis.findings import RESCALE, Condition, Finding, Statistics
from lcw_lightning.observation.statistics import Statistic
from lcw_lightning.weights.selection import listed

__all__ = [
    "left_out",
    "no_gradient",
    "no_signal",
    "not_finite",
    "without_signal",
]


CONSTANT = 2e7  # a shift ratio beyond which the std is rounding
PRECISION = "compute in float32 or bfloat16, if it is float16"


def not_finite(statistics: Statistics, loss: float | None) -> Finding | None:
    """Say where numbers first cease to be finite, forward and then back; all else follows from that."""
    for number, (layer, row) in enumerate(statistics.items()):
        if finding := _not_finite_forward(layer, row, is_first=number == 0):
            return finding
    if loss is not None and not math.isfinite(loss):
        advice = "look for logarithms, divisions and exponentials between the last layer and the loss"
        return Finding(f"Not finite: the loss is {loss}, though all layers give finite numbers.", (advice, PRECISION))
    if lost := [layer for layer, row in statistics.items() if not math.isfinite(row.get(Statistic.GRADIENT_STD, 0.0))]:
        lost.reverse()
        advice = f"look for roots, norms, divisions and logarithms at zero between {lost[0]!r} and the loss"
        return Finding(f"Not finite: dL/dz of {listed(lost)}, though forward all is finite.", (advice, PRECISION))
    return None


def _not_finite_forward(layer: str, row: Mapping[str, float], is_first: bool) -> Finding | None:
    finite = {name: math.isfinite(number) for name, number in row.items()}
    if not finite.get(Statistic.INPUT_MEAN, True):
        if is_first:
            return Finding(f"Not finite: what enters {layer!r}.", ("look for NaN and infinity in the data",))
        advice = "look for exponentials, divisions, roots and logarithms there"
        return Finding(f"Not finite: what enters {layer!r}; an activation before it overflows.", (advice, PRECISION))
    if not finite.get(Statistic.CONSTRAINT_RESIDUAL, True):
        return Finding(f"Not finite: weights of {layer!r}.", ("go back to weights from before they diverged",))
    if not finite.get(Statistic.PREACTIVATION_STD, True):
        return Finding(f"Not finite: what leaves {layer!r}; its sums overflow.", (RESCALE, PRECISION))
    return None


def without_signal(statistics: Statistics, condition: Condition) -> list[str]:
    """Return the layers that give every sample the same, unless their weights are zero or a shift drowns the rest."""
    rows = {layer: row for layer, row in statistics.items() if layer not in condition.zero}
    same = [
        layer
        for layer, row in rows.items()
        if row.get(Statistic.PREACTIVATION_STD) == 0 or row.get(Statistic.SHIFT_RATIO, 0.0) > CONSTANT
    ]
    if len(same) == len(rows):
        return same
    single = [layer for layer in same if condition.input_values.get(layer) == 1]
    return [layer for layer in same if layer in single or math.isnan(rows[layer].get(Statistic.SHIFT_RATIO, math.nan))]


def no_signal(layers: Sequence[str], number: int) -> Iterator[Finding]:
    """Say which layers of this number give every sample the same."""
    if layers:
        yield Finding(
            f"No signal: what leaves {listed(layers)} is the same for every sample ({len(layers)} of {number} layers).",
            ("a batch of several different samples", "look for dead or saturated units, and for constant inputs"),
        )


def no_gradient(statistics: Statistics, condition: Condition) -> Iterator[Finding]:
    """Say where gradients are exactly zero."""
    none = [layer for layer, row in statistics.items() if row.get(Statistic.GRADIENT_STD) == 0]
    says = f"No gradient at all: dL/dz is exactly zero in {len(none)} of {len(statistics)} layers ({listed(none)})"
    if none and condition.zero:
        advice = "that is how zero-initialized layers start: look at a checkpoint of some steps later"
        yield Finding(f"{says}, because the weights of {listed(condition.zero)} are zero.", (advice,))
    elif none:
        yield Finding(f"{says}.", ("look for dead or saturated units, and for numbers too small to hold",))


def left_out(statistics: Statistics, condition: Condition) -> Iterator[Finding]:
    """Say which layers do not take part in training."""
    if condition.frozen:
        yield Finding(f"Frozen, no weight of theirs is trained: {listed(condition.frozen)}.")
    if condition.unreached:
        yield Finding(
            f"Never reached in this forward pass: {listed(condition.unreached)}.",
            (
                "call or remove what is never reached, for which DDP needs find_unused_parameters; a weight that is "
                "read without a call of its layer works, but cannot be watched",
            ),
        )
    lost = [
        layer
        for layer, row in statistics.items()
        if Statistic.GRADIENT_STD not in row and layer not in condition.frozen
    ]
    if any(Statistic.GRADIENT_STD in row for row in statistics.values()) and lost:
        yield Finding(
            f"The loss does not depend on {listed(lost)}: no gradient reaches them.",
            ("look for a detach(), an argmax, or an output that the loss leaves out",),
        )
