"""The few numbers of a network that a person reads first."""

import math
from collections.abc import Iterable, Mapping
from statistics import median

from lcw_lightning.observation.gradient_flow import decades_over_depth, gradient_flow
from lcw_lightning.observation.statistics import Statistic

__all__ = ["summary"]


def summary(statistics: Mapping[str, Mapping[str, float]], gradient_values: Mapping[str, int]) -> dict[str, float]:
    """Return four numbers of a network by tag; NaN where no layer has what a number is made of.

    - ``shift/shift_ratio_median`` and ``shift/shift_ratio_max``: over the layers; 0 means no activation shift.
    - ``shift/gradient_decades``: by how many decades :func:`~lcw_lightning.observation.gradient_flow.gradient_flow`
      grows on its way back from the last layers to the first. Below 0 gradients vanish, above 0 they explode; layers
      whose gradient is exactly zero are left out.
    - ``shift/dead_units_max``: the largest fraction of dead units in the input of a layer, except for the first, whose
      input is the data.

    Args:
        statistics: Of the layers that were called, in forward order.
        gradient_values: Number of values of dL/dz, by layer.

    Example:
        >>> rows = {f"{n}": {"shift_ratio": n, "preactivation_std": 1.0, "gradient_std": 10.0**n} for n in range(6)}
        >>> summary(rows, {})["shift/shift_ratio_median"]
        2.5
    """
    flows = gradient_flow(statistics, gradient_values)
    shifts = _known(row.get(Statistic.SHIFT_RATIO) for row in statistics.values())
    dead = _known(row.get(Statistic.DEAD_UNITS) for row in list(statistics.values())[1:])
    return {
        "shift/shift_ratio_median": median(shifts) if shifts else math.nan,
        "shift/shift_ratio_max": max(shifts, default=math.nan),
        "shift/gradient_decades": -decades_over_depth(flows) if len(flows) > 1 else math.nan,
        "shift/dead_units_max": max(dead, default=math.nan),
    }


def _known(numbers: Iterable[float | None]) -> list[float]:
    return [number for number in numbers if number is not None and not math.isnan(number)]
