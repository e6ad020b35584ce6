"""VarianceMap: the variance and correlation maps of wide layers."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from lcw_lightning.activations import ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU, SoftThreshold
from lcw_lightning.theory.edge_of_chaos import edge_of_chaos
from lcw_lightning.theory.variance_maps import VarianceMap
from lcw_lightning.theory.zero_sum import project_zero_sum


def at_edge(family, sparsity: float, slope: float = 0.7, zero_sum: bool = False) -> VarianceMap:
    edge = edge_of_chaos(family, sparsity, slope, zero_sum=zero_sum)
    activation = family(edge.tau, edge.clip) if family.clipped else family(edge.tau)
    return VarianceMap(activation, edge.sigma_w, edge.sigma_b, zero_sum)


MAPS = {
    "ReLU": VarianceMap(torch.relu, 1.3, 0.2),
    "tanh": VarianceMap(torch.tanh, 1.5, 0.1),
    "tanh_zero_sum": VarianceMap(torch.tanh, 1.5, 0.1, zero_sum=True),
    "softplus_zero_sum": VarianceMap(nn.Softplus(), 1.5, 0.3, zero_sum=True),
    "ShiftedReLU": at_edge(ShiftedReLU, 0.7),
    "ShiftedReLU_zero_sum": at_edge(ShiftedReLU, 0.7, zero_sum=True),
    "ClippedShiftedReLU_zero_sum": at_edge(ClippedShiftedReLU, 0.6, 0.5, zero_sum=True),
    "ClippedSoftThreshold": at_edge(ClippedSoftThreshold, 0.85),
}


@pytest.mark.parametrize("q", [0.2, 1.0, 6.0])
@pytest.mark.parametrize("name", MAPS)
def test_slope_and_curvature_are_finite_differences_of_the_map(name, q):
    v, step = MAPS[name], 0.01 * q
    low2, low, here, high, high2 = (v(q + k * step) for k in (-2, -1, 0, 1, 2))
    slope = (8 * (high - low) - (high2 - low2)) / (12 * step)
    curvature = (16 * (high + low) - (high2 + low2) - 30 * here) / (12 * step**2)
    assert v.slope(q) == pytest.approx(slope, rel=1e-6, abs=1e-8)
    assert v.curvature(q) == pytest.approx(curvature, rel=1e-5, abs=1e-6)


def layer_variances(v: VarianceMap, q: float, zero_sum: bool) -> torch.Tensor:
    """The preactivation variance of twenty random layers, 2000 inputs to 500 units, inputs Gaussian of variance q."""
    generator = torch.Generator().manual_seed(0)
    variances = []
    for _ in range(20):
        inputs = v.activation(math.sqrt(q) * torch.randn(2000, generator=generator))
        weight = v.sigma_w * torch.randn(500, 2000, generator=generator) / math.sqrt(2000)
        bias = v.sigma_b * torch.randn(500, generator=generator)
        variances.append((((project_zero_sum(weight) if zero_sum else weight) @ inputs) + bias).square().mean())
    return torch.stack(variances)


@pytest.mark.parametrize("q", [1.0, 3.0])
@pytest.mark.parametrize(
    "name", ["ReLU", "softplus_zero_sum", "ShiftedReLU_zero_sum", "ClippedShiftedReLU_zero_sum", "ClippedSoftThreshold"]
)
def test_wide_random_layers_have_the_variance_of_the_map_with_and_without_zero_sum_rows(name, q):
    mean_of = {}
    for zero_sum in (False, True):
        v = VarianceMap(MAPS[name].activation, MAPS[name].sigma_w, MAPS[name].sigma_b, zero_sum)
        measured = layer_variances(v, q, zero_sum)
        error = measured.std() / math.sqrt(len(measured))
        assert abs(measured.mean() - v(q)) < 4 * error
        assert error < 0.03 * v(q)
        mean_of[zero_sum] = (measured.mean(), error)
    if name != "ClippedSoftThreshold":  # odd: its mean is 0, and zero-sum rows change nothing
        plain, error = mean_of[False]
        assert plain - v(q) > 4 * error


def test_chi_1_is_the_gradient_that_comes_through_a_layer_zero_sum_or_not():
    for name in ("ShiftedReLU", "ShiftedReLU_zero_sum"):
        assert MAPS[name].chi_1(1.0) == pytest.approx(1.0)
        assert MAPS[name].chi_1(4.0) > 1.3
    assert VarianceMap(torch.tanh, 2.0).chi_1(1e-6) == pytest.approx(4.0, rel=1e-4)


UNCLIPPED = [(family, sparsity) for family in (ShiftedReLU, SoftThreshold) for sparsity in (0.6, 0.9)]


@pytest.mark.parametrize(("family", "sparsity"), UNCLIPPED)
def test_unclipped_and_plain_the_slope_is_chi_1_and_the_curvature_positive(family, sparsity):
    v = at_edge(family, sparsity)
    for q in (0.1, 1.0, 7.0):
        assert v.slope(q) == pytest.approx(v.chi_1(q), rel=1e-12)
        assert v.curvature(q) > 0


def test_under_zero_sum_weights_the_slope_is_below_chi_1():
    v = MAPS["ShiftedReLU_zero_sum"]
    assert v.slope(1.0) < v.chi_1(1.0) - 0.2


@pytest.mark.parametrize("rho", [-1.0, -0.6, 0.0, 0.3, 0.9, 0.9999, 1.0])
def test_relus_correlation_map_is_the_arc_cosine_kernel(rho):
    kernel = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / math.pi
    assert VarianceMap(torch.relu, math.sqrt(2)).correlation(rho, 3.0) == pytest.approx(kernel, abs=1e-12)
    zero_sum = VarianceMap(torch.relu, math.sqrt(2), 0.5, zero_sum=True)
    assert zero_sum.correlation(rho, 3.0) == pytest.approx(kernel - 1 / math.pi + 0.25 / 3, abs=1e-11)


@pytest.mark.parametrize("name", MAPS)
def test_equal_inputs_keep_the_map_of_variances_and_leave_with_slope_chi_1(name):
    v, q = MAPS[name], 1.4
    assert v.correlation(1.0, q) == pytest.approx(v(q) / q, rel=1e-9)
    slope = (v.correlation(1.0, q) - v.correlation(1 - 1e-5, q)) / 1e-5
    assert slope == pytest.approx(v.chi_1(q), rel=0.01)
    uncorrelated = v.sigma_b**2 / q if v.zero_sum else None
    assert uncorrelated is None or v.correlation(0.0, q) == pytest.approx(uncorrelated, abs=1e-9)


@pytest.mark.parametrize(
    ("v", "kappa"),
    [
        (VarianceMap(torch.relu, math.sqrt(2)), 0.450),
        (at_edge(ClippedShiftedReLU, 0.6), 0.69),
        (at_edge(ClippedShiftedReLU, 0.85), 1.11),
        (at_edge(ClippedShiftedReLU, 0.85, 0.5), 1.47),
        (at_edge(ClippedSoftThreshold, 0.7), 1.11),
        (at_edge(ShiftedReLU, 0.7, zero_sum=True), 1.8257**2 * norm.pdf(0.5244) / math.sqrt(math.pi)),
    ],
    ids=["ReLU", "CReLU .6", "CReLU .85", "CReLU .85 at 0.5", "CST .7", "ReLU_tau .7 zero-sum"],
)
def test_near_one_correlations_grow_as_the_note_says(v, kappa):
    # R'(rho) ~ 1 - kappa sqrt(1 - rho), hence R(1 - e) ~ 1 - e + 2/3 kappa e^(3/2)
    distance = 1e-5
    rise = (v.correlation(1 - distance, 1.0) - (1 - distance)) / distance**1.5
    assert 1.5 * rise == pytest.approx(kappa, abs=0.006)


# Fixed points, slopes and chi_1 of the clipped activations whose map has a second stable point, at slope 0.9.
SEVERAL = {
    "CReLU .90": (ClippedShiftedReLU, 0.90, [(1, 0.9, 1), (1.399, 1.068, 1.346), (3.474, 0.837, 1.891)]),
    "CST .80": (ClippedSoftThreshold, 0.80, [(1, 0.9, 1), (1.399, 1.068, 1.346), (3.474, 0.837, 1.891)]),
    "CST .85": (ClippedSoftThreshold, 0.85, [(1, 0.9, 1), (1.263, 1.083, 1.307), (5.340, 0.705, 2.279)]),
    "CST .90": (ClippedSoftThreshold, 0.90, [(1, 0.9, 1), (1.181, 1.091, 1.283), (8.865, 0.562, 2.867)]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_large_clips_at_high_sparsity_have_a_second_stable_fixed_point(name):
    family, sparsity, expected = SEVERAL[name]
    v = at_edge(family, sparsity, 0.9)
    found = [(q, v.slope(q), v.chi_1(q)) for q in v.fixed_points()]
    assert [tuple(round(number, 3) for number in point) for point in found] == expected


def test_at_slope_0_8_the_soft_threshold_at_0_9_has_three_fixed_points_and_at_0_85_one():
    assert [round(q, 3) for q in at_edge(ClippedSoftThreshold, 0.9, 0.8).fixed_points()] == [1, 1.78, 3.516]
    v = at_edge(ClippedSoftThreshold, 0.85, 0.8)
    assert v.fixed_points() == pytest.approx([1.0])
    assert v.activation.max == pytest.approx(1.218, abs=5e-4)
    assert [round(100 * (v(q) - q) / q, 1) for q in (1.2, 1.5, 2, 3)] == [-2.5, -3.5, -4.1, -7.9]


@pytest.mark.parametrize("slope", [0.5, 0.7])
@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7, 0.8, 0.85, 0.9])
@pytest.mark.parametrize("family", [ClippedShiftedReLU, ClippedSoftThreshold])
def test_up_to_slope_0_7_the_fixed_point_is_the_only_one(family, sparsity, slope):
    assert at_edge(family, sparsity, slope).fixed_points() == pytest.approx([1.0], rel=1e-9)


def test_the_plateau_of_the_shifted_relu_at_0_85_and_slope_0_9_has_one_fixed_point():
    v = at_edge(ClippedShiftedReLU, 0.85, 0.9)
    assert v.fixed_points() == pytest.approx([1.0], rel=1e-9)
    assert all(abs(v(q) - q) < 0.02 * q for q in torch.linspace(0.87, 1.885, 50).tolist())
    assert (v.chi_1(0.87), v.chi_1(1.89)) == pytest.approx((0.89, 1.38), abs=0.01)


LAYERS = [
    (ClippedShiftedReLU, 0.6, 0.7, 9),
    (ClippedShiftedReLU, 0.85, 0.5, 7),
    (ClippedShiftedReLU, 0.85, 0.7, 12),
    (ClippedShiftedReLU, 0.85, 0.9, 65),
    (ClippedShiftedReLU, 0.9, 0.7, 14),
    (ClippedSoftThreshold, 0.85, 0.7, 15),
]


@pytest.mark.parametrize(("family", "sparsity", "slope", "layers"), LAYERS)
def test_inputs_of_unit_variance_come_to_the_fixed_point_in_as_many_layers_as_the_note_counts(
    family, sparsity, slope, layers
):
    v = at_edge(family, sparsity, slope)
    q, count = v.sigma_w**2 + v.sigma_b**2, 1
    while abs(q - 1) > 0.05:
        q, count = v(q), count + 1
    assert count == layers


@pytest.mark.parametrize(("family", "sparsity"), UNCLIPPED)
def test_an_unclipped_activation_touches_the_diagonal_at_its_fixed_point(family, sparsity):
    v = at_edge(family, sparsity)
    assert v.fixed_points() == pytest.approx([1.0], rel=1e-6)
    apart = VarianceMap(v.activation, v.sigma_w, v.sigma_b + 1e-4)
    assert apart.fixed_points() == []


@pytest.mark.parametrize(("sparsity", "stable"), [(0.6, True), (0.7, True), (0.8, True), (0.9, True)])
def test_under_zero_sum_weights_the_fixed_point_of_the_unclipped_activation_is_a_crossing(sparsity, stable):
    v = at_edge(ShiftedReLU, sparsity, zero_sum=True)
    first, *further = v.fixed_points()
    assert first == pytest.approx(1.0)
    assert (v.slope(first) < 1) is stable
    assert all(v.slope(q) > 1 for q in further[:1])


def test_integrated_maps_find_the_fixed_points_of_closed_ones():
    v = at_edge(ClippedShiftedReLU, 0.7)
    integrated = VarianceMap(v.activation.forward, v.sigma_w, v.sigma_b)
    assert integrated.fixed_points(0.5, 2.0) == pytest.approx(v.fixed_points(0.5, 2.0), rel=1e-8)


@pytest.mark.parametrize(
    "v",
    [VarianceMap(torch.relu, math.sqrt(2)), VarianceMap(nn.LeakyReLU(0.0), math.sqrt(2))],
    ids=["closed", "integrated"],
)
def test_a_map_that_keeps_every_variance_has_no_list_of_fixed_points(v):
    with pytest.raises(ValueError, match=r"Every q from 0.001 to .* is a fixed point"):
        v.fixed_points(highest=0.01)


def test_a_subcritical_network_without_biases_has_no_fixed_point_above_zero():
    assert VarianceMap(torch.tanh, 0.9).fixed_points(highest=1.0) == []
    assert VarianceMap(torch.relu, 1.3, 0.2).fixed_points() == pytest.approx([0.04 / (1 - 1.69 / 2)])


@pytest.mark.parametrize("q", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
@pytest.mark.parametrize("zero_sum", [False, True])
def test_a_q_that_is_no_variance_is_refused_everywhere(activation, q, zero_sum):
    v = VarianceMap(activation, 1.0, 0.0, zero_sum)
    for method in (v, v.slope, v.curvature, v.chi_1, lambda q: v.correlation(0.5, q)):
        with pytest.raises(ValueError, match=f"q is a variance: it must be positive and finite, but {q} was given"):
            method(q)


def test_a_rho_that_is_no_correlation_is_refused():
    with pytest.raises(ValueError, match=r"correlation must lie between -1 and 1, but 1.5 was given"):
        VarianceMap(torch.relu, 1.0).correlation(1.5, 1.0)


@pytest.mark.parametrize(("sparsity", "repelling"), [(0.6, []), (0.8, [2.1]), (0.9, [1.19])], ids=["0.6", "0.8", "0.9"])
def test_with_zero_sum_weights_a_second_fixed_point_repels_near_the_first_from_sparsity_0_8_on(sparsity, repelling):
    v = at_edge(ShiftedReLU, sparsity, zero_sum=True)
    near, *far = v.fixed_points()
    assert near == pytest.approx(1.0)
    assert v.slope(near) < 1
    assert far == pytest.approx(repelling, abs=0.01)
    assert all(v.slope(q) > 1 for q in far)
