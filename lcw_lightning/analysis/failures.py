"""Findings before which all others matter little: numbers not finite, signals lost, layers that are not trained."""

import math
from collections.abc import Iterator, Mapping, Sequence

from lcw_lightning.analysis.findings import RESCALE, Condition, Finding, Statistics
from lcw_lightning.observation.statistics import Statistic
from lcw_lightning.weights.selection import by_reason, listed

__all__ = ["left_out", "no_gradient", "no_signal", "not_finite", "without_signal"]

CONSTANT = 2e7  # shift ratio above which the std is only rounding error
MOST = 0.99  # of the numbers in matrices; position embeddings are fewer
LATER = "branches that are initialized to zero start like this: analyze a checkpoint from some steps later"
PRECISION = "compute in float32 or bfloat16, if it is float16"


def not_finite(statistics: Statistics, loss: float | None) -> Finding | None:
    """Return where numbers first cease to be finite, in the forward pass or else in the backward pass."""
    for number, (layer, row) in enumerate(statistics.items()):
        if finding := _not_finite_forward(layer, row, is_first=number == 0):
            return finding
    if loss is not None and not math.isfinite(loss):
        advice = "look for logarithms, divisions and exponentials between the last layer and the loss"
        says = f"Not finite: the loss is {loss}, although the outputs of all layers are finite."
        return Finding(says, (advice, PRECISION))
    if lost := [layer for layer, row in statistics.items() if not math.isfinite(row.get(Statistic.GRADIENT_STD, 0.0))]:
        lost.reverse()
        advice = f"look for roots, norms, divisions and logarithms at zero between {lost[0]!r} and the loss"
        says = f"Not finite: dL/dz of {listed(lost)}, although the forward pass is finite."
        return Finding(says, (advice, PRECISION))
    return None


def _not_finite_forward(layer: str, row: Mapping[str, float], is_first: bool) -> Finding | None:
    finite = {name: math.isfinite(number) for name, number in row.items()}
    if not finite.get(Statistic.INPUT_MEAN, True):
        if is_first:
            return Finding(f"Not finite: the input of {layer!r}.", ("look for NaN and infinity in the data",))
        advice = "look for exponentials, divisions, roots and logarithms there"
        return Finding(f"Not finite: the input of {layer!r}; an activation before it overflows.", (advice, PRECISION))
    if not finite.get(Statistic.CONSTRAINT_RESIDUAL, True):
        return Finding(f"Not finite: the weights of {layer!r}.", ("go back to weights from before they diverged",))
    if not finite.get(Statistic.PREACTIVATION_STD, True):
        return Finding(f"Not finite: the output of {layer!r}; its sums overflow.", (RESCALE, PRECISION))
    return None


def without_signal(statistics: Statistics, condition: Condition) -> list[str]:
    """Return the layers whose output is identical for all samples.

    Layers with zero weights are left out. So are layers whose variation is lost in rounding beside a large activation
    shift, unless that holds for all layers, the layer has seen only one value, or the input of the first layer is
    constant, so that only the steps of a recurrent layer differ. Behind a layer without a signal there is none.
    """
    rows = {layer: row for layer, row in statistics.items() if layer not in condition.zero}
    same = [
        layer
        for layer, row in rows.items()
        if row.get(Statistic.PREACTIVATION_STD) == 0 or row.get(Statistic.SHIFT_RATIO, 0.0) > CONSTANT
    ]
    if len(same) == len(rows) or _has_constant_input(next(iter(rows.values()), {})):
        return same
    single = [layer for layer in same if condition.input_values.get(layer) == 1]
    dead = [layer for layer in same if math.isnan(rows[layer].get(Statistic.SHIFT_RATIO, math.nan))]
    behind = list(rows)[list(rows).index(dead[0]) :] if dead else []
    return [layer for layer in same if layer in {*single, *dead, *behind}]


def _has_constant_input(row: Mapping[str, float]) -> bool:
    return math.isinf(row.get(Statistic.AMPLIFICATION_FORWARD, 1.0))


def no_signal(layers: Sequence[str], number: int, condition: Condition) -> Iterator[Finding]:
    """Report the layers whose output is identical for all samples, out of ``number`` layers."""
    if layers:
        says = f"No signal: the output of {listed(layers)} is identical for all samples"
        if condition.zero_gains:
            yield Finding(f"{says} ({len(layers)} of {number} layers), because {_zeros(condition)} are zero.", (LATER,))
            return
        others = ("a batch of several different samples",) if len(layers) == number else ()
        advice = (*others, "look for dead or saturated units, and for constant inputs")
        yield Finding(f"{says} ({len(layers)} of {number} layers).", advice)


def no_gradient(statistics: Statistics, number: str, condition: Condition) -> Iterator[Finding]:
    """Report where gradients are exactly zero, out of a ``number`` of layers in words."""
    rows = {layer: row for layer, row in statistics.items() if layer not in condition.by_states}
    none = [layer for layer, row in rows.items() if row.get(Statistic.GRADIENT_STD) == 0]
    says = f"No gradient at all: dL/dz is exactly zero in {len(none)} of {number} ({listed(none)})"
    if none and (condition.zero or condition.zero_gains):
        yield Finding(f"{says}, because {_zeros(condition)} are zero.", (LATER,))
    elif none:
        yield Finding(f"{says}.", ("look for dead or saturated units, and for numbers that underflow",))


def left_out(statistics: Statistics, condition: Condition) -> Iterator[Finding]:
    """Report the layers that do not take part in training."""
    if condition.frozen:
        yield Finding(f"Frozen (no weight is trained): {listed(condition.frozen)}.")
    if condition.unreached:
        yield Finding(
            f"Never reached in this forward pass: {listed(condition.unreached)}.",
            ("call these layers or remove them; DDP needs find_unused_parameters for them",),
        )
    if condition.read:
        yield Finding(
            f"Trained but not watched, since their weights are read without a call: {listed(condition.read)}."
        )
    if condition.seen_share < MOST:
        yield Finding(
            f"Only {100 * condition.seen_share:.3g} % of the numbers in the network's matrices are seen, not those of "
            f"{by_reason(condition.unknown)}."
        )
    reached = [layer for layer, row in statistics.items() if Statistic.GRADIENT_STD in row]
    known = {*reached, *condition.frozen, *condition.by_states}
    lost = [layer for layer in statistics if layer not in known]
    if reached and lost:
        yield Finding(
            f"The loss does not depend on {listed(lost)}: no gradient gets there.",
            ("look for a detach(), an argmax, or an output that the loss leaves out",),
        )


def _zeros(condition: Condition) -> str:
    gains = f"the gains {listed(condition.zero_gains)}" if condition.zero_gains else ""
    weights = f"the weights of {listed(condition.zero)}" if condition.zero else ""
    return " and ".join(filter(None, (gains, weights)))
