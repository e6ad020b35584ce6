import numpy as np
import pytest
import torch

from lcw_lightning.plotting import QUANTILES, plot_boxes_by_layer, plot_boxes_by_unit, quantiles, rgb_array


def shown(axes):
    """The five numbers of every box, as the artists hold them, by the box's number."""
    whiskers, medians = (collection.get_segments() for collection in (axes.collections[0], axes.collections[2]))
    boxes = [path.vertices for path in axes.collections[1].get_paths()]
    return {
        round(whisker[0, 0]): [whisker[0, 1], box[:, 1].min(), median[0, 1], box[:, 1].max(), whisker[1, 1]]
        for whisker, box, median in zip(whiskers, boxes, medians, strict=True)
    }


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_quantiles_are_those_of_torch(dim, dtype):
    values = torch.randn(37, 23, dtype=dtype)
    expected = torch.quantile(values.double(), torch.tensor(QUANTILES, dtype=torch.float64), dim=dim).movedim(0, -1)
    torch.testing.assert_close(quantiles(values, dim).double(), expected, atol=1e-6, rtol=0)


def test_quantiles_know_no_largest_size():
    values = torch.arange(2**24 + 1, dtype=torch.float32)
    assert quantiles(values).tolist() == pytest.approx([q * 2**24 for q in QUANTILES], rel=1e-6)


def test_quantiles_of_what_holds_nan_are_nan():
    values = torch.tensor([[1.0, 2.0], [torch.nan, 2.0]])
    assert quantiles(values).isnan().all(dim=1).tolist() == [False, True]


def test_boxes_show_their_quantiles():
    z, gradient = quantiles(torch.randn(20, 500)), quantiles(torch.randn(20, 500) * 1e-6)
    figure = plot_boxes_by_layer({"plain": {"z": z, "dL/dz": gradient}, "LCW": {"z": 2 * z, "dL/dz": 2 * gradient}})
    for axes, values in zip(figure.axes, (z, 2 * z, gradient, 2 * gradient), strict=True):
        assert shown(axes) == {number: pytest.approx(row) for number, row in enumerate(values.tolist(), start=1)}
        assert axes.get_yscale() == "linear"
    assert [axes.get_title() for axes in figure.axes] == ["plain", "LCW", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["z", "", "dL/dz", ""]


def rows_of(sizes):
    """Boxes of as many layers as there are sizes, whose largest number is the size."""
    return torch.tensor(sizes)[:, None] * torch.tensor([-1.0, -0.5, 0.1, 0.5, 1.0])


def test_panels_that_are_compared_have_one_scale():
    columns = {
        "plain": {"z": rows_of([1.0, 2.0]), "dL/dz": rows_of([0.1])},
        "LCW": {"z": rows_of([5.0, 4.0]), "dL/dz": rows_of([0.2])},
    }
    upper, lower = plot_boxes_by_layer(columns).axes[:2], plot_boxes_by_layer(columns).axes[2:]
    for row, largest in ((upper, 5.0), (lower, 0.2)):
        assert row[0].get_ylim() == row[1].get_ylim()
        assert largest < row[0].get_ylim()[1] < 2 * largest


@pytest.mark.parametrize("smallest", [1e-8, 1e-3, 0.05])
def test_boxes_that_span_decades_stand_on_a_symmetric_logarithmic_axis(smallest):
    columns = {"plain": {"dL/dz": rows_of([smallest, 0.1, 1.0])}, "LCW": {"dL/dz": rows_of([1.0, 1.0, 1.0])}}
    figure = plot_boxes_by_layer(columns)
    rgb_array(figure)
    for axes in figure.axes:
        assert axes.get_yscale() == "symlog"
        assert axes.get_ylim() == pytest.approx((-1.5, 1.5))
    axes = figure.axes[0]
    heights = axes.transData.transform([(1, smallest), (1, 0), (1, -smallest), (1, 1), (1, -1)])[:, 1]
    assert heights[0] - heights[2] > 0.02 * (heights[3] - heights[4])  # the smallest box can be seen
    assert heights[0] + heights[2] == pytest.approx(2 * heights[1])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert {"0", "10⁰", "\N{MINUS SIGN}10⁰"} <= set(labels)
    assert 3 <= len(labels) <= 13


def test_boxes_of_vanished_gradients_are_lines_at_zero():
    (axes,) = plot_boxes_by_layer({"": {"dL/dz": rows_of([1e-40, 0.0, 1.0])}}).axes
    rgb_array(axes.figure)
    assert axes.yaxis.get_transform().linthresh == pytest.approx(1e-12)


@pytest.mark.parametrize(("layers", "named"), [(12, True), (13, False)])
def test_few_layers_are_named_below_the_last_row(layers, named):
    boxes = quantiles(torch.randn(layers, 99))
    names = [f"net.{number}.conv" for number in range(layers)]
    figure = plot_boxes_by_layer({"plain": {"z": boxes, "dL/dz": boxes}, "LCW": {"z": boxes, "dL/dz": boxes}}, names)
    rgb_array(figure)
    for axes in figure.axes[2:]:
        shown_names = [label.get_text() for label in axes.get_xticklabels()]
        assert (shown_names == [f"{number}.conv" for number in range(layers)]) is named
        assert axes.get_xlabel() == ("" if named else "layer")
    assert not any(label.get_visible() for axes in figure.axes[:2] for label in axes.get_xticklabels())


def test_a_caption_says_what_boxes_and_whiskers_are():
    for figure in (plot_boxes_by_layer({"": {"z": rows_of([1.0])}}), plot_boxes_by_unit({"layer 1": rows_of([1.0])})):
        image = rgb_array(figure)
        assert [text.get_text() for text in figure.texts] == ["boxes: quartiles and median; whiskers: 1 % and 99 %"]
        assert (np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]) == 255).all()  # nothing is cut off


def test_small_numbers_have_one_exponent_above_the_axis():
    figure = plot_boxes_by_layer(
        {"": {"z": quantiles(torch.randn(3, 99)), "dL/dz": quantiles(torch.randn(3, 99)) / 1e6}}
    )
    rgb_array(figure)
    assert [axes.yaxis.get_offset_text().get_text() for axes in figure.axes] == ["", "1e\N{MINUS SIGN}6"]


def test_a_row_with_nan_or_infinity_is_a_gap():
    boxes = quantiles(torch.randn(4, 99))
    boxes[1, 0], boxes[2, 4] = torch.nan, torch.inf
    (axes,) = plot_boxes_by_layer({"": {"z": boxes}}).axes
    assert sorted(shown(axes)) == [1, 4]
    assert axes.get_xlim() == (0.4, 4.6)


@pytest.mark.parametrize("fill", [0.0, 1.0, 1e-40, -3.0, torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("layers", [1, 100])
def test_constant_and_broken_data_are_shown(fill, layers):
    figure = plot_boxes_by_layer({"": {"z": torch.full((layers, 5), fill)}})
    (axes,) = figure.axes
    assert len(shown(axes)) == (layers if np.isfinite(fill) else 0)
    assert rgb_array(figure).std() > 0
    assert np.isfinite(axes.get_ylim()).all()


def test_a_hundred_layers_keep_their_boxes_apart():
    figure = plot_boxes_by_layer({"": {"z": quantiles(torch.randn(100, 99))}})
    image = rgb_array(figure)
    assert image.shape[1] == 350
    (axes,) = figure.axes
    (left, _), (right, _) = axes.transData.transform([(1.3, 0), (1.7, 0)])
    assert right - left > 0.8  # pixels between one box and the next


def test_units_stand_in_one_panel_a_layer_on_one_scale_and_only_the_first_twenty():
    panels = {f"layer {layer}": quantiles(torch.rand(128, 256), dim=0) * layer for layer in (1, 5, 9, 13)}
    figure = plot_boxes_by_unit(panels)
    assert [axes.get_title() for axes in figure.axes] == list(panels)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    for axes, boxes in zip(figure.axes, panels.values(), strict=True):
        assert shown(axes) == {unit: pytest.approx(boxes[unit - 1].tolist()) for unit in range(1, 21)}
    assert [axes.get_ylabel() for axes in figure.axes] == ["activation", "", "", "activation"]


def test_titles_of_neighbours_do_not_touch():
    layers = [f"input of network.encoder.layers.encoder_layer_{number}.self_attention" for number in range(3)]
    figure = plot_boxes_by_unit({layer: quantiles(torch.rand(20, 99)) for layer in layers})
    rgb_array(figure)
    extents = [axes.title.get_window_extent() for axes in figure.axes]
    assert extents[0].x1 < extents[1].x0
    assert extents[1].x1 < extents[2].x0
    assert figure.axes[2].get_title().endswith("encoder_layer_2.self_attention")


def test_lists_are_as_good_as_tensors():
    (axes,) = plot_boxes_by_unit({"layer 1": [[1.0, 2.0, 3.0, 4.0, 5.0]]}).axes
    assert shown(axes) == {1: [1.0, 2.0, 3.0, 4.0, 5.0]}


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 4, 5)], ids=str)
def test_data_that_are_no_boxes_are_refused(shape):
    with pytest.raises(ValueError, match=r"box plots need 5 quantiles per box, got data of shape"):
        plot_boxes_by_layer({"": {"z": torch.zeros(shape)}})
