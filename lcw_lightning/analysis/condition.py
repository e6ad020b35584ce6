"""What is known of a network's layers beside their statistics."""

import math
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lcw_lightning.analysis.findings import Condition, Statistics
from lcw_lightning.constraints.kinds import is_zero_sum
from lcw_lightning.observation.observed_layers import ObservedLayer
from lcw_lightning.observation.snapshot import Snapshot
from lcw_lightning.observation.statistics import Statistic
from lcw_lightning.weights.plan import EXCLUDED, Plan
from lcw_lightning.weights.restoring import at_rest

__all__ = ["condition_of", "zero_gains"]

ZERO_SUM = 1e-3  # the sum of a unit's weights, divided by their norm, counts as zero below this


def condition_of(
    network: nn.Module, snapshot: Snapshot, statistics: Statistics, plan: Plan, reached: Collection[int]
) -> Condition:
    """Return what is known of the layers of a snapshot.

    The plan knows those that cannot be seen; ``reached`` are the ids of the parameters that the gradient has reached.
    """
    uncalled = [name for name in snapshot.layers if name not in statistics]
    read = [name for name in uncalled if any(id(p) in reached for p in snapshot.layers[name].layer.parameters())]
    return Condition(
        unreached=[name for name in uncalled if name not in read],
        read=read,
        frozen=[
            name
            for name, layer in snapshot.layers.items()
            if not any(parameter.requires_grad for ref in layer.weights.values() for parameter in ref.parameters)
        ],
        by_states=[name for name in snapshot.recurrences.read() if not statistics[name].get(Statistic.GRADIENT_STD)],
        zero=[name for name, facts in snapshot.facts.items() if not facts.norms.any()],
        zero_gains=list(zero_gains(network)),
        normalized=any("Norm" in kind.__name__ for module in network.modules() for kind in type(module).__mro__),
        sparse=any(hasattr(module, "thresholded") for module in network.modules()),
        zero_sum=[
            name
            for name, row in statistics.items()
            if row.get(Statistic.CONSTRAINT_RESIDUAL, 1.0) < ZERO_SUM or _sums_to_zero(snapshot.layers[name])
        ],
        input_values=snapshot.values_per_channel("input"),
        gradient_values=snapshot.num_values("preactivation_gradient"),
        gate_shift=_gate_shift(snapshot),
        **_coverage(plan),
    )


def zero_gains(network: nn.Module) -> Iterator[str]:
    """Yield the parameters with one number a channel, or one in all, that are all zero and no biases."""
    for name, parameter in network.named_parameters():
        if is_lazy(parameter) or parameter.is_meta or "bias" in name or not parameter.numel():
            continue
        is_gain = parameter.numel() == (parameter.shape[0] if parameter.dim() else 1)
        if is_gain and not parameter.any():
            yield name


def _gate_shift(snapshot: Snapshot) -> dict[str, float]:
    """Return the largest shift ratio among the gates of each recurrent layer; NaN if no gate varies."""
    ratios = {
        layer: [row[Statistic.SHIFT_RATIO] for row in gates.values()]
        for layer, gates in snapshot.recurrence().gates.items()
    }
    return {layer: max((one for one in found if one >= 0), default=math.nan) for layer, found in ratios.items()}


def _coverage(plan: Plan) -> dict[str, Any]:
    rows = [row for row in plan.rows if row.obstacle != EXCLUDED]
    unknown = {row.name: row.obstacle for row in rows if row.ref is None or row.ref.is_complex}
    unseen, total = sum(row.numbers for row in rows if row.name in unknown), sum(row.numbers for row in rows)
    return {"unknown": unknown, "seen_share": 1 - unseen / total if unseen else 1.0}


def _sums_to_zero(layer: ObservedLayer) -> bool:
    """Return whether all weights are under a zero-sum constraint, even if half precision rounds their sums.

    A weight with one number a unit cannot be.
    """
    with at_rest([layer.layer]):
        constrainable = [ref for ref in layer.weights.values() if ref.fan_in > 1]
    return bool(constrainable) and all(map(is_zero_sum, constrainable))
