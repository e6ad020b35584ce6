import math

import numpy as np
import pytest
import torch
from mpmath import mp
from torch import nn

from lcw_lightning.activations import ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU, SoftThreshold
from lcw_lightning.theory.integrated import Integrated, gaussian_moments
from lcw_lightning.theory.thresholded import Thresholded

RANDOM = np.random.default_rng(1)
KINKED = [
    ShiftedReLU(-RANDOM.uniform(0, 1)),
    SoftThreshold(RANDOM.uniform(0, 1)),
    ClippedShiftedReLU(RANDOM.uniform(0, 1), RANDOM.uniform(0.3, 2.5)),
    ClippedShiftedReLU(-RANDOM.uniform(0, 1), RANDOM.uniform(0.3, 2.5)),
    ClippedSoftThreshold(RANDOM.uniform(0, 1), RANDOM.uniform(0.3, 2.5)),
]
MOMENTS = [(name, order) for name in ("mean", "mean_square", "variance") for order in (0, 1, 2)]


@pytest.mark.parametrize("activation", KINKED, ids=str)
@pytest.mark.parametrize("q", np.exp(RANDOM.uniform(-1, 1, 1)))
def test_integrals_are_the_closed_forms(activation, q):
    closed, integrated = activation.thresholded, Integrated(activation)
    for name, order in MOMENTS:
        expected = getattr(closed, name)(q, order)
        assert getattr(integrated, name)(q, order) == pytest.approx(expected, rel=1e-9, abs=1e-9), (name, order)
    assert integrated.slope_mean_square(q) == pytest.approx(closed.slope_mean_square(q), rel=1e-9)


def test_integrals_of_another_function_are_not_the_closed_forms():
    closed, integrated = Thresholded(0.6, 1.1), Integrated(ClippedShiftedReLU(0.61, 1.1))
    for order in (0, 1, 2):
        assert abs(integrated.mean_square(1.0, order) - closed.mean_square(1.0, order)) > 1e-5


@pytest.mark.parametrize("q", [0.01, 1.0, 4.0])
def test_moments_of_sine_and_cosine_and_their_derivatives_are_exact(q):
    for order in (0, 1, 2):
        decay = (-2) ** order * math.exp(-2 * q) / 2
        constant = 0.5 if order == 0 else 0.0
        sine, cosine = Integrated(torch.sin), Integrated(torch.cos)
        mean = (-0.5) ** order * math.exp(-q / 2)
        assert sine.mean(q, order) == pytest.approx(0, abs=1e-9)
        assert sine.mean_square(q, order) == pytest.approx(constant - decay, rel=1e-8)
        assert sine.variance(q, order) == pytest.approx(constant - decay, rel=1e-8)
        assert cosine.mean(q, order) == pytest.approx(mean, rel=1e-8)
        assert cosine.mean_square(q, order) == pytest.approx(constant + decay, rel=1e-8)
        # Var[cos] = 1/2 + exp(-2 q) / 2 - exp(-q)
        assert cosine.variance(q, order) == pytest.approx(constant + decay - (-1) ** order * math.exp(-q), rel=1e-7)


def test_moments_of_softplus_are_those_of_a_quadrature_at_higher_precision():
    def moments(q):
        def mean(g):
            return mp.quad(lambda z: g(mp.log(1 + mp.exp(mp.sqrt(q) * z))) * mp.npdf(z), [-12, -4, 0, 4, 12])

        return mean(lambda y: y), mean(lambda y: y**2), mean(lambda y: y**2) - mean(lambda y: y) ** 2

    q, step = 2.0, 0.01
    softplus = Integrated(nn.Softplus())
    with mp.workdps(30):
        at = {k: moments(q + k * step) for k in (-2, -1, 0, 1, 2)}
    for index, name in enumerate(("mean", "mean_square", "variance")):
        low2, low1, here, high1, high2 = (at[k][index] for k in (-2, -1, 0, 1, 2))
        first = (8 * (high1 - low1) - (high2 - low2)) / (12 * step)
        second = (16 * (high1 + low1) - (high2 + low2) - 30 * here) / (12 * step**2)
        for order, expected in enumerate((here, first, second)):
            assert getattr(softplus, name)(q, order) == pytest.approx(float(expected), rel=1e-8, abs=1e-9)


def test_a_constant_beside_the_activation_costs_the_variance_no_digits():
    plain, shifted = Integrated(torch.sigmoid), Integrated(lambda z: torch.sigmoid(z) + 1e4)
    for order in (0, 1, 2):
        assert shifted.variance(0.5, order) == pytest.approx(plain.variance(0.5, order), rel=1e-7)
    assert shifted.mean(0.5) == pytest.approx(1e4 + 0.5)


def test_a_constant_has_no_variance_and_no_slope():
    constant = Integrated(lambda z: torch.full_like(z, 7.0))
    assert [constant.mean(1.0, order) for order in (0, 1, 2)] == [7.0, 0.0, 0.0]
    assert constant.variance(1.0) == constant.slope_mean_square(1.0) == 0.0


@pytest.mark.parametrize(
    ("activation", "closed"),
    [
        (nn.ReLU(), Thresholded(0.0)),
        (torch.relu, Thresholded(0.0)),
        (nn.functional.relu, Thresholded(0.0)),
        (nn.Identity(), Thresholded(0.0, odd=True)),
        (SoftThreshold(0.5), Thresholded(0.5, odd=True)),
        (ClippedShiftedReLU(0.5, 1.5), Thresholded(0.5, 1.5)),
    ],
    ids=["ReLU", "torch.relu", "functional.relu", "identity", "ST", "CReLU"],
)
def test_closed_forms_are_taken_where_they_are_known_and_are_the_integrals(activation, closed):
    assert gaussian_moments(activation) == closed
    assert Integrated(activation).mean_square(0.7) == pytest.approx(closed.mean_square(0.7), rel=1e-10)
    assert Integrated(activation).slope_mean_square(0.7) == pytest.approx(closed.slope_mean_square(0.7), rel=1e-10)


class Doubled(nn.ReLU):
    def forward(self, z):
        return 2 * super().forward(z)


@pytest.mark.parametrize("activation", [torch.tanh, nn.LeakyReLU(), Doubled()], ids=["tanh", "LeakyReLU", "Doubled"])
def test_everything_else_is_integrated(activation):
    assert gaussian_moments(activation) == Integrated(activation)


@pytest.mark.parametrize("q", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["mean", "mean_square", "variance", "slope_mean_square"])
def test_a_q_that_is_no_variance_is_refused(name, q):
    with pytest.raises(ValueError, match=f"q is a variance: it must be positive and finite, but {q} was given"):
        getattr(Integrated(torch.tanh), name)(q)
