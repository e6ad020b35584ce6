r"""How much activations and layers amplify variance, forward and backward.

The paper (Kutsuna, Section 4.2) takes a preactivation :math:`z \sim \mathcal{N}(0, \sigma^2)`, an activation
:math:`a = f(z)` and a gradient :math:`\nabla_a` of mean zero, independent of z, so that
:math:`\nabla_z = f'(z) \nabla_a`. Both amplifications are then expectations over a Gaussian:

.. math:: \phi_{fw} = \frac{V(a)}{V(z)} = \frac{V(f(z))}{\sigma^2}, \qquad
          \phi_{bw} = \frac{V(\nabla_z)}{V(\nabla_a)} = E[f'(z)^2].

:class:`VarianceMap` includes the weights and biases of a wide layer.

An activation is any callable that maps each element of a tensor independently. It is called with float64 tensors on
the CPU. A module is copied first, and keeps its mode (train or eval). The slope :math:`f'` is computed by autograd.
"""

import math
from dataclasses import dataclass

from lcw_lightning.theory.correlation import mean_product
from lcw_lightning.theory.fixed_points import fixed_points
from lcw_lightning.theory.gaussian import Function, elementwise, standard_deviation
from lcw_lightning.theory.integrated import gaussian_moments

__all__ = ["VarianceMap", "phi_bw", "phi_fw", "std_ratio_bw", "std_ratio_fw"]


def phi_fw(activation: Function, sigma: float) -> float:
    r"""Return :math:`\phi_{fw} = V(f(z)) / V(z)` for :math:`z \sim \mathcal{N}(0, \sigma^2)` (paper, Section 4.2).

    For ReLU this is :math:`(1 - 1/\pi) / 2` at every sigma (Proposition 6); other activations are integrated.

    For the sigmoid at sigma = 0.5, 1, 2 the paper prints :math:`(\phi_{fw}, \phi_{bw})` = (0.236, 0.237),
    (0.208, 0.211), (0.157, 0.170). These are ratios of standard deviations, :func:`std_ratio_fw` and
    :func:`std_ratio_bw` (0.211 should be 0.212: the value is 0.2117). The ratios of variances that it defines, and
    that this function and :func:`phi_bw` return, are their squares: (0.0558, 0.0560), (0.0434, 0.0448),
    (0.0246, 0.0290).

    Args:
        activation: The function f, elementwise and deterministic. Dropout or RReLU must be in eval mode.
        sigma: Standard deviation of the preactivation.

    Raises:
        ValueError: If sigma is not positive and finite, or the activation is random, not elementwise, not finite, or
            varies too fast to be integrated.

    Example:
        >>> import torch
        >>> round(phi_fw(torch.relu, 1.0), 2)
        0.34
        >>> [round(phi_fw(torch.sigmoid, sigma), 4) for sigma in (0.5, 1.0, 2.0)]
        [0.0558, 0.0434, 0.0246]
    """
    _check(sigma)
    return gaussian_moments(activation).variance(sigma**2) / sigma**2


def phi_bw(activation: Function, sigma: float) -> float:
    r"""Return :math:`\phi_{bw} = E[f'(z)^2]` for :math:`z \sim \mathcal{N}(0, \sigma^2)` (paper, Section 4.2).

    For ReLU this is 1/2 at every sigma (Proposition 6); other activations are integrated. As in backpropagation, jumps
    do not contribute. For the sigmoid the paper prints the square root, :func:`std_ratio_bw`; see :func:`phi_fw` for
    both sets of numbers, the arguments and the errors.

    Example:
        >>> import torch
        >>> phi_bw(torch.relu, 1.0)
        0.5
        >>> [round(phi_bw(torch.sigmoid, sigma), 4) for sigma in (0.5, 1.0, 2.0)]
        [0.056, 0.0448, 0.029]
    """
    _check(sigma)
    return gaussian_moments(activation).slope_mean_square(sigma**2)


def std_ratio_fw(activation: Function, sigma: float) -> float:
    r"""Return :math:`\sqrt{\phi_{fw}} = \mathrm{std}(f(z)) / \mathrm{std}(z)`, which the paper prints for the sigmoid.

    Example:
        >>> import torch
        >>> [round(std_ratio_fw(torch.sigmoid, sigma), 4) for sigma in (0.5, 1.0, 2.0)]
        [0.2363, 0.2083, 0.157]
    """
    return math.sqrt(phi_fw(activation, sigma))


def std_ratio_bw(activation: Function, sigma: float) -> float:
    r"""Return :math:`\sqrt{\phi_{bw}} = \mathrm{std}(\nabla_z) / \mathrm{std}(\nabla_a)`, the paper's for the sigmoid.

    Example:
        >>> import torch
        >>> [round(std_ratio_bw(torch.sigmoid, sigma), 4) for sigma in (0.5, 1.0, 2.0)]
        [0.2367, 0.2117, 0.1704]
    """
    return math.sqrt(phi_bw(activation, sigma))


@dataclass(frozen=True)
class VarianceMap:
    r"""The variance of the next layer's preactivations, as a function of this layer's, in a wide network.

    Weights are drawn from :math:`\mathcal{N}(0, \sigma_w^2 / \text{fan-in})`, biases from
    :math:`\mathcal{N}(0, \sigma_b^2)` (Price et al., ICLR 2024, Section 2):

    .. math:: V(q) = \sigma_w^2 E[\phi(\sqrt q Z)^2] + \sigma_b^2.

    For weights that sum to zero over the inputs of each unit, only the deviations of the activations from their mean
    matter, so that in the wide limit the mean square becomes a variance. This project derived it; it is in neither
    paper:

    .. math:: V_{LCW}(q) = \sigma_w^2 \mathrm{Var}[\phi(\sqrt q Z)] + \sigma_b^2.

    All methods raise a ValueError if q is not positive and finite or the activation cannot be integrated.

    Args:
        activation: The function phi, elementwise and deterministic. Closed forms are used for ReLU, the identity and
            the sparse activations, through their attribute ``thresholded``; others are integrated.
        sigma_w: Standard deviation of the weights, times the root of the fan-in.
        sigma_b: Standard deviation of the biases.
        zero_sum: Whether the weights are zero-sum.

    Example:
        >>> import torch
        >>> relu = VarianceMap(torch.relu, sigma_w=math.sqrt(2))
        >>> round(relu(3.0), 9), round(relu.chi_1(3.0), 9), round(relu.correlation(0.0, 3.0), 4)
        (3.0, 1.0, 0.3183)
        >>> VarianceMap(torch.tanh, sigma_w=1.5, sigma_b=0.2).fixed_points(lowest=0.1, highest=10.0)
        [0.870...]
    """

    activation: Function
    sigma_w: float
    sigma_b: float = 0.0
    zero_sum: bool = False

    def __call__(self, q: float) -> float:
        """Return V(q)."""
        return self._derivative(q, 0) + self.sigma_b**2

    def slope(self, q: float) -> float:
        """Return V'(q). Near a fixed point a layer multiplies the distance to it by this factor."""
        return self._derivative(q, 1)

    def curvature(self, q: float) -> float:
        """Return V''(q)."""
        return self._derivative(q, 2)

    def chi_1(self, q: float) -> float:
        r"""Return :math:`\chi_1 = \sigma_w^2 E[\phi'^2]`, the factor that a layer puts on squared gradients."""
        return self.sigma_w**2 * gaussian_moments(self.activation).slope_mean_square(q)

    def correlation(self, rho: float, q: float) -> float:
        r"""Return R(rho), the correlation in the next layer of two preactivations with variance q and correlation rho.

        .. math:: R(\rho) = (\sigma_w^2 E[\phi(u_1) \phi(u_2)] + \sigma_b^2) / q.

        At a fixed point q, R(1) = 1 and R'(1) = chi_1. For zero-sum weights the mean product becomes a
        covariance. A ValueError is raised unless rho is between -1 and 1.
        """
        sigma = standard_deviation(q)
        function, _ = elementwise(self.activation, sigma)
        centre = gaussian_moments(self.activation).mean(q) if self.zero_sum else 0.0
        product = mean_product(lambda u: function(u).detach() - centre, sigma, rho)
        return (self.sigma_w**2 * product + self.sigma_b**2) / q

    def fixed_points(self, lowest: float = 1e-3, highest: float = 1e4) -> list[float]:
        """Return all q in [lowest, highest] with V(q) = q, including those at which V only touches the diagonal.

        A ValueError is raised if V(q) = q on a whole interval, as for ReLU with sigma_w = sqrt(2) and no bias. See
        :func:`~lcw_lightning.theory.fixed_points.fixed_points` for the method.
        """
        return fixed_points(self, self.slope, lowest, highest)

    def _derivative(self, q: float, order: int) -> float:
        moments = gaussian_moments(self.activation)
        return self.sigma_w**2 * (moments.variance(q, order) if self.zero_sum else moments.mean_square(q, order))


def _check(sigma: float) -> None:
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma is a standard deviation: it must be positive and finite, but {sigma} was given.")
