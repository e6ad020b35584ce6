"""The verdict on the gradients of recurrent layers over time, in plain words."""

import math
from collections.abc import Iterator, Mapping, Sequence

from lcw_lightning.analysis.findings import CONSTRAIN, Finding
from lcw_lightning.analysis.verdict import DECADES, LARGE_UNNORMALIZED
from lcw_lightning.observation.recurrences import Recurrence
from lcw_lightning.observation.statistics import Statistic
from lcw_lightning.weights.selection import listed

__all__ = ["decades_over_time", "findings_over_time", "norms_by_state", "sentence_over_time"]

NORM = "norm(dL/dh_t)"
SHARE = (
    "rescale the weights on a minibatch, with most of the variance from the state: minibatch_init_(network, inputs, "
    "recurrent_share=0.9), or MinibatchInitCallback"
)
SHORTER = "fewer steps"
GATED = "a gated cell (LSTM, GRU)"
MOST = 4  # states in one sentence


def norms_by_state(recurrence: Recurrence) -> dict[str, Sequence[float]]:
    """Return the norms of dL/dh_t at all steps by ``layer.state``, where there are several steps."""
    return {
        f"{layer}.{state}": norms
        for layer, states in recurrence.gradients.items()
        for state, norms in states.items()
        if len(norms) > 1
    }


def decades_over_time(norms: Sequence[float]) -> float:
    """Return by how many decades a gradient falls from the last step that it reaches back to the first step.

    It is infinite if the first step gets exactly zero, below 0 if the gradient grows, and NaN if it reaches no step or
    is not finite.

    Example:
        >>> decades_over_time([1e-5, 1e-3, 1e-1, 0.0]), decades_over_time([0.0, 1e-1]), decades_over_time([0.0])
        (4.0, inf, nan)
    """
    reached = [norm for norm in norms if norm > 0]
    if not reached or not all(map(math.isfinite, norms)):
        return math.nan
    return math.log10(reached[-1]) - math.log10(norms[0]) if norms[0] > 0 else math.inf


def sentence_over_time(recurrence: Recurrence) -> str:
    """Return by how much the gradient of each state changes over time, as a sentence; empty if there is none."""
    norms = norms_by_state(recurrence)
    decades = _decades(norms)
    parts = [f"{_changes(decades[name])} in {name!r} ({len(norms[name])} steps)" for name in list(decades)[:MOST]]
    more = f" and {len(decades) - MOST} more" if len(decades) > MOST else ""
    return f"from the last step back to the first {NORM} {', '.join(parts)}{more}" if parts else ""


def findings_over_time(recurrence: Recurrence, zero_sum: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield where gradients over time are lost, vanish or explode.

    Args:
        recurrence: What was seen.
        zero_sum: Layers whose weights already sum to zero, for which the constraint is not advised.

    Example:
        >>> seen = Recurrence(gradients={"rnn": {"h_l0": [1e-12, 1e-7, 1e-2]}})
        >>> next(findings_over_time(seen)).says
        "Gradients vanish over time: norm(dL/dh_t) falls by 10.0 decades from the last of 3 steps back to the ..."
    """
    norms = norms_by_state(recurrence)
    if unread := [name for name, steps in norms.items() if not any(steps)]:
        yield Finding(
            f"The loss does not depend on the states {listed(unread)}: no gradient gets there.",
            ("look for a state of another layer or direction, such as h_n[0] in place of h_n[-1]",),
        )
    decades = _decades(norms)
    vanish = sorted((name for name in decades if decades[name] > DECADES), key=decades.__getitem__, reverse=True)
    explode = sorted((name for name in decades if decades[name] < -DECADES), key=decades.__getitem__)
    shifted = [layer for layer in _shifted(recurrence) if layer in {name.rpartition(".")[0] for name in vanish}]
    constrain = (CONSTRAIN,) if set(shifted) - set(zero_sum) else ()
    gated = () if any(len(gates) > 1 for gates in recurrence.gates.values()) else (GATED,)
    for does, names, advice in (
        ("vanish", vanish, (*constrain, SHARE, *gated, SHORTER)),
        ("explode", explode, (SHARE, "gradient clipping, a smaller learning rate, or fewer steps")),
    ):
        if names:
            worst, others = names[0], names[1:]
            yield Finding(
                f"Gradients {does} over time: {NORM} {_changes(decades[worst])} from the last of {len(norms[worst])} "
                f"steps back to the first in {worst!r}"
                + (f", and by more than {DECADES:g} in {listed(others)}." if others else "."),
                advice,
            )


def _decades(norms: Mapping[str, Sequence[float]]) -> dict[str, float]:
    found = {name: decades_over_time(steps) for name, steps in norms.items()}
    return {name: decades for name, decades in found.items() if not math.isnan(decades)}


def _shifted(recurrence: Recurrence) -> list[str]:
    return [
        layer
        for layer, gates in recurrence.gates.items()
        if any(row[Statistic.SHIFT_RATIO] > LARGE_UNNORMALIZED for row in gates.values())
    ]


def _changes(decades: float) -> str:
    if math.isinf(decades):
        return "falls to exactly zero"
    return f"{'falls' if decades >= 0 else 'grows'} by {abs(decades):.1f} decades"
