r"""The mean product of an elementwise function at two correlated Gaussians, by quadrature."""

import math

import torch
from scipy.special import roots_legendre
from torch import Tensor

from lcw_lightning.theory.gaussian import FLOAT64, Function, gaussian_expectation

__all__ = ["mean_product"]

REACH = 20.0  # standard deviations: beyond, the square root of the Gaussian density is below 1e-43
NEAREST = 1e-7  # distance of a correlation to 1 or -1 from which on the mean product is interpolated
NODES, WEIGHTS = (torch.as_tensor(values, **FLOAT64) for values in roots_legendre(10))
SOUGHT_ERROR, HALVINGS, ROWS = 1e-13, 45, 100


def mean_product(function: Function, sigma: float, rho: float) -> float:
    r"""Return :math:`E[f(u_1) f(u_2)]` for centered Gaussians of variance :math:`\sigma^2` and correlation rho.

    A composite Gauss-Legendre rule, halved towards the kinks and jumps of f, is taken in both directions. Its panels
    are as narrow as the ridge of the density, which correlations near 1 and -1 make narrow and the integral slow: a
    second at 1e-7 from them. Nearer the value is interpolated linearly, which costs 1e-10 of it, or 1e-3 if f jumps.

    Args:
        function: The function f: float64 tensors of shape ``(n,)`` to ``(n,)``, elementwise.
        sigma: Standard deviation, positive and finite.
        rho: Correlation, between -1 and 1.

    Raises:
        ValueError: If rho is not between -1 and 1.

    Example:
        >>> round(mean_product(torch.relu, sigma=1.0, rho=0.5), 6)  # (sqrt(3) / 2 + pi / 3) / (2 pi)
        0.304499
    """
    if not -1 <= rho <= 1:
        raise ValueError(f"A correlation must lie between -1 and 1, but {rho} was given.")
    beyond = (abs(rho) - 1) / NEAREST + 1
    if beyond <= 0:
        return _integral(function, sigma, rho)
    sign = math.copysign(1.0, rho)

    def products(z: Tensor) -> Tensor:
        return torch.stack((function(z) * function(sign * z), function(z).square()))

    end = float(gaussian_expectation(products, sigma)[0])
    return end if beyond == 1 else beyond * end + (1 - beyond) * _integral(function, sigma, sign * (1 - NEAREST))


def _integral(function: Function, sigma: float, rho: float) -> float:
    ridge = math.sqrt((1 - rho) * (1 + rho))
    nodes, weights = _rule(function, sigma, min(2 * ridge, 1.0))
    values = weights * function(sigma * nodes)
    total = 0.0
    for rows, u in zip(torch.split(values, ROWS), torch.split(nodes, ROWS), strict=True):
        # What is 9 standard deviations of the ridge away from it adds nothing.
        ends = (rho * u[[0, -1]]).sort().values + torch.tensor([-9 * ridge, 9 * ridge], **FLOAT64)
        near = slice(*torch.searchsorted(nodes, ends).tolist())
        away = ((nodes[near] - rho * u[:, None]) / ridge).square()
        density = torch.exp(-(u.square()[:, None] + away) / 2) / (2 * math.pi * ridge)
        total += float(rows @ density @ values[near])
    return total


def _rule(function: Function, sigma: float, widest: float) -> tuple[Tensor, Tensor]:
    """Return ascending nodes and weights that integrate the function times the root of the Gaussian density."""

    def panels(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = (right - left)[:, None] / 2
        nodes, weights = left[:, None] + half * (1 + NODES), half * WEIGHTS
        values = function(sigma * nodes.flatten()).view_as(nodes) * torch.exp(-nodes.square() / 4)
        return nodes, weights, values

    edges = torch.linspace(-REACH, REACH, 2 * math.ceil(REACH / widest) + 1, **FLOAT64)
    left, right = edges[:-1], edges[1:]
    done: list[tuple[Tensor, Tensor]] = []
    size = None
    for halving in range(HALVINGS + 1):
        nodes, weights, values = panels(left, right)
        if size is None:
            size = (weights * values.square()).sum().sqrt()
        middle = (left + right) / 2
        (_, w0, v0), (_, w1, v1) = panels(left, middle), panels(middle, right)
        error = ((weights * values).sum(1) - (w0 * v0 + w1 * v1).sum(1)).abs()
        bad = (error > SOUGHT_ERROR * size) & (halving < HALVINGS)
        done.append((nodes[~bad], weights[~bad]))
        left, right = torch.cat((left[bad], middle[bad])), torch.cat((middle[bad], right[bad]))
    nodes, weights = (torch.cat(parts).flatten() for parts in zip(*done, strict=True))
    order = nodes.argsort()
    return nodes[order], weights[order]
