r"""How much of a weight's squared norm the projection onto zero sums takes, and how much of random weights it takes.

With :math:`w_i` the weight vector of unit i, of fan_in m, the share that is taken from n units is

.. math:: s = \sum_i \frac{(\sum_j w_{ij})^2}{m} \Big/ \sum_{ij} w_{ij}^2.

For zero-mean random weights :math:`(\sum_j w_{ij})^2 / (m \sigma^2)` is chi-square with one degree of freedom, so that
:math:`n m s` is chi-square with n degrees, whose mean is n. Trained weights have no reason to stay near it.
"""

from functools import cache

import torch
from scipy.stats import chi2
from torch import Tensor

__all__ = ["projected_share", "random_share_limit"]


@torch.no_grad()
def projected_share(units: Tensor) -> float:
    """Return the part of a weight's squared norm that lies outside the zero-sum subspace; 0 for a zero weight.

    Args:
        units: The weight with one row per unit, shape ``(units, fan_in)``.

    Example:
        >>> projected_share(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        0.5
    """
    rows = units.detach().double()
    norm = rows.square().sum().item()
    return rows.sum(1).square().sum().item() / rows.shape[1] / norm if norm else 0.0


@cache
def random_share_limit(num_units: int, fan_in: int, level: float = 1e-6) -> float:
    """Return the share above which zero-mean random weights come with probability ``level`` (chi-square quantile).

    Example:
        >>> print(f"{random_share_limit(num_units=256, fan_in=256) * 256:.2f} times the mean")
        1.48 times the mean
    """
    return float(chi2.isf(level, num_units)) / (num_units * fan_in)
