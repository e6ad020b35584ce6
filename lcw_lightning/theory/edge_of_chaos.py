r"""Initialization at the edge of chaos for activations of a chosen sparsity.

At the edge of chaos the size of signals and gradients does not change with depth: the variance map has a fixed point
:math:`V(q^*) = q^*`, and there :math:`\chi_1 = \sigma_w^2 E[\phi'^2] = 1` (Price et al., ICLR 2024, Section 2). So

.. math:: \sigma_w^2 = 1 / E[\phi'^2], \qquad \sigma_b^2 = q^* - \sigma_w^2 E[\phi^2].

With zero-sum weights :math:`E[\phi^2]` becomes :math:`\mathrm{Var}[\phi]`, which this project derived (see
:class:`~lcw_lightning.theory.variance_maps.VarianceMap`). Then :math:`\sigma_b^2 \ge 0` for every activation without
jumps, by Poincare's inequality :math:`\mathrm{Var}[\phi(\sqrt q Z)] \le q E[\phi'^2]`.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from lcw_lightning.theory.gaussian import Function, standard_deviation
from lcw_lightning.theory.integrated import Integrated, gaussian_moments
from lcw_lightning.theory.thresholded import Thresholded

__all__ = ["EdgeOfChaos", "EdgeOfChaosStds", "edge_of_chaos", "edge_of_chaos_stds", "threshold_and_clip"]

# In standard deviations: the narrowest clip of the search, its step, and a value that no preactivation reaches.
NARROWEST, STEP, HIGHEST = 1e-3, 0.1, 40.0
ROUNDING = 1e-9


class EdgeOfChaos(NamedTuple):
    """Threshold and clip of a sparse activation, and the standard deviations of the weights and biases for it."""

    tau: float
    clip: float
    sigma_w: float
    sigma_b: float


class EdgeOfChaosStds(NamedTuple):
    """Standard deviations: weights are drawn with ``sigma_w / sqrt(fan_in)``, biases with ``sigma_b``."""

    sigma_w: float
    sigma_b: float


class Family(Protocol):
    """The two properties that distinguish the four sparse activations."""

    @property
    def odd(self) -> bool: ...

    @property
    def clipped(self) -> bool: ...


def edge_of_chaos(
    activation: Family, sparsity: float, slope: float = 0.7, q: float = 1.0, zero_sum: bool = False
) -> EdgeOfChaos:
    r"""Return the threshold, clip and standard deviations that put a sparse activation at the edge of chaos.

    The sparsity is :math:`P(\phi(z) = 0)` at :math:`z \sim \mathcal{N}(0, q)`. It gives the threshold,
    :math:`\tau = \sqrt q \Phi^{-1}(s)` or, for odd activations, :math:`\sqrt q \Phi^{-1}((1 + s) / 2)`. The clip is the
    one at which the variance map has the given slope :math:`V'(q)` (Price et al., ICLR 2024, Section 3); if several
    clips have it, which happens at sparsities below one half, it is the largest. Scaling :math:`\sqrt q` by a factor
    scales tau, clip and sigma_b by it and does not change sigma_w.

    For an unclipped activation ``slope`` is not used, because its slope is fixed: 1, or less for a shifted ReLU with
    zero-sum weights, such as 0.779 at sparsity 0.7.

    Args:
        activation: A class of :mod:`lcw_lightning.activations`, or anything with its attributes ``odd``
            and ``clipped``.
        sparsity: Fraction of zeros, between 0 and 1.
        slope: Slope of the variance map at q, for clipped activations. Its distance to 1 is the rate at which
            other variances converge to q.
        q: Variance of the preactivations, the fixed point of the variance map.
        zero_sum: Whether weights sum to zero over the inputs of each unit; if so, the map of such weights is used.

    Raises:
        ValueError: If no clip has the slope, sigma_b would be imaginary (only below sparsity 0.5, without zero-sum
            weights), the sparsity is not between 0 and 1, or q is not positive and finite.

    Example:
        >>> from types import SimpleNamespace
        >>> edge = edge_of_chaos(SimpleNamespace(odd=False, clipped=True), sparsity=0.85)
        >>> [round(value, 4) for value in edge]
        [1.0364, 1.1704, 2.7083, 0.7716]
    """
    tau, clip = threshold_and_clip(activation, sparsity, slope, q, zero_sum)
    return EdgeOfChaos(tau, clip, *_stds(Thresholded(tau, clip, activation.odd), q, zero_sum))


def threshold_and_clip(
    activation: Family, sparsity: float, slope: float = 0.7, q: float = 1.0, zero_sum: bool = False
) -> tuple[float, float]:
    """Return the threshold and clip of :func:`edge_of_chaos`, which exist even where sigma_b would be imaginary.

    Raises:
        ValueError: If no clip has the slope, the sparsity is not between 0 and 1, or q is not positive and finite.

    Example:
        >>> from types import SimpleNamespace
        >>> threshold_and_clip(SimpleNamespace(odd=False, clipped=False), sparsity=0.5)
        (0.0, inf)
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"The sparsity is a fraction of zeros: it must lie between 0 and 1, but {sparsity} was given.")
    r = standard_deviation(q)
    threshold = float(ndtri((1 + sparsity) / 2 if activation.odd else sparsity))
    width = _width(threshold, activation.odd, slope, zero_sum) if activation.clipped else math.inf
    return threshold * r, width * r


def edge_of_chaos_stds(activation: Function, q: float = 1.0, zero_sum: bool = False) -> EdgeOfChaosStds:
    r"""Return the standard deviations that put any given activation at the edge of chaos.

    Args:
        activation: A function or module, elementwise and deterministic.
        q: Variance of the preactivations, the fixed point of the variance map.
        zero_sum: Whether weights sum to zero over the inputs of each unit.

    Raises:
        ValueError: If the activation has no slope, its mean square is too large for its slope at q (sigma_b would be
            imaginary), it cannot be integrated, or q is not positive and finite.

    Example:
        >>> import torch
        >>> edge_of_chaos_stds(torch.relu)
        EdgeOfChaosStds(sigma_w=1.414..., sigma_b=0.0)
        >>> edge_of_chaos_stds(torch.tanh)
        EdgeOfChaosStds(sigma_w=1.467..., sigma_b=0.388...)
    """
    return _stds(gaussian_moments(activation), q, zero_sum)


def _stds(phi: Thresholded | Integrated, q: float, zero_sum: bool) -> EdgeOfChaosStds:
    slope = phi.slope_mean_square(q)
    if not slope > 0:
        raise ValueError(f"The edge of chaos needs an activation with a slope, but {phi} has none at q = {q}.")
    size = phi.variance(q) if zero_sum else phi.mean_square(q)
    bias_variance = q - size / slope
    if bias_variance < -ROUNDING * q:
        raise ValueError(
            f"At q = {q} the edge of chaos of {phi} needs biases of variance {bias_variance:.3g}, below 0: take "
            "zero-sum weights in every layer (the variance is then negative only for some activations with a jump), "
            "another q, or another activation (a shifted ReLU needs a sparsity of at least 0.5)."
        )
    return EdgeOfChaosStds(1 / math.sqrt(slope), math.sqrt(max(bias_variance, 0.0)))


def _width(threshold: float, odd: bool, slope: float, zero_sum: bool) -> float:
    """Return the largest clip, in standard deviations, at which the variance map has the slope at its fixed point."""

    def slope_at(width: float) -> float:
        phi = Thresholded(threshold, width, odd)
        growth = phi.variance(1.0, 1) if zero_sum else phi.mean_square(1.0, 1)
        return growth / phi.slope_mean_square(1.0)

    lowest, highest = max(slope_at(NARROWEST), 0.0), slope_at(math.inf)
    if not lowest < slope < highest:
        raise ValueError(
            f"No clip gives the variance map the slope {slope} at its fixed point: at this sparsity it must be above "
            f"{lowest:.4f} and below {highest:.4f}, the slope without a clip{' and with zero-sum weights' * zero_sum}."
        )
    # Below sparsity one half the slope is not monotone in the width: the last crossing is wanted.
    widths = np.append(np.arange(NARROWEST, HIGHEST - threshold, STEP), HIGHEST - threshold)
    last = max(i for i, width in enumerate(widths) if slope_at(width) < slope)
    return float(brentq(lambda width: slope_at(width) - slope, widths[last], widths[last + 1], xtol=1e-15, rtol=1e-14))
