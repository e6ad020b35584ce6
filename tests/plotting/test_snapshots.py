import pytest
import torch
from matplotlib.colors import to_rgb

from lcw_lightning.observation.statistics import Statistic
from lcw_lightning.plotting import QUANTILES, rgb_array, snapshots

LAYERS = ["first", "second", "third"]


def plot_snapshots(statistics, values):
    return snapshots.plot_snapshots(statistics, values, Statistic)


def row(value):
    return {"shift_ratio": value, "gradient_std": value / 100}


def rows(factor=1.0):
    return {layer: row(factor * number) for number, layer in enumerate(LAYERS, start=1)}


def samples(factor=1.0):
    values = {
        (layer, quantity): factor * number * torch.randn(1000)
        for number, layer in enumerate(LAYERS, start=1)
        for quantity in ("preactivation", "preactivation_gradient")
    }
    return values | {("second", "input"): torch.rand(20, 256), ("third", "input"): torch.rand(20, 256)}


def line(axes, number=0):
    return axes.lines[number].get_ydata().tolist()


def whiskers(axes):
    """The lower and upper end of every box's whiskers, by its number."""
    segments = axes.collections[0].get_segments()
    return {round(x): (low, high) for (x, low), (_, high) in segments}


def test_one_snapshot_has_one_figure_per_statistic_one_of_layers_and_one_per_layer_of_units():
    figures = plot_snapshots({"": rows()}, {"": samples()})
    assert list(figures) == ["depth/shift_ratio", "depth/gradient_std", "boxes/by_layer", "units/second", "units/third"]
    assert line(figures["depth/shift_ratio"].axes[0]) == [1, 2, 3]
    assert line(figures["depth/gradient_std"].axes[0]) == pytest.approx([0.01, 0.02, 0.03])


def test_boxes_are_those_of_each_layers_values():
    values = samples()
    figures = plot_snapshots({"": rows()}, {"": values})
    for axes, quantity in zip(figures["boxes/by_layer"].axes, ("preactivation", "preactivation_gradient"), strict=True):
        for number, layer in enumerate(LAYERS, start=1):
            expected = values[layer, quantity].quantile(torch.tensor([QUANTILES[0], QUANTILES[-1]])).tolist()
            assert whiskers(axes)[number] == pytest.approx(expected, rel=1e-4)
    low, high = values["second", "input"][4].quantile(torch.tensor([0.01, 0.99])).tolist()
    assert whiskers(figures["units/second"].axes[0])[5] == pytest.approx((low, high), rel=1e-4)


def test_layers_stand_in_the_order_of_the_statistics_not_of_the_values():
    backwards = dict(reversed(samples().items()))
    figures = plot_snapshots({"": rows()}, {"": backwards})
    heights = [high - low for _, (low, high) in sorted(whiskers(figures["boxes/by_layer"].axes[0]).items())]
    assert heights == sorted(heights)


def test_several_snapshots_share_each_figure_but_that_of_the_units():
    labels = {"none": 1.0, "lcw": 0.1}
    statistics = {label: rows(factor) for label, factor in labels.items()}
    figures = plot_snapshots(statistics, {label: samples(factor) for label, factor in labels.items()})
    units = [f"units_{label}/{layer}" for label in labels for layer in ("second", "third")]
    assert list(figures)[2:] == ["boxes/by_layer", *units]
    axes = figures["depth/shift_ratio"].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none", "lcw"]
    assert [line(axes, 0), line(axes, 1)] == [[1, 2, 3], pytest.approx([0.1, 0.2, 0.3])]
    assert [axes.get_title() for axes in figures["boxes/by_layer"].axes] == ["none", "lcw", "", ""]


def test_what_a_layer_lacks_is_a_gap():
    statistics = rows()
    del statistics["second"]["gradient_std"]
    values = samples()
    del values["second", "preactivation"]
    values["third", "preactivation"][3] = torch.nan
    figures = plot_snapshots({"": statistics}, {"": values})
    heights = line(figures["depth/gradient_std"].axes[0])
    assert torch.tensor(heights).isfinite().tolist() == [True, False, True]
    assert list(whiskers(figures["boxes/by_layer"].axes[0])) == [1]
    assert list(whiskers(figures["boxes/by_layer"].axes[1])) == [1, 2, 3]


def test_layers_that_were_not_called_are_in_no_figure():
    statistics = rows()
    del statistics["second"]
    figures = plot_snapshots({"": statistics}, {"": samples()})
    assert [name for name in figures if name.startswith("units")] == ["units/third"]
    assert list(whiskers(figures["boxes/by_layer"].axes[0])) == [1, 2]
    assert plot_snapshots({"": {}}, {"": samples()}) == {}


def test_without_values_there_are_lines_alone():
    assert list(plot_snapshots({"": rows()}, {"": {}})) == ["depth/shift_ratio", "depth/gradient_std"]
    forward = {key: values for key, values in samples().items() if key[1] == "preactivation"}
    figures = plot_snapshots({"": rows()}, {"": forward})
    assert len(figures["boxes/by_layer"].axes) == 1
    assert not [name for name in figures if name.startswith("units")]


def test_every_figure_has_ink_of_its_data():
    ink = (255 * torch.tensor(to_rgb("#0072B2"))).round()
    for name, figure in plot_snapshots({"": rows()}, {"": samples()}).items():
        pixels = torch.from_numpy(rgb_array(figure).copy()).float()
        assert ((pixels - ink).abs().amax(-1) < 2).sum() > 50, name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_numbers_that_are_not_finite_are_plotted_as_gaps_or_marks(bad):
    values = {key: torch.full_like(value, bad) for key, value in samples().items()}
    statistics = {layer: dict.fromkeys(row(1), bad) for layer in LAYERS}
    for figure in plot_snapshots({"": statistics}, {"": values}).values():
        assert rgb_array(figure).ndim == 3


@pytest.mark.parametrize("statistic", Statistic, ids=str)
def test_axes_are_labelled_and_scaled_as_the_statistic_says(statistic):
    spread = {"first": {statistic.value: 1e-4}, "second": {statistic.value: 1.0}}
    (axes,) = plot_snapshots({"": spread}, {"": {}})[f"depth/{statistic}"].axes
    linear = ("sparsity", "dead_units", "shift_angle_degrees", "input_mean")
    assert axes.get_yscale() == ("linear" if statistic in linear else "log")
    assert axes.get_ylabel() == statistic.label
    assert statistic.label
    assert axes.get_title() == statistic.replace("_", " ")
