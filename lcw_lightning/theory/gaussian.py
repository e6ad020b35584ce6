r"""Expectations of elementwise functions of a Gaussian, by adaptive quadrature in float64 on the CPU."""

import copy
import math

import torch
from torch import Tensor, nn

from lcw_lightning.theory.quadrature import FLOAT64, Function, adaptive_rule

__all__ = ["Function", "elementwise", "gaussian_expectation", "standard_deviation", "value_and_slope"]

TAIL = 38.0  # standard deviations beyond which the Gaussian density is 0 in float64
# Activations may bend at any scale of z, whatever sigma is: panels that halve towards 0 resolve all scales.
OCTAVES = 25
WORST_ERROR = 1e-6


def gaussian_expectation(integrand: Function, sigma: float) -> Tensor:
    r"""Return :math:`E[g(z)]` for :math:`z \sim \mathcal{N}(0, \sigma^2)`, by adaptive Gauss-Lobatto quadrature.

    Kinks and jumps are found by bisection. The error aimed at is 1e-13 of the largest component, so give a component
    that may vanish together with one that cannot, such as its square. An error above 1e-6 of the largest component is
    a ValueError.

    Args:
        integrand: The function g: float64 tensors of shape ``(n,)`` to ``(..., n)``.
        sigma: Standard deviation, positive and finite.

    Returns:
        The expectation, float64, shape ``(...)``.

    Example:
        >>> gaussian_expectation(lambda z: torch.stack((z.cos(), z.abs())), sigma=1.0)
        tensor([0.6065, 0.7979], dtype=torch.float64)
    """

    def weighted(z: Tensor) -> Tensor:
        values = integrand(sigma * z).detach()
        if not values.isfinite().all():
            raise ValueError(
                f"An activation, its slope and their squares must be finite; at sigma = {sigma} they are not."
            )
        return values * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)

    upper = TAIL / 2 ** torch.arange(OCTAVES, **FLOAT64)
    nodes, weights, error = adaptive_rule(weighted, torch.cat((-upper, torch.zeros(1, **FLOAT64), upper.flip(0))))
    expectation = (weighted(nodes) * weights).sum(-1)
    if not error <= WORST_ERROR * expectation.abs().max():
        raise ValueError(
            f"A Gaussian expectation must be finite and its integrand not too rough, but at sigma = {sigma} the "
            f"integral {expectation.tolist()} may be wrong by {error:.1e}: take a smaller sigma or a smoother function."
        )
    return expectation


def elementwise(activation: Function, sigma: float) -> tuple[Function, Tensor]:
    """Return the activation, checked to be elementwise and, at every call, finite; and its value at 0."""
    name = getattr(activation, "__name__", repr(activation))
    if isinstance(activation, nn.Module):
        with torch.inference_mode(False):
            activation = copy.deepcopy(activation).to(**FLOAT64)

    def function(z: Tensor) -> Tensor:
        value = activation(z.clone())  # a copy, since the activation may work in place
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
            f"{name} must map each element independently and always to the same value, but does not: put a random "
            "module in eval mode, and leave out operations on several elements, such as a normalization."
        )
    return function, function(torch.zeros(1, **FLOAT64)).detach()


def standard_deviation(q: float) -> float:
    """Return the square root of a variance; raise a ValueError if ``q`` is not positive and finite."""
    if not (math.isfinite(q) and q > 0):
        raise ValueError(f"q is a variance: it must be positive and finite, but {q} was given.")
    return math.sqrt(q)


def value_and_slope(function: Function, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the function and its slope (by autograd) at each element of z."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        value = function(z)
        if not value.requires_grad:
            return value, torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value.sum(), z, materialize_grads=True)
    return value.detach(), slope
