"""Solve a small system of equations by Anderson's acceleration of the fixed-point iteration."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["find_root"]

MEMORY = 12
MOST_STEPS = 100


def find_root(
    residual: Callable[[Tensor], Tensor], start: Tensor, tolerance: float | Tensor, most_steps: int = MOST_STEPS
) -> Tensor | None:
    """Return x with all ``abs(residual(x)) <= tolerance``, or None if it is not found in ``most_steps``.

    The plain iteration ``x - residual(x)`` need not converge; this one fits the last steps by least squares (Anderson,
    1965).

    Args:
        residual: A function of vectors, float64.
        start: Where to start.
        tolerance: Of each number, or of all.
        most_steps: After which it gives up.

    Example:
        >>> x = find_root(lambda x: 4 * x - torch.cos(x), torch.zeros(3, dtype=torch.float64), 1e-12)
        >>> bool((4 * x - torch.cos(x)).abs().max() <= 1e-12)
        True
    """
    memory = min(MEMORY, len(start))
    points, values = [start], [residual(start)]
    for _ in range(most_steps):
        x, f = points[-1], values[-1]
        if (f.abs() <= tolerance).all():
            return x
        step = f
        if len(points) > 1:
            moves, changes = torch.stack(points).diff(dim=0).T, torch.stack(values).diff(dim=0).T
            weights = torch.linalg.pinv(changes) @ f
            x, step = x - moves @ weights, f - changes @ weights
        points = [*points[-memory:], x - step / 2]
        values = [*values[-memory:], residual(points[-1])]
    return None
