import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy.integrate import quad
from scipy.stats import norm

from lcw_lightning.activations import ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU, SoftThreshold
from lcw_lightning.theory.thresholded import Thresholded

RANDOM = np.random.default_rng(0)


def draw(odd: bool, clipped: bool) -> tuple[Thresholded, float]:
    tau = RANDOM.uniform(0 if odd else -2, 3)
    return Thresholded(tau, RANDOM.uniform(0.05, 4) if clipped else math.inf, odd), float(np.exp(RANDOM.uniform(-2, 2)))


DRAWS = [draw(odd, clipped) for odd in (False, True) for clipped in (False, True) for _ in range(15)]


def value(phi: Thresholded, x: float) -> float:
    size, sign = (abs(x), math.copysign(1, x)) if phi.odd else (x, 1)
    return sign * min(max(size - phi.tau, 0.0), phi.clip)


def integral(phi: Thresholded, q: float, integrand) -> float:
    """Between the kinks of phi and as far as the density reaches."""
    sigma = math.sqrt(q)
    kinks = {phi.tau, phi.tau + phi.clip, -phi.tau, -phi.tau - phi.clip, 0.0, 3 * sigma, -3 * sigma}
    edges = [-12 * sigma, *sorted(kink for kink in kinks if abs(kink) < 12 * sigma), 12 * sigma]
    return sum(
        quad(lambda x: integrand(x) * norm.pdf(x, scale=sigma), *ends, epsabs=1e-14, epsrel=1e-13)[0]
        for ends in pairwise(edges)
    )


@pytest.mark.parametrize(("phi", "q"), DRAWS, ids=str)
def test_closed_forms_are_the_integrals(phi, q):
    def active(x):
        return phi.tau < (abs(x) if phi.odd else x) < phi.tau + phi.clip

    assert phi.mean(q) == pytest.approx(integral(phi, q, lambda x: value(phi, x)), abs=1e-12)
    assert phi.mean_square(q) == pytest.approx(integral(phi, q, lambda x: value(phi, x) ** 2), rel=1e-11, abs=1e-13)
    assert phi.slope_mean_square(q) == pytest.approx(integral(phi, q, active), abs=1e-12)
    assert phi.zero_fraction(q) == pytest.approx(integral(phi, q, lambda x: value(phi, x) == 0), abs=1e-12)
    assert phi.variance(q) == pytest.approx(phi.mean_square(q) - phi.mean(q) ** 2, rel=1e-12)


def test_closed_forms_of_another_threshold_are_not_the_integrals():
    phi, other = Thresholded(0.5, 1.0), Thresholded(0.51, 1.0)
    assert abs(other.mean_square(1.0) - integral(phi, 1.0, lambda x: value(phi, x) ** 2)) > 1e-3


@pytest.mark.parametrize(("phi", "q"), DRAWS[::3], ids=str)
@pytest.mark.parametrize("name", ["mean", "mean_square", "variance"])
def test_derivatives_are_finite_differences(phi, q, name):
    moment, step = getattr(phi, name), 0.003 * q
    for order in (0, 1):
        outer, inner = (moment(q + k * step, order) - moment(q - k * step, order) for k in (2, 1))
        assert moment(q, order + 1) == pytest.approx((8 * inner - outer) / (12 * step), rel=1e-7, abs=1e-9)


TYPES = {
    "ShiftedReLU": (ShiftedReLU(tau=0.4), 0.4, math.inf, False),
    "ReLU_at_a_negative_threshold": (ShiftedReLU(tau=-0.4), -0.4, math.inf, False),
    "SoftThreshold": (SoftThreshold(tau=0.4), 0.4, math.inf, True),
    "ClippedShiftedReLU": (ClippedShiftedReLU(tau=0.4, max=0.9), 0.4, 0.9, False),
    "ClippedSoftThreshold": (ClippedSoftThreshold(tau=0.4, max=0.9), 0.4, 0.9, True),
}


@pytest.mark.parametrize("name", TYPES)
def test_the_activations_have_these_moments_over_a_million_quantiles(name):
    activation, tau, clip, odd = TYPES[name]
    phi, q = Thresholded(tau, clip, odd), 1.7
    x = math.sqrt(q) * torch.special.ndtri((torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000)
    y = activation(x)
    assert activation.thresholded == phi
    assert phi.mean(q) == pytest.approx(y.mean().item(), abs=1e-5)
    assert phi.mean_square(q) == pytest.approx(y.square().mean().item(), abs=1e-4)
    assert phi.zero_fraction(q) == pytest.approx((y == 0).double().mean().item(), abs=2e-6)


@pytest.mark.parametrize("threshold", [6.0, 12.0, 20.0, 30.0])
def test_rare_events_keep_their_digits(threshold):
    with mp.workdps(60):
        tail, density = mp.ncdf(-threshold), mp.npdf(threshold)
        mean, square = density - threshold * tail, (1 + threshold**2) * tail - threshold * density
    phi, q = Thresholded(threshold * 2), 4.0
    assert phi.slope_mean_square(q) == pytest.approx(float(tail), rel=1e-12)
    assert phi.mean(q) == pytest.approx(2 * float(mean), rel=1e-11)
    assert phi.mean_square(q) == pytest.approx(4 * float(square), rel=1e-9)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("q", [1e-3, 1.0, 100.0])
def test_an_infinite_clip_is_the_limit_of_large_ones(q, odd):
    unclipped, clipped = Thresholded(0.3, odd=odd), Thresholded(0.3, clip=1e6, odd=odd)
    for name in ("mean", "mean_square", "variance"):
        for order in (0, 1, 2):
            limit = getattr(unclipped, name)(q, order)
            assert math.isfinite(limit)
            assert getattr(clipped, name)(q, order) == pytest.approx(limit, rel=1e-12, abs=1e-300)
    assert clipped.slope_mean_square(q) == unclipped.slope_mean_square(q)
    assert Thresholded(0.3, clip=1.0, odd=odd).mean_square(100.0) < 0.1 * unclipped.mean_square(100.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": math.nan}, "tau must be finite, but nan"),
        ({"tau": -0.1, "odd": True}, "for an odd activation, not negative, but -0.1"),
        ({"tau": 0.0, "clip": 0.0}, "largest value .* must be positive, but 0.0"),
        ({"tau": 0.0, "clip": math.nan}, "largest value .* must be positive, but nan"),
    ],
)
def test_a_function_that_is_none_of_the_family_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Thresholded(**arguments)


@pytest.mark.parametrize("q", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["mean", "mean_square", "variance", "slope_mean_square", "zero_fraction"])
def test_a_q_that_is_no_variance_is_refused(name, q):
    with pytest.raises(ValueError, match=f"q is a variance: it must be positive and finite, but {q} was given"):
        getattr(Thresholded(0.5, 1.0), name)(q)
