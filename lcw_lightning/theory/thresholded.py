r"""Thresholded linear activations and their Gaussian moments in closed form.

The sparse activations of Price et al., ICLR 2024, Section 2, are one family with a threshold :math:`\tau` and a clip m:

.. math:: \phi(x) = \min(\max(x - \tau, 0), m), \qquad \text{or its odd continuation} \qquad
          \phi(x) = \mathrm{sign}(x) \min(\max(|x| - \tau, 0), m).

For :math:`x \sim \mathcal{N}(0, q)` put :math:`r = \sqrt q`, :math:`a = \tau / r`, :math:`b = (\tau + m) / r`, and
let k be 1, or 2 for the odd ones. Everything here then follows from the moments of a Gaussian beyond a threshold,

.. math:: I_0(a) = Q(a) = P(Z > a), \qquad I_1(a) = E[(Z - a)_+] = \varphi(a) - a Q(a), \qquad
          I_2(a) = E[(Z - a)_+^2] = (1 + a^2) Q(a) - a \varphi(a).
"""

import math
from dataclasses import dataclass

from scipy.special import ndtr

from lcw_lightning.theory.gaussian import standard_deviation

__all__ = ["Thresholded"]


@dataclass(frozen=True)
class Thresholded:
    r"""The function :math:`\phi` of the threshold ``tau`` and the largest value ``clip``, continued oddly if ``odd``.

    Relative errors are below 1e-9 while :math:`\tau < 30 \sqrt q` and the clip is above :math:`10^{-3} \sqrt q`. All
    methods raise a ValueError if the variance q is not positive and finite. With ``order`` 1 or 2, moments return their
    first or second derivative in q.

    Args:
        tau: Threshold. If it is negative, the function is not 0 at 0, so an odd function cannot have it.
        clip: Largest absolute value, or infinity.
        odd: Whether the function is continued to negative x as an odd function.

    Raises:
        ValueError: If tau is not finite, or negative for an odd function, or the clip is not positive.

    Example:
        >>> relu = Thresholded(tau=0.0)
        >>> relu.mean_square(4.0), relu.mean_square(4.0, order=1), relu.zero_fraction(4.0)
        (2.0, 0.5, 0.5)
    """

    tau: float
    clip: float = math.inf
    odd: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.tau) or (self.odd and self.tau < 0):
            needed = "finite and, for an odd activation, not negative" if self.odd else "finite"
            raise ValueError(f"The threshold tau must be {needed}, but {self.tau} was given.")
        if not self.clip > 0:
            raise ValueError(f"The largest value of an activation must be positive, but {self.clip} was given.")

    def mean(self, q: float, order: int = 0) -> float:
        r"""Return :math:`E[\phi] = r [I_1(a) - I_1(b)]`, 0 for the odd ones, or a derivative of it.

        .. math:: \frac{d E[\phi]}{dq} = \frac{\varphi(a) - \varphi(b)}{2 r}, \qquad
                  \frac{d^2 E[\phi]}{dq^2} = \frac{\varphi(a) (a^2 - 1) - \varphi(b) (b^2 - 1)}{4 q r}.

        Example:
            >>> round(Thresholded(0.0).mean(1.0), 4)
            0.3989
        """
        r, a, b = self._scaled(q)
        if self.odd:
            return 0.0
        if order == 0:
            return r * (_beyond(a, 1) - _beyond(b, 1))
        if order == 1:
            return (_density(a) - _density(b)) / (2 * r)
        return (_density(a, 2) - _density(a) - _density(b, 2) + _density(b)) / (4 * q * r)

    def mean_square(self, q: float, order: int = 0) -> float:
        r"""Return :math:`E[\phi^2] = k q [I_2(a) - I_2(b) - 2 (b - a) I_1(b)]`, or a derivative of it.

        .. math:: \frac{d E[\phi^2]}{dq} = k [Q(a) - Q(b) - (b - a) \varphi(b)], \qquad
                  \frac{d^2 E[\phi^2]}{dq^2} = \frac{k}{2 q} [a (\varphi(a) - \varphi(b)) - (b - a) b^2 \varphi(b)].

        Example:
            >>> round(Thresholded(tau=1.0, clip=1.5).mean_square(1.0), 4)
            0.0681
        """
        _, a, b = self._scaled(q)
        k = 2 if self.odd else 1
        if order == 0:
            width = 0.0 if math.isinf(b) else b - a
            return k * q * (_beyond(a, 2) - _beyond(b, 2) - 2 * width * _beyond(b, 1))
        if order == 1:
            return k * (_between(a, b) - _density(b, 1) + a * _density(b))
        return k * (_density(a, 1) - a * _density(b) - _density(b, 3) + a * _density(b, 2)) / (2 * q)

    def variance(self, q: float, order: int = 0) -> float:
        r"""Return :math:`\mathrm{Var}[\phi] = E[\phi^2] - E[\phi]^2`, or a derivative of it.

        Example:
            >>> Thresholded(0.0).variance(1.0) == 0.5 - Thresholded(0.0).mean(1.0) ** 2
            True
        """
        square = (
            self.mean(q) ** 2,
            2 * self.mean(q) * self.mean(q, 1),
            2 * self.mean(q, 1) ** 2 + 2 * self.mean(q) * self.mean(q, 2),
        )
        return self.mean_square(q, order) - square[order]

    def slope_mean_square(self, q: float) -> float:
        r"""Return :math:`E[\phi'^2] = k [Q(a) - Q(b)]`, the probability that :math:`\phi` has slope 1.

        Example:
            >>> round(Thresholded(tau=0.0, clip=1.0).slope_mean_square(1.0), 4)
            0.3413
        """
        _, a, b = self._scaled(q)
        return (2 if self.odd else 1) * _between(a, b)

    def zero_fraction(self, q: float) -> float:
        r"""Return :math:`P(\phi = 0)`, the sparsity: :math:`1 - k Q(a)`. Clipped values are not zeros.

        Example:
            >>> round(Thresholded(tau=1.0).zero_fraction(1.0), 4)
            0.8413
        """
        _, a, _ = self._scaled(q)
        return _between(-a if self.odd else -math.inf, a)

    def _scaled(self, q: float) -> tuple[float, float, float]:
        r = standard_deviation(q)
        return r, self.tau / r, (self.tau + self.clip) / r


def _density(x: float, power: int = 0) -> float:
    """Return x ** power times the standard normal density at x, which is 0 at infinity."""
    return float(x**power * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)) if abs(x) < 40 else 0.0


def _between(a: float, b: float) -> float:
    """Return P(a < Z < b), computed from the nearer tail to avoid cancellation."""
    return float(ndtr(-a) - ndtr(-b) if a > 0 else ndtr(b) - ndtr(a))


def _beyond(x: float, power: int) -> float:
    """Return the mean of (Z - x) ** power over Z > x, for power 1 or 2."""
    tail = float(ndtr(-x))
    if tail == 0:
        return 0.0
    return _density(x) - x * tail if power == 1 else (1 + x * x) * tail - _density(x, 1)
