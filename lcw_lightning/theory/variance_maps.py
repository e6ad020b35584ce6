r"""How much an activation function amplifies the variance of what passes it, forward and backward.

The paper (Kutsuna, Section 4.2) takes a preactivation :math:`z \sim \mathcal{N}(0, \sigma^2)`, an activation
:math:`a = f(z)` and a gradient :math:`\nabla_a` of mean zero, independent of z, so that
:math:`\nabla_z = f'(z) \nabla_a`. Both amplifications are then expectations over a Gaussian:

.. math:: \phi_{fw} = \frac{V(a)}{V(z)} = \frac{V(f(z))}{\sigma^2}, \qquad
          \phi_{bw} = \frac{V(\nabla_z)}{V(\nabla_a)} = E[f'(z)^2].

An activation is any callable that maps each element of a tensor by itself. It is called with float64 on the CPU; a
module through a copy, in the mode (train or eval) that it is in. Its slope :math:`f'` is the one that autograd gives.
"""

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from scipy.integrate import quad_vec
from torch import Tensor, nn

__all__ = ["gaussian_expectation", "phi_bw", "phi_fw", "std_ratio_bw", "std_ratio_fw"]

TAIL = 38.0  # standard deviations beyond which the Gaussian density is 0 in float64
# Functions bend at sizes of z that have nothing to do with sigma: panels that halve towards 0 meet all of them.
OCTAVES = 25
SOUGHT_ERROR, WORST_ERROR = 1e-11, 1e-6
FLOAT64: Any = {"dtype": torch.float64, "device": "cpu"}

Function = Callable[[Tensor], Tensor]


def phi_fw(activation: Function, sigma: float) -> float:
    r"""Return :math:`\phi_{fw} = V(f(z)) / V(z)` for :math:`z \sim \mathcal{N}(0, \sigma^2)` (paper, Section 4.2).

    For ReLU this is :math:`(1 - 1/\pi) / 2` at every sigma (Proposition 6); other activations are integrated.

    For the sigmoid at sigma = 0.5, 1, 2 the paper prints :math:`(\phi_{fw}, \phi_{bw})` = (0.236, 0.237),
    (0.208, 0.211), (0.157, 0.170). These are ratios of standard deviations, :func:`std_ratio_fw` and
    :func:`std_ratio_bw` (0.211 is 0.2117 in truth). The ratios of variances that it defines, and that this function
    and :func:`phi_bw` return, are their squares: (0.0558, 0.0560), (0.0434, 0.0448), (0.0246, 0.0290).

    Args:
        activation: The function f, elementwise and deterministic. Dropout or RReLU must be in eval mode.
        sigma: Standard deviation of the preactivation.

    Raises:
        ValueError: If sigma is not positive and finite, or the activation is random, not elementwise, not finite, or
            varies too fast to be integrated.

    Example:
        >>> round(phi_fw(torch.relu, 1.0), 2)
        0.34
        >>> [round(phi_fw(torch.sigmoid, sigma), 4) for sigma in (0.5, 1.0, 2.0)]
        [0.0558, 0.0434, 0.0246]
    """
    function, origin = _elementwise(activation, sigma)
    if _is_relu(activation):
        return (1 - 1 / math.pi) / 2
    mean_square = gaussian_expectation(lambda z: ((function(z) - origin) / sigma).square(), sigma)
    if mean_square == 0:
        return 0.0

    def moments(z: Tensor) -> Tensor:
        normalized = (function(z) - origin) / (sigma * mean_square.sqrt())
        return torch.stack((normalized, normalized.square()))

    mean, _ = gaussian_expectation(moments, sigma)
    return float(mean_square * (1 - mean.square()))


def phi_bw(activation: Function, sigma: float) -> float:
    r"""Return :math:`\phi_{bw} = E[f'(z)^2]` for :math:`z \sim \mathcal{N}(0, \sigma^2)` (paper, Section 4.2).

    For ReLU this is 1/2 at every sigma (Proposition 6); other activations are integrated. As in backpropagation, a
    jump has no slope. What the paper prints for the sigmoid is the square root, :func:`std_ratio_bw`; both sets of
    numbers, the arguments and the errors are at :func:`phi_fw`.

    Example:
        >>> phi_bw(torch.relu, 1.0)
        0.5
        >>> [round(phi_bw(torch.sigmoid, sigma), 4) for sigma in (0.5, 1.0, 2.0)]
        [0.056, 0.0448, 0.029]
    """
    function, origin = _elementwise(activation, sigma)
    if _is_relu(activation):
        return 0.5

    def squares(z: Tensor) -> Tensor:
        value, slope = _value_and_slope(function, z)
        # A steep piece may fall between the nodes, and its slope with it; the rise that it leaves behind does not.
        return torch.stack((slope, (value - origin) / sigma)).square()

    return float(gaussian_expectation(squares, sigma)[0])


def std_ratio_fw(activation: Function, sigma: float) -> float:
    r"""Return :math:`\sqrt{\phi_{fw}} = \mathrm{std}(f(z)) / \mathrm{std}(z)`, which the paper prints for the sigmoid.

    Example:
        >>> [round(std_ratio_fw(torch.sigmoid, sigma), 4) for sigma in (0.5, 1.0, 2.0)]
        [0.2363, 0.2083, 0.157]
    """
    return math.sqrt(phi_fw(activation, sigma))


def std_ratio_bw(activation: Function, sigma: float) -> float:
    r"""Return :math:`\sqrt{\phi_{bw}} = \mathrm{std}(\nabla_z) / \mathrm{std}(\nabla_a)`, the paper's for the sigmoid.

    Example:
        >>> [round(std_ratio_bw(torch.sigmoid, sigma), 4) for sigma in (0.5, 1.0, 2.0)]
        [0.2367, 0.2117, 0.1704]
    """
    return math.sqrt(phi_bw(activation, sigma))


def gaussian_expectation(integrand: Function, sigma: float) -> Tensor:
    r"""Return :math:`E[g(z)]` for :math:`z \sim \mathcal{N}(0, \sigma^2)`, by adaptive Gauss-Kronrod quadrature.

    Kinks and jumps are found by bisection. The error sought is 1e-11 of the largest component: beside a component
    that may vanish put one that cannot, such as its square. An error above 1e-6 of it is a ValueError.

    Args:
        integrand: The function g: float64 tensors of shape ``(n,)`` to ``(..., n)``.
        sigma: Standard deviation, positive and finite.

    Returns:
        The expectation, float64, shape ``(...)``.

    Example:
        >>> gaussian_expectation(lambda z: torch.stack((z.cos(), z.abs())), sigma=1.0)
        tensor([0.6065, 0.7979], dtype=torch.float64)
    """
    upper = TAIL / 2 ** torch.arange(OCTAVES, **FLOAT64)
    lower = torch.cat((upper[1:], torch.zeros(1, **FLOAT64)))
    widths = (upper - lower) / math.sqrt(2 * math.pi)

    def folded(position: float) -> Any:
        # All panels, on both sides of 0, in one call.
        standardized = lower + (upper - lower) * position
        weights = widths * torch.exp(-standardized.square() / 2)
        values = integrand(sigma * torch.cat((standardized, -standardized))).detach()
        if not values.isfinite().all():
            raise ValueError(f"An activation, its slope and their squares must be finite: not so at sigma = {sigma}.")
        return (values * torch.cat((weights, weights))).sum(-1).numpy()

    smallest = sys.float_info.min  # so that the integral of 0 converges
    value, error = quad_vec(folded, 0, 1, smallest, SOUGHT_ERROR, norm="max", limit=500)
    expectation = torch.as_tensor(value, **FLOAT64)
    if not error <= smallest + WORST_ERROR * expectation.abs().max():
        raise ValueError(
            f"A Gaussian expectation must be finite and its integrand not too rough, but at sigma = {sigma} the "
            f"integral {value} may be wrong by {error:.1e}: take a smaller sigma or a smoother function."
        )
    return expectation


def _elementwise(activation: Function, sigma: float) -> tuple[Function, Tensor]:
    """Return the activation, known to be elementwise and checked to be finite at every call, and its value at 0."""
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma is a standard deviation: it must be positive and finite, but {sigma} was given.")
    name = getattr(activation, "__name__", repr(activation))
    if isinstance(activation, nn.Module):
        with torch.inference_mode(False):
            activation = copy.deepcopy(activation).to(**FLOAT64)

    def function(z: Tensor) -> Tensor:
        value = activation(z.clone())  # which it may overwrite
        if not (isinstance(value, Tensor) and value.shape == z.shape):
            given = getattr(value, "shape", type(value).__name__)
            raise ValueError(f"{name} must return a tensor of its input's shape {z.shape}, but returned {given}.")
        bad = ~value.isfinite()
        if bad.any():
            raise ValueError(f"{name} must be finite everywhere, but at {z[bad][0]:.6g} it is {value[bad][0]}.")
        return value.to(torch.float64)

    probe = torch.linspace(-TAIL * sigma, TAIL * sigma, 1000, **FLOAT64)
    if not torch.allclose(function(probe)[::2], function(probe[::2])):
        raise ValueError(
            f"{name} must map each element by itself and always to the same value, but does not: put a random module "
            "in eval mode, and leave out what looks at several elements at once, such as a normalization."
        )
    return function, function(torch.zeros(1, **FLOAT64))


def _is_relu(activation: Function) -> bool:
    return type(activation) is nn.ReLU or activation in (torch.relu, nn.functional.relu)


def _value_and_slope(function: Function, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        value = function(z)
        if not value.requires_grad:
            return value, torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value.sum(), z, materialize_grads=True)
    return value.detach(), slope
