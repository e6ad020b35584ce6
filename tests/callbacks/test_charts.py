"""Bands over the layers, and the charts of TensorBoard's custom scalars."""

import math
from statistics import median

import pytest

from lcw_lightning.callbacks.charts import bands, charts
from lcw_lightning.observation.statistics import Statistic

ROWS = {
    "first": {"shift_ratio": 10.0, "dead_units": 0.5, "input_mean": -1.0},
    "second": {"shift_ratio": 0.001, "dead_units": 0.0, "input_mean": 2.0},
    "third": {"shift_ratio": 1.0, "dead_units": 0.25},
}


@pytest.mark.parametrize(
    ("name", "tag", "of"),
    [
        ("shift_ratio", "band/log10_shift_ratio", math.log10),
        ("dead_units", "band/dead_units", float),
        ("input_mean", "band/input_mean", float),
    ],
    ids=["decades", "fraction", "linear"],
)
def test_a_band_has_the_median_the_lowest_and_the_highest_layer(name, tag, of):
    values = [of(row[name]) for row in ROWS.values() if name in row]
    found = bands(ROWS)
    assert found[f"{tag}/median"] == pytest.approx(median(values))
    assert (found[f"{tag}/lowest"], found[f"{tag}/highest"]) == (min(values), max(values))
    assert len(found) == 9


def test_numbers_without_a_logarithm_and_those_that_are_not_finite_are_left_out():
    spoiled = {**ROWS, "a": {"shift_ratio": 0.0, "dead_units": math.nan}, "b": {"shift_ratio": math.inf}}
    assert bands(spoiled) == bands(ROWS)
    assert bands({"a": {"shift_ratio": 0.0}}) == {}


def test_charts_show_what_is_read_first_then_bands_then_lines():
    found = charts(["shift/shift_ratio_max"], ["shift_ratio", "sparsity"])
    assert list(found) == ["read first", "median, lowest and highest layer", "a line a layer"]
    kinds = [[kind for kind, _ in by_title.values()] for by_title in found.values()]
    assert kinds == [["Multiline"], ["Margin", "Margin"], ["Multiline", "Multiline"]]
    titles = [list(by_title) for by_title in found.values()]
    assert titles == [["shift/shift_ratio_max"], ["sparsity", "log10_shift_ratio"], ["shift_ratio", "sparsity"]]


def test_no_category_mixes_bands_with_lines_which_tensorboard_would_part():
    layout = charts(["a"], [statistic.value for statistic in Statistic])
    assert all(len({kind for kind, _ in by_title.values()}) == 1 for by_title in layout.values())


def test_every_band_that_is_charted_is_one_that_is_logged():
    full = {str(n): {statistic.value: 0.5 for statistic in Statistic} for n in range(3)}
    layout = charts([], [statistic.value for statistic in Statistic])
    charted = [
        tag for by_title in layout.values() for kind, tags in by_title.values() if kind == "Margin" for tag in tags
    ]
    assert sorted(charted) == sorted(bands(full))
