"""Compare the gradients of layers by what no rescaling moves."""

import math
from collections.abc import Mapping
from statistics import median

from lcw_lightning.observation.statistics import Statistic

__all__ = ["decades_over_depth", "gradient_flow"]


def gradient_flow(
    statistics: Mapping[str, Mapping[str, float]], gradient_values: Mapping[str, int]
) -> dict[str, float]:
    r"""Return :math:`\mathrm{rms}(z) \, \|\partial L / \partial z\|` of each layer that has both and is not zero.

    If a layer's weight is multiplied by c before a normalization, z grows by c and its gradient falls by c, while the
    network stays the same; so their product can be compared between layers. rms(z) is the root of the mean of
    :math:`z^2` over units, samples and positions, activation shift included; the norm is the root of the sum of
    squares, so that it does not depend on how many positions a convolution distributes its gradient over.

    Args:
        statistics: Of the layers that were called, in forward order.
        gradient_values: Number of values of dL/dz, by layer; 1 where it is not known.

    Example:
        >>> rows = {"a": {"preactivation_std": 2.0, "shift_ratio": 0.0, "gradient_std": 0.5}}
        >>> gradient_flow(rows, {"a": 4})
        {'a': 2.0}
    """
    flows = {}
    for layer, row in statistics.items():
        std, shift = row.get(Statistic.PREACTIVATION_STD, math.nan), row.get(Statistic.SHIFT_RATIO, 0.0)
        norm = row.get(Statistic.GRADIENT_STD, math.nan) * math.sqrt(gradient_values.get(layer, 1))
        flow = std * math.hypot(1, 0.0 if math.isnan(shift) else shift) * norm
        if flow > 0:
            flows[layer] = flow
    return flows


def decades_over_depth(values: Mapping[str, float], share: float = 0.1) -> float:
    """Return by how many decades a positive number of each layer grows from the first layers to the last.

    It is the logarithm to base 10 of the median over the last tenth of the layers, or another share, at least three,
    over that of the first tenth, since a single layer, such as a query or a head that starts small, says little. A
    decade is a factor of ten.

    Example:
        >>> decades_over_depth({str(layer): 10.0**layer for layer in range(20)})
        17.0
    """
    rows = list(values.values())
    ends = max(1, min(max(3, int(share * len(rows))), len(rows) // 2))
    return math.log10(median(rows[-ends:])) - math.log10(median(rows[:ends]))
