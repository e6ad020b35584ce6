"""Fixed points of functions of a variance."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from scipy.optimize import brentq

__all__ = ["fixed_points"]

POINTS_PER_DECADE = 20
TOUCHING = 1e-9  # relative distance below which a function touches the diagonal


def fixed_points(
    function: Callable[[float], float], slope: Callable[[float], float], lowest: float, highest: float
) -> list[float]:
    """Return all q in [lowest, highest] with ``function(q) == q``, in ascending order, by brentq.

    Points at which the function only touches the diagonal are included: there ``function(q) - q`` has an extremum and
    is zero up to 1e-9 q. The difference is assumed to be monotone between its extrema and the points of a logarithmic
    grid with 20 points per decade.

    Args:
        function: A smooth function of a positive number.
        slope: Its derivative.
        lowest: Positive lower end of the range.
        highest: Upper end of the range.

    Raises:
        ValueError: If the function is the identity on a part of the range, or the range is empty.

    Example:
        >>> [round(q, 9) for q in fixed_points(lambda q: (1 + q * q) / 2, lambda q: q, 0.1, 10)]  # touches
        [1.0]
        >>> [round(q, 9) for q in fixed_points(lambda q: (2 + q * q) / 3, lambda q: 2 * q / 3, 0.1, 10)]  # crosses
        [1.0, 2.0]
    """
    if not 0 < lowest < highest:
        raise ValueError(f"Fixed points need a range 0 < lowest < highest, but {lowest} to {highest} was given.")

    def distance(q: float) -> float:
        return function(q) - q

    count = 1 + int(np.ceil(POINTS_PER_DECADE * np.log10(highest / lowest)))
    grid = [lowest, *np.geomspace(lowest, highest, count)[1:-1].tolist(), highest]
    distances = {q: distance(q) for q in grid}
    for left, right in pairwise(grid):
        if max(abs(distances[left]) / left, abs(distances[right]) / right) < TOUCHING:
            raise ValueError(f"Every q from {left:.4g} to {right:.4g} is a fixed point, so they cannot be listed.")
    for q in _crossings(grid, {q: slope(q) - 1 for q in grid}, lambda q: slope(q) - 1):
        # An extremum that touches counts once, as a fixed point, without crossings on both sides of it.
        distances[q] = 0.0 if abs(distance(q)) < TOUCHING * q else distance(q)
    return _crossings(sorted(distances), distances, distance)


def _crossings(points: list[float], values: dict[float, float], function: Callable[[float], float]) -> list[float]:
    """Return the zeros of the function: at points, and between neighbouring points where its signs differ."""
    zeros = [q for q in points if values[q] == 0]
    between = [(left, right) for left, right in pairwise(points) if values[left] * values[right] < 0]
    return sorted(zeros + [float(brentq(function, *ends, xtol=1e-300, rtol=1e-14)) for ends in between])
