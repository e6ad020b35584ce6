import math

import numpy as np
import pytest
import torch

from lcw_lightning.plotting import rgb_array
from lcw_lightning.plotting.preflight import plot_preflight, quantile

DRAWS = torch.arange(11.0)[:, None].expand(11, 5).double()

INF = float("inf")


def test_the_line_is_the_median_and_the_band_goes_from_it_to_90_percent():
    left, right = plot_preflight({"": 10**DRAWS}, {"": DRAWS}).axes
    for axes in (left, right):
        np.testing.assert_allclose(axes.lines[0].get_xydata(), [(n, 5.0) for n in range(1, 6)])
        heights = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((5.0, 9.0))
        assert axes.get_legend() is None


def test_the_figure_says_what_it_shows_and_names_few_layers():
    figure = plot_preflight({"": 10**DRAWS}, {"": DRAWS}, [f"net.{number}.linear" for number in range(5)])
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == [f"{number}.linear" for number in range(5)]
        assert axes.get_xlabel() == ""
        assert axes.get_title()
        assert axes.get_ylabel()
    (caption,) = figure.texts
    assert caption.get_text() == "line: median of 11 draws of the weights; band: up to their 90th percentile"


def test_labels_are_told_apart():
    left, right = plot_preflight({"none": DRAWS + 1, "lcw": DRAWS + 2}, {"none": DRAWS, "lcw": DRAWS}).axes
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["none", "lcw"]
    assert len({line.get_color() for line in left.lines}) == 2


@pytest.mark.parametrize("value", [math.inf, -math.inf, 0.0], ids=str)
def test_numbers_that_are_not_finite_end_at_the_edge(value):
    draws = DRAWS.clone()
    draws[2:, 1] = value
    figure = plot_preflight({"": draws.clamp(min=0)}, {"": draws})
    rgb_array(figure)
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert math.isfinite(high - low)
        heights = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert low <= heights.min() <= heights.max() <= high
        assert heights.max() == high or value != math.inf


def test_a_check_in_which_all_failed_is_plotted():
    failed = torch.full((3, 4), math.inf)
    image = rgb_array(plot_preflight({"": failed}, {"": failed}))
    assert image.min() < 100  # axes and labels are there


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 9, 100])
def test_quantiles_of_finite_numbers_are_numpys(fraction, count):
    values = torch.randn(count, dtype=torch.float64)
    assert quantile(values, fraction) == pytest.approx(np.quantile(values.numpy(), fraction))


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [
        ([1.0, INF, 3.0], 0.5, 3.0),
        ([1.0, INF], 0.5, INF),
        ([-INF, 1.0], 0.5, -INF),
        ([-INF, INF], 0.5, INF),
        ([INF, INF], 0.5, INF),
        ([*range(10), INF], 0.9, 9.0),
        ([*range(9), INF, INF], 0.9, INF),
    ],
)
def test_infinite_numbers_have_their_place_in_the_order(values, fraction, expected):
    assert quantile(torch.tensor(values), fraction) == expected
