import math

import numpy as np
import pytest
import torch
from torch import nn

from lcw_lightning.activations import ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU, SoftThreshold
from lcw_lightning.theory.edge_of_chaos import EdgeOfChaos, edge_of_chaos, edge_of_chaos_stds
from lcw_lightning.theory.variance_maps import VarianceMap

FAMILIES = {"ReLU": ShiftedReLU, "ST": SoftThreshold, "CReLU": ClippedShiftedReLU, "CST": ClippedSoftThreshold}

# Price et al., ICLR 2024, Table 2: activation, sparsity, tau, m, V', V''.
TABLE_2 = """
ReLU_tau .50 0.00 - 1.0 0.0
ReLU_tau .60 0.25 - 1.0 0.12
ReLU_tau .70 0.52 - 1.0 0.30
ST .50 0.67 - 1.0 0.43
ST .60 0.84 - 1.0 0.59
ST .70 1.04 - 1.0 0.81
CReLU .60 0.25 1.22 .5 -0.44
CReLU .60 0.25 1.63 .7 -0.42
CReLU .60 0.25 2.25 .9 -0.19
CReLU .70 0.52 1.05 .5 -0.37
CReLU .70 0.52 1.45 .7 -0.31
CReLU .70 0.52 2.05 .9 -0.04
CReLU .80 0.84 0.89 .5 -0.24
CReLU .80 0.84 1.27 .7 -0.12
CReLU .80 0.84 1.85 .9 0.21
CReLU .85 1.04 0.81 .5 -0.14
CReLU .85 1.04 1.17 .7 0.02
CReLU .85 1.04 1.74 .9 0.41
CST .50 0.67 0.97 .5 -0.32
CST .50 0.67 1.36 .7 -0.23
CST .50 0.67 1.96 .9 0.08
CST .60 0.84 0.89 .5 -0.24
CST .60 0.84 1.27 .7 -0.12
CST .60 0.84 1.85 .9 0.21
CST .70 1.04 0.81 .5 -0.14
CST .70 1.04 1.17 .7 0.02
CST .70 1.04 1.74 .9 0.41
CST .80 1.28 0.72 .5 0.00
CST .80 1.28 1.06 .7 0.23
CST .80 1.28 1.61 .9 0.69
CST .85 1.44 0.67 .5 0.11
CST .85 1.44 1.00 .7 0.39
CST .85 1.44 1.53 .9 0.89
"""

# At q = 1: activation, sparsity, tau, then sigma_w, sigma_b, V'' unclipped and m, sigma_w, sigma_b, V'' at the
# slopes 0.5, 0.7 and 0.9. From the closed forms, evaluated apart from this project.
REFERENCE = """
CReLU 0.50|0.0000|1.4142 0.0000 0.000|\
    1.4000 1.5444 0.3499 -0.490|1.8144 1.4662 0.2317 -0.494|2.4433 1.4246 0.1088 -0.298
CReLU 0.60|0.2533|1.5811 0.4249 0.122|\
    1.2175 1.7425 0.5576 -0.444|1.6258 1.6442 0.4884 -0.421|2.2467 1.5936 0.4399 -0.194
CReLU 0.70|0.5244|1.8257 0.5769 0.304|\
    1.0511 2.0310 0.6821 -0.369|1.4469 1.9047 0.6268 -0.307|2.0540 1.8410 0.5886 -0.036
CReLU 0.80|0.8416|2.2361 0.6854 0.589|\
    0.8913 2.5123 0.7735 -0.243|1.2667 2.3408 0.7277 -0.121|1.8517 2.2561 0.6956 0.214
CReLU 0.85|1.0364|2.5820 0.7327 0.806|\
    0.8095 2.9167 0.8127 -0.144|1.1704 2.7083 0.7716 0.023|1.7395 2.6060 0.7422 0.405
CReLU 0.90|1.2816|3.1623 0.7789 1.125|\
    0.7217 3.5938 0.8502 0.005|1.0632 3.3245 0.8141 0.237|1.6106 3.1930 0.7877 0.688
CST 0.50|0.6745|1.4142 0.6344 0.429|\
    0.9711 1.5809 0.7306 -0.315|1.3579 1.4778 0.6802 -0.226|1.9552 1.4265 0.6453 0.073
CST 0.60|0.8416|1.5811 0.6854 0.589|\
    0.8913 1.7764 0.7735 -0.243|1.2667 1.6552 0.7277 -0.121|1.8517 1.5953 0.6956 0.214
CST 0.70|1.0364|1.8257 0.7327 0.806|\
    0.8095 2.0624 0.8127 -0.144|1.1704 1.9150 0.7716 0.023|1.7395 1.8427 0.7422 0.405
CST 0.80|1.2816|2.2361 0.7789 1.125|\
    0.7217 2.5412 0.8502 0.005|1.0632 2.3508 0.8141 0.237|1.6106 2.2578 0.7877 0.688
CST 0.85|1.4395|2.5820 0.8030 1.358|\
    0.6727 2.9445 0.8691 0.116|1.0016 2.7180 0.8360 0.396|1.5343 2.6077 0.8113 0.897
CST 0.90|1.6449|3.1623 0.8290 1.696|\
    0.6168 3.6208 0.8892 0.279|0.9294 3.3342 0.8595 0.626|1.4426 3.1947 0.8369 1.198
"""


def variance_map(name: str, edge: EdgeOfChaos, zero_sum: bool = False) -> VarianceMap:
    size = (edge.tau, edge.clip) if FAMILIES[name].clipped else (edge.tau,)
    return VarianceMap(FAMILIES[name](*size), edge.sigma_w, edge.sigma_b, zero_sum)


def printed(value: float, like: str) -> bool:
    """Whether a number rounds to what a table prints."""
    return round(value, len(like.split(".")[1])) == float(like)


@pytest.mark.parametrize("row", TABLE_2.strip().splitlines())
def test_every_row_of_the_papers_table_2_comes_out(row):
    name, sparsity, tau, clip, slope, curvature = row.replace("_tau", "").split()
    edge = edge_of_chaos(FAMILIES[name], float(sparsity), float(slope))
    v = variance_map(name, edge)
    assert printed(edge.tau, tau)
    assert math.isinf(edge.clip) if clip == "-" else printed(edge.clip, clip)
    assert v.slope(1.0) == pytest.approx(float(slope), abs=1e-12)
    assert v.curvature(1.0) == pytest.approx(float(curvature), abs=0.01)  # some of its last digits are off by one


@pytest.mark.parametrize("row", REFERENCE.strip().splitlines(), ids=lambda row: row.split("|")[0])
def test_every_entry_of_the_reference_table_comes_out(row):
    head, tau, *entries = row.split("|")
    name, sparsity = head.split()
    unclipped = {"CReLU": "ReLU", "CST": "ST"}[name]
    for column, slope, entry in zip((unclipped, name, name, name), (1.0, 0.5, 0.7, 0.9), entries, strict=True):
        edge = edge_of_chaos(FAMILIES[column], float(sparsity), slope)
        v = variance_map(column, edge)
        numbers = (edge.clip, edge.sigma_w, edge.sigma_b, v.curvature(1.0))[column == unclipped :]
        assert printed(edge.tau, tau)
        assert all(printed(*pair) for pair in zip(numbers, entry.split(), strict=True)), (slope, numbers, entry)
        assert (v(1.0), v.slope(1.0), v.chi_1(1.0)) == pytest.approx((1.0, slope, 1.0), abs=1e-12)
        assert v.activation.thresholded.zero_fraction(1.0) == pytest.approx(float(sparsity), abs=1e-12)


@pytest.mark.parametrize(
    ("q", "tau", "clip", "sigma_b", "curvature"),
    [(4.0, "2.0729", "2.3407", "1.5432", "0.0057"), (9.0, "3.1093", "3.5111", "2.3148", "0.0025")],
)
def test_a_larger_fixed_point_scales_everything_but_the_weights(q, tau, clip, sigma_b, curvature):
    edge = edge_of_chaos(ClippedShiftedReLU, 0.85, 0.7, q=q)
    v = variance_map("CReLU", edge)
    numbers = (edge.tau, edge.clip, edge.sigma_b, v.curvature(q))
    assert all(printed(*pair) for pair in zip(numbers, (tau, clip, sigma_b, curvature), strict=True))
    assert edge.sigma_w == pytest.approx(edge_of_chaos(ClippedShiftedReLU, 0.85, 0.7).sigma_w, rel=1e-12)
    assert (v(q), v.slope(q), v.chi_1(q)) == pytest.approx((q, 0.7, 1.0), rel=1e-12)


@pytest.mark.parametrize(
    ("sparsity", "clip", "qs", "slopes", "sigma_ws"),
    [
        (0.85, 1.17, (1, 2, 4, 9), (0.700, 0.511, 0.357, 0.231), (2.708, 2.901, 3.202, 3.698)),
        (0.90, 1.00, (1, 2, 4, 9), (0.667, 0.490, 0.348, 0.229), (3.357, 3.612, 3.997, 4.621)),
    ],
)
def test_at_a_fixed_clip_a_larger_fixed_point_is_more_stable(sparsity, clip, qs, slopes, sigma_ws):
    for q, slope, sigma_w in zip(qs, slopes, sigma_ws, strict=True):
        tau = edge_of_chaos(ShiftedReLU, sparsity, q=q).tau
        activation = ClippedShiftedReLU(tau, clip)
        stds = edge_of_chaos_stds(activation, q)
        assert stds.sigma_w == pytest.approx(sigma_w, abs=6e-4)
        assert VarianceMap(activation, *stds).slope(q) == pytest.approx(slope, abs=6e-4)


def test_at_a_fixed_clip_curvatures_and_biases_are_the_notes():
    for q, curvature, sigma_b in ((1, 0.023, 0.772), (2, -0.070, 1.146), (4, -0.044, 1.701), (9, -0.017, 2.676)):
        activation = ClippedShiftedReLU(edge_of_chaos(ShiftedReLU, 0.85, q=q).tau, 1.17)
        stds = edge_of_chaos_stds(activation, q)
        assert stds.sigma_b == pytest.approx(sigma_b, abs=6e-4)
        assert VarianceMap(activation, *stds).curvature(q) == pytest.approx(curvature, abs=6e-4)


@pytest.mark.parametrize("slope", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("sparsity", [0.1, 0.6, 0.85])
def test_an_odd_activation_is_the_plain_one_at_half_the_way_to_full_sparsity(sparsity, slope):
    odd, plain = (
        edge_of_chaos(ClippedSoftThreshold, sparsity, slope),
        edge_of_chaos(ClippedShiftedReLU, (1 + sparsity) / 2, slope),
    )
    assert (odd.tau, odd.clip, odd.sigma_b) == pytest.approx((plain.tau, plain.clip, plain.sigma_b), rel=1e-10)
    assert odd.sigma_w**2 == pytest.approx(plain.sigma_w**2 / 2, rel=1e-10)
    for q in (0.1, 1.0, 3.0):
        one, other = variance_map("CST", odd), variance_map("CReLU", plain)
        assert (one(q), one.slope(q), one.curvature(q)) == pytest.approx((other(q), other.slope(q), other.curvature(q)))


LCW_SLOPES = [(0.6, 0.725, 0.619), (0.7, 0.779, 0.674), (0.8, 0.844, 0.729), (0.85, 0.879, 0.760), (0.9, 0.917, 0.793)]


@pytest.mark.parametrize(("sparsity", "slope", "sigma_b"), LCW_SLOPES)
def test_zero_sum_weights_make_the_unclipped_shifted_relu_stable(sparsity, slope, sigma_b):
    edge = edge_of_chaos(ShiftedReLU, sparsity, zero_sum=True)
    v = variance_map("ReLU", edge, zero_sum=True)
    assert round(v.slope(1.0), 3) == slope
    assert edge.sigma_b == pytest.approx(sigma_b, abs=1e-3)
    assert (v(1.0), v.chi_1(1.0)) == pytest.approx((1.0, 1.0))
    assert edge.sigma_w == edge_of_chaos(ShiftedReLU, sparsity).sigma_w
    assert variance_map("ReLU", edge_of_chaos(ShiftedReLU, sparsity)).slope(1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["ST", "CST"])
def test_zero_sum_weights_change_nothing_for_odd_activations(name):
    assert edge_of_chaos(FAMILIES[name], 0.7, zero_sum=True) == edge_of_chaos(FAMILIES[name], 0.7)


@pytest.mark.parametrize(("sparsity", "limit"), [row[:2] for row in LCW_SLOPES])
def test_clipped_slopes_under_zero_sum_weights_reach_up_to_the_unclipped_one(sparsity, limit):
    for slope in (0.01, 0.3, limit - 0.001):
        edge = edge_of_chaos(ClippedShiftedReLU, sparsity, slope, zero_sum=True)
        v = variance_map("CReLU", edge, zero_sum=True)
        assert (v(1.0), v.slope(1.0), v.chi_1(1.0)) == pytest.approx((1.0, slope, 1.0), abs=1e-12)
    for slope in (limit + 0.001, 0.99):
        with pytest.raises(ValueError, match=f"slope {slope}.* below 0.*without a clip and with zero-sum weights"):
            edge_of_chaos(ClippedShiftedReLU, sparsity, slope, zero_sum=True)
    assert edge_of_chaos(ClippedShiftedReLU, sparsity, limit + 0.001).clip > 0


def slopes_by_clip(family, sparsity: float, zero_sum: bool) -> np.ndarray:
    tau = edge_of_chaos(ShiftedReLU, (1 + sparsity) / 2 if family.odd else sparsity, zero_sum=True).tau
    activations = (family(tau, clip) for clip in np.geomspace(1e-2, 10, 300))
    maps = (VarianceMap(activation, 1.0, 0.0, zero_sum) for activation in activations)
    return np.array([v.slope(1.0) / v.chi_1(1.0) for v in maps])


@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.85, 0.99])
@pytest.mark.parametrize("family", [ClippedShiftedReLU, ClippedSoftThreshold])
def test_from_half_sparsity_on_the_slope_grows_with_the_clip(family, sparsity, zero_sum):
    assert (np.diff(slopes_by_clip(family, sparsity, zero_sum)) > -1e-12).all()


def test_at_a_low_sparsity_several_clips_have_a_slope_and_the_largest_is_taken():
    slopes = slopes_by_clip(ClippedShiftedReLU, 0.01, zero_sum=True)
    assert (np.diff(np.sign(slopes - 0.59)) != 0).sum() == 3
    edge = edge_of_chaos(ClippedShiftedReLU, 0.01, 0.59, zero_sum=True)
    assert variance_map("CReLU", edge, zero_sum=True).slope(1.0) == pytest.approx(0.59)
    larger = slopes[np.geomspace(1e-2, 10, 300) > edge.clip]
    assert (larger > 0.59).all()


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.49])
def test_below_half_sparsity_the_shifted_relu_needs_zero_sum_weights(sparsity):
    with pytest.raises(ValueError, match=r"biases of variance -.*, below 0: take zero-sum weights.* at least 0\.5"):
        edge_of_chaos(ShiftedReLU, sparsity)
    edge = edge_of_chaos(ShiftedReLU, sparsity, zero_sum=True)
    v = variance_map("ReLU", edge, zero_sum=True)
    assert (v(1.0), v.chi_1(1.0)) == pytest.approx((1.0, 1.0))
    assert edge.sigma_b > 0
    assert edge_of_chaos(SoftThreshold, sparsity).sigma_b > 0


def test_below_half_sparsity_small_slopes_can_be_reached_without_zero_sum_weights():
    assert edge_of_chaos(ClippedShiftedReLU, 0.45, 0.4).sigma_b > 0
    with pytest.raises(ValueError, match="below 0: take zero-sum weights"):
        edge_of_chaos(ClippedShiftedReLU, 0.45, 0.7)


@pytest.mark.parametrize("family", FAMILIES.values())
@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_sparsity_that_is_no_fraction_is_refused(family, sparsity):
    with pytest.raises(ValueError, match=f"must lie between 0 and 1, but {sparsity} was given"):
        edge_of_chaos(family, sparsity)


@pytest.mark.parametrize("slope", [-0.1, 0.0, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("name", ["CReLU", "CST"])
def test_a_slope_out_of_reach_is_refused_and_the_reach_said(name, slope):
    with pytest.raises(
        ValueError, match=rf"the slope {slope} .* must be above 0\.0\d* and below 1\.0000, the slope with"
    ):
        edge_of_chaos(FAMILIES[name], 0.8, slope)


@pytest.mark.parametrize("q", [0.0, -1.0, math.inf, math.nan])
def test_a_fixed_point_that_is_no_variance_is_refused(q):
    with pytest.raises(ValueError, match=f"q is a variance: it must be positive and finite, but {q} was given"):
        edge_of_chaos(ClippedShiftedReLU, 0.8, q=q)
    with pytest.raises(ValueError, match=f"q is a variance: it must be positive and finite, but {q} was given"):
        edge_of_chaos_stds(torch.relu, q=q)


@pytest.mark.parametrize("zero_sum", [False, True])
@pytest.mark.parametrize("q", [0.3, 1.0, 5.0])
@pytest.mark.parametrize(
    "activation",
    [torch.relu, torch.tanh, nn.Softsign(), ClippedSoftThreshold(0.4, 0.8)],
    ids=["relu", "tanh", "softsign", "CST"],
)
def test_any_activation_is_put_at_the_edge_of_chaos(activation, q, zero_sum):
    v = VarianceMap(activation, *edge_of_chaos_stds(activation, q, zero_sum), zero_sum)
    assert (v(q), v.chi_1(q)) == pytest.approx((q, 1.0), rel=1e-9)


def test_relus_standard_deviations_are_hes():
    assert edge_of_chaos_stds(nn.ReLU(), q=3.0) == pytest.approx((math.sqrt(2), 0.0))
    assert edge_of_chaos_stds(nn.Identity(), q=3.0) == pytest.approx((1.0, 0.0), abs=1e-7)


def test_an_activation_too_large_for_its_slope_is_refused_without_zero_sum_weights():
    def activation(z):
        return torch.tanh(z) + 3

    with pytest.raises(ValueError, match=r"At q = 1.0 .*activation.* needs biases of variance -.*, below 0"):
        edge_of_chaos_stds(activation)
    expected = edge_of_chaos_stds(torch.tanh)
    assert edge_of_chaos_stds(activation, zero_sum=True) == pytest.approx(expected, rel=1e-9)


def test_an_activation_without_a_slope_is_refused():
    with pytest.raises(ValueError, match=r"needs an activation with a slope, but .*sign.* has none at q = 1"):
        edge_of_chaos_stds(torch.sign)
