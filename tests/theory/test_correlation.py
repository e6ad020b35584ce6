import math

import pytest
import torch
from scipy.integrate import dblquad, quad
from scipy.stats import norm

from lcw_lightning.activations import ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU
from lcw_lightning.theory.correlation import mean_product
from lcw_lightning.theory.thresholded import Thresholded

RHOS = [-1.0, -1 + 1e-5, -0.9, -0.3, 0.0, 1e-9, 0.5, 0.99, 1 - 1e-4, 1 - 1e-6, 1.0]


def arc_cosine(rho: float) -> float:
    """Cho and Saul, 2009: the kernel of ReLU at unit variances."""
    return (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / (2 * math.pi)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("sigma", [0.1, 1.0, 30.0])
def test_relus_mean_product_is_the_arc_cosine_kernel(rho, sigma):
    assert mean_product(torch.relu, sigma, rho) == pytest.approx(
        sigma**2 * arc_cosine(rho), rel=1e-9, abs=1e-13 * sigma**2
    )


@pytest.mark.parametrize("rho", RHOS)
def test_mean_products_of_sine_sign_and_powers_are_exact(rho):
    assert mean_product(torch.sin, 1.0, rho) == pytest.approx(math.exp(-1) * math.sinh(rho), abs=1e-11)
    assert mean_product(torch.sign, 1.0, rho) == pytest.approx(2 / math.pi * math.asin(rho), abs=1e-10)
    assert mean_product(torch.square, 2.0, rho) == pytest.approx(16 * (1 + 2 * rho**2), rel=1e-10)


def by_prices_theorem(phi: Thresholded, q: float, rho: float) -> float:
    """The mean product has the second derivative q^2 E[phi''(u_1) phi''(u_2)] in rho; phi'' sits on the kinks."""
    kinks = [(phi.tau, 1.0), (phi.tau + phi.clip, -1.0)]
    if phi.odd:
        kinks += [(-phi.tau, -1.0), (-phi.tau - phi.clip, 1.0)]
    kinks = [(place / math.sqrt(q), jump) for place, jump in kinks if math.isfinite(place)]

    def curvature(angle):
        rho = math.sin(angle)  # takes the root singularity at 1 away, together with the differential
        return sum(
            j * k * math.exp(-((a - b) ** 2 / math.cos(angle) ** 2 + 2 * a * b / (1 + rho)) / 2) / (2 * math.pi)
            for a, j in kinks
            for b, k in kinks
        )

    rest, _ = quad(lambda angle: (rho - math.sin(angle)) * curvature(angle), 0, math.asin(rho), epsabs=1e-13, limit=500)
    slope = -sum(jump * norm.cdf(place) for place, jump in kinks) + (0 if math.isfinite(phi.clip) else 1)
    return phi.mean(q) ** 2 + rho * q * slope**2 + q * rest


@pytest.mark.parametrize("rho", [-0.95, -0.4, 0.2, 0.8, 0.999, 1 - 1e-5])
@pytest.mark.parametrize(
    "activation",
    [ShiftedReLU(0.7), ShiftedReLU(-0.4), ClippedShiftedReLU(0.5, 1.2), ClippedSoftThreshold(0.8, 0.9)],
    ids=str,
)
def test_mean_products_of_the_sparse_activations_are_those_of_prices_theorem(activation, rho):
    expected = by_prices_theorem(activation.thresholded, 1.6, rho)
    assert mean_product(activation, math.sqrt(1.6), rho) == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert abs(mean_product(activation, math.sqrt(1.7), rho) - expected) > 1e-4 * abs(expected)


@pytest.mark.parametrize("rho", [-0.7, 0.6])
def test_the_mean_product_of_softplus_is_the_double_integral(rho):
    def integrand(y, x):
        other = rho * x + math.sqrt(1 - rho**2) * y
        return math.log1p(math.exp(1.5 * x)) * math.log1p(math.exp(1.5 * other)) * norm.pdf(x) * norm.pdf(y)

    expected, _ = dblquad(integrand, -8, 8, -8, 8, epsabs=1e-9, epsrel=1e-9)
    assert mean_product(torch.nn.functional.softplus, 1.5, rho) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("sign", [-1, 1])
def test_very_near_the_ends_the_mean_product_is_continuous(sign):
    for distance in (5e-8, 1e-12):
        rho = sign * (1 - distance)
        assert mean_product(torch.relu, 1.0, rho) == pytest.approx(arc_cosine(rho), abs=1e-11)


def test_a_function_that_is_zero_has_no_product():
    assert mean_product(torch.zeros_like, 1.0, 0.5) == mean_product(torch.zeros_like, 1.0, 1.0) == 0.0


@pytest.mark.parametrize("rho", [1.001, -2.0, math.nan])
def test_a_rho_that_is_no_correlation_is_refused(rho):
    with pytest.raises(ValueError, match=f"correlation must lie between -1 and 1, but {rho} was given"):
        mean_product(torch.relu, 1.0, rho)
