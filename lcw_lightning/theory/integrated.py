r"""Gaussian moments of any elementwise activation, by quadrature unless a closed form is known.

Derivatives in the variance q come from the heat equation, without a derivative of the activation: with the Hermite
polynomials :math:`He_2(z) = z^2 - 1` and :math:`He_4(z) = z^4 - 6 z^2 + 3`,

.. math:: \frac{d}{dq} E[g(\sqrt q Z)] = \frac{E[g(\sqrt q Z) He_2(Z)]}{2 q}, \qquad
          \frac{d^2}{dq^2} E[g(\sqrt q Z)] = \frac{E[g(\sqrt q Z) He_4(Z)]}{4 q^2}.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcw_lightning.theory.gaussian import (
    Function,
    elementwise,
    gaussian_expectation,
    standard_deviation,
    value_and_slope,
)
from lcw_lightning.theory.thresholded import Thresholded

__all__ = ["Integrated", "gaussian_moments"]


@dataclass(frozen=True)
class Integrated:
    r"""The moments of an elementwise activation at variance q, with the methods of :class:`Thresholded`.

    All methods raise a ValueError where q is not positive and finite, or where the activation is random, not
    elementwise, not finite, or varies too fast to be integrated.

    Example:
        >>> Integrated(torch.sin).mean_square(1.0)  # (1 - exp(-2)) / 2
        0.43233...
    """

    activation: Function

    def mean(self, q: float, order: int = 0) -> float:
        """Return the mean, or its first or second derivative in q."""
        # The value at 0 is subtracted first, so that a large one does not cost precision.
        function, origin = elementwise(self.activation, standard_deviation(q))
        spread = math.sqrt(_expectation(lambda z: function(z) - origin, 2, q))
        mean = spread * _expectation(lambda z: (function(z) - origin) / spread, 1, q, order) if spread else 0.0
        return mean if order else mean + float(origin)

    def mean_square(self, q: float, order: int = 0) -> float:
        """Return the mean square, or its first or second derivative in q."""
        function, _ = elementwise(self.activation, standard_deviation(q))
        return _expectation(function, 2, q, order)

    def variance(self, q: float, order: int = 0) -> float:
        """Return the variance, or its first or second derivative in q."""
        function, _ = elementwise(self.activation, standard_deviation(q))
        mean = self.mean(q)
        variance = _expectation(lambda z: function(z) - mean, 2, q, order)
        # The centre is held fixed while q varies; the variation of the mean contributes to the second derivative only.
        return variance - 2 * self.mean(q, 1) ** 2 if order == 2 else variance

    def slope_mean_square(self, q: float) -> float:
        """Return the mean square of the slope. As in backpropagation, jumps do not contribute."""
        sigma = standard_deviation(q)
        function, origin = elementwise(self.activation, sigma)

        def squares(z: Tensor) -> Tensor:
            value, slope = value_and_slope(function, z)
            # The nodes may miss a short steep piece and its slope, but not the rise in value that it causes.
            return torch.stack((slope, (value - origin) / sigma)).square()

        return float(gaussian_expectation(squares, sigma)[0])


def gaussian_moments(activation: Function) -> Thresholded | Integrated:
    """Return closed forms for an activation with an attribute ``thresholded``, and integrals for others.

    ReLU and the identity have closed forms, too.

    Example:
        >>> gaussian_moments(torch.relu)
        Thresholded(tau=0.0, clip=inf, odd=False)
        >>> gaussian_moments(nn.Tanh())
        Integrated(activation=Tanh())
    """
    if type(activation) is nn.ReLU or activation in (torch.relu, nn.functional.relu):
        return Thresholded(0.0)
    if type(activation) is nn.Identity:
        return Thresholded(0.0, odd=True)
    thresholded = getattr(activation, "thresholded", None)
    return thresholded if isinstance(thresholded, Thresholded) else Integrated(activation)


def _expectation(function: Function, power: int, q: float, order: int = 0) -> float:
    """Return the mean of the function to the power 1 or 2, or a derivative. For power 1 its mean square must be 1."""
    sigma = standard_deviation(q)

    def weighted(z: Tensor) -> Tensor:
        values, square = function(z), (z / sigma).square()
        hermite = (torch.ones_like(z), square - 1, square.square() - 6 * square + 3)[order]
        # The second component cannot vanish, and sets the scale of the error in gaussian_expectation.
        return torch.stack((values**power * hermite, values.square()))

    return float(gaussian_expectation(weighted, sigma)[0]) / (2 * q) ** order
