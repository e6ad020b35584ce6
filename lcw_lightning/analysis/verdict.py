"""The verdict on a network's statistics, in plain words, and what to try."""

import math
from collections.abc import Iterator, Mapping

from lcw_lightning.analysis.failures import left_out, no_gradient, no_signal, not_finite, without_signal
from lcw_lightning.analysis.findings import CONSTRAIN, RESCALE, Condition, Finding, Statistics
from lcw_lightning.observation.gradient_flow import decades_over_depth, gradient_flow
from lcw_lightning.observation.statistics import Statistic
from lcw_lightning.weights.selection import listed

__all__ = ["Condition", "Finding", "findings"]

DECADES = 2.5  # change over the whole depth beyond which a signal vanishes or explodes
LARGE_SHIFT = 2.0  # the shift ratio of healthy ReLU layers is near 0.7
LARGE_UNNORMALIZED = 1.25  # in a network without normalization, where shift goes on from layer to layer
MANY_DEAD = 0.1  # over all layers; in a squeeze-and-excitation of a few units more may be zero by chance
NEARLY_ALL = 0.9  # in one layer
FEW_VALUES = 16  # with fewer values per unit none is called dead

FLOW = "rms(z) x norm(dL/dz)"
RESIDUAL = "residual connections, normalization, or an activation that saturates less"


def findings(
    statistics: Statistics,
    condition: Condition = Condition(),  # noqa: B008 (immutable)
    loss: float | None = None,
) -> list[Finding]:
    """Return what is the matter with a network, most severe first; an empty list if all is well.

    Gradients are compared between layers by :func:`~lcw_lightning.observation.gradient_flow.gradient_flow`, which no
    rescaling moves.

    Args:
        statistics: Of the layers that were called, in forward order, as
            :func:`~lcw_lightning.observation.statistics.network_statistics` returns them.
        condition: What is known of the layers beside their statistics.
        loss: Of the batch.

    Example:
        >>> vanishing = {f"{n}": {"preactivation_std": 1.0, "gradient_std": 10.0 ** (n - 9)} for n in range(10)}
        >>> findings(vanishing)[0].says
        "Gradients vanish: rms(z) x norm(dL/dz) falls by 7.0 decades from the last layers back to the first; it is ..."
    """
    if broken := not_finite(statistics, loss):
        return [broken, *left_out(statistics, condition)]
    constant = without_signal(statistics, condition)
    varying = {layer: row for layer, row in statistics.items() if layer not in constant}
    number = f"{len(varying)} layers" + (" with a signal" if constant else "")
    return [
        *no_signal(constant, len(statistics), condition),
        *no_gradient(varying, number, condition),
        *_gradient(varying, condition),
        *_forward(varying, condition),
        *_shift(varying, number, condition),
        *_dead(statistics, condition),
        *left_out(statistics, condition),
    ]


def _gradient(statistics: Statistics, condition: Condition) -> Iterator[Finding]:
    flows = gradient_flow(statistics, condition.gradient_values)
    if len(flows) < 2:
        return
    decades, between_halves = -decades_over_depth(flows), -decades_over_depth(flows, 1 / 2)
    # Queries have small gradients, and so has all behind a head that starts small. Depth moves the layers between, too.
    if decades < -DECADES and between_halves < -DECADES / 2:
        low = min(flows, key=flows.__getitem__)
        yield Finding(
            f"Gradients vanish: {FLOW} falls by {-decades:.1f} decades from the last layers back to the first; it is "
            f"smallest in {low!r}.",
            (*_constrain(statistics, condition), *_rescale(statistics), RESIDUAL),
        )
    if decades > DECADES and between_halves > DECADES / 2:
        high = max(flows, key=flows.__getitem__)
        yield Finding(
            f"Gradients explode: {FLOW} grows by {decades:.1f} decades from the last layers back to the first; it is "
            f"largest in {high!r}.",
            (*_rescale(statistics), "a smaller learning rate, gradient clipping, normalization"),
        )


def _forward(statistics: Statistics, condition: Condition) -> Iterator[Finding]:
    stds = _column(statistics, Statistic.PREACTIVATION_STD, above=0.0)
    if len(stds) < 2:
        return
    decades = decades_over_depth(stds)
    if abs(decades) > DECADES:
        does = "explode: their std grows" if decades > 0 else "vanish: their std falls"
        yield Finding(
            f"Preactivations {does} by {abs(decades):.1f} decades from the first layers to the last.",
            (*_constrain(statistics, condition), *_rescale(statistics)),
        )


def _shift(statistics: Statistics, number: str, condition: Condition) -> Iterator[Finding]:
    large = LARGE_SHIFT if condition.normalized else LARGE_UNNORMALIZED
    ratios = _shift_ratios(statistics, condition, above=large)
    worst = sorted(ratios, key=ratios.__getitem__, reverse=True)
    # Squeeze-and-excitation and attention average over positions: their inputs hardly vary in healthy networks too.
    is_common = len(worst) > len(statistics) / 2
    if is_common and not condition.sparse:  # sparse activations have the mean that they were made with
        normalize = "normalize each input feature, or normalize batches before the activation"
        yield Finding(
            f"Activation shift in {len(worst)} of {number}: the means of the preactivations are up to "
            f"{ratios[worst[0]]:.3g} times their std, more than {large:g} times in {listed(worst)}; batch "
            "normalization directly behind a layer removes it.",
            _constrain(statistics, condition) or (normalize,),
        )


def _dead(statistics: Statistics, condition: Condition) -> Iterator[Finding]:
    hidden = list(statistics)[1:]  # zeros in the input of the first layer are data, not dead units
    if condition.zero_gains:  # behind them units are zero until their branch takes part
        hidden = [layer for layer in hidden if statistics[layer].get(Statistic.GRADIENT_STD) != 0]
    dead = {
        layer: statistics[layer].get(Statistic.DEAD_UNITS, 0.0)
        for layer in hidden
        if not condition.sparse and _many_dead(statistics[layer], condition.input_values.get(layer, math.inf))
    }
    shares = [row.get(Statistic.DEAD_UNITS, 0.0) for row in map(statistics.__getitem__, hidden)]
    if dead and (max(dead.values()) >= NEARLY_ALL or sum(shares) / len(hidden) > MANY_DEAD):
        worst = max(dead, key=dead.__getitem__)
        yield Finding(
            f"Dead units: {dead[worst]:.0%} of the inputs of {worst!r} are zero on the whole batch, more than "
            f"{MANY_DEAD:.0%} in {listed(dead)}.",
            ("a larger batch, to confirm it", "a smaller learning rate, or an activation with a slope below zero"),
        )


def _many_dead(row: Mapping[str, float], values: float) -> bool:
    dead = row.get(Statistic.DEAD_UNITS, 0.0)
    if values < FEW_VALUES or dead <= MANY_DEAD:
        return False
    # On a small batch a living unit may be zero for every sample by chance, by its activation or by dropout.
    sparsity_of_living = (row[Statistic.SPARSITY] - dead) / (1 - dead) if dead < 1 else 0.0
    return dead - math.pow(sparsity_of_living, values) > MANY_DEAD


def _constrain(statistics: Statistics, condition: Condition) -> tuple[str, ...]:
    shifted = _shift_ratios(statistics, condition, above=LARGE_SHIFT)
    return (CONSTRAIN,) if shifted.keys() - set(condition.zero_sum) else ()


def _rescale(statistics: Statistics) -> tuple[str, ...]:
    """Advise rescaling unless all layers already have the scale that it sets, activation shift included."""
    rows = [row for row in statistics.values() if Statistic.PREACTIVATION_STD in row]
    scales = [row[Statistic.PREACTIVATION_STD] * math.hypot(1, row.get(Statistic.SHIFT_RATIO, 0.0)) for row in rows]
    return () if all(0.5 < scale < 2 for scale in scales) and scales else (RESCALE,)


def _shift_ratios(statistics: Statistics, condition: Condition, above: float) -> dict[str, float]:
    """Return large shift ratios of preactivations: of a recurrent layer's gates, where these are seen."""
    rows: dict[str, Mapping[str, float]] = dict(statistics)
    rows |= {layer: {Statistic.SHIFT_RATIO: ratio} for layer, ratio in condition.gate_shift.items() if layer in rows}
    return _column(rows, Statistic.SHIFT_RATIO, above)


def _column(statistics: Statistics, of: Statistic, above: float) -> dict[str, float]:
    return {layer: row[of] for layer, row in statistics.items() if row.get(of, math.nan) > above}
