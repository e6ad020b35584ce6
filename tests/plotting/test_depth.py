import math
import re

import numpy as np
import pytest

from lcw_lightning.plotting import plot_against_depth, rgb_array

INF, NAN = math.inf, math.nan
HIDDEN = [f"network.hidden.{number}.linear" for number in range(50)]


def axes_of(statistic, *values, layers=HIDDEN, **settings):
    lines = {f"line {number}": line for number, line in enumerate(values)}
    (axes,) = plot_against_depth(statistic, lines, layers[: len(values[0])], **settings).axes
    return axes


def test_a_line_holds_the_numbers_against_the_layers_number():
    axes = axes_of("shift_ratio", [0.5, 0.25, 0.75], [1.0, 1.5, 2.0])
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_xydata(), [(1, 0.5), (2, 0.25), (3, 0.75)])
    np.testing.assert_array_equal(second.get_ydata(), [1.0, 1.5, 2.0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["line 0", "line 1"]
    assert first.get_color() != second.get_color()


def test_a_line_alone_needs_no_legend():
    (axes,) = plot_against_depth("shift_ratio", {"": [0.5, 0.25]}, HIDDEN[:2]).axes
    assert axes.get_legend() is None


@pytest.mark.parametrize(
    ("scale", "values", "shown"),
    [
        ("logarithmic", [1e-9, 1e-3], "log"),
        ("logarithmic", [0.0, 1e-9, INF, NAN, 1e-3], "log"),
        ("logarithmic", [1e-3, 2e-3], "linear"),
        ("logarithmic", [0.0, 1e-3], "linear"),
        ("logarithmic", [-1.0, 1e3], "linear"),
        ("fraction", [1e-4, 0.5], "linear"),
        ("linear", [1e-4, 80.0], "linear"),
    ],
)
def test_the_scale_follows_from_the_setting_and_the_numbers(scale, values, shown):
    assert axes_of("shift_ratio", values, scale=scale).get_yscale() == shown


def test_a_fraction_is_shown_between_0_and_1_and_other_numbers_up_to_the_largest():
    assert axes_of("sparsity", [0.1, 0.5], scale="fraction").get_ylim() == pytest.approx((-0.05, 1.05))
    assert axes_of("sparsity", [0.1, 0.5], scale="linear").get_ylim() == pytest.approx((-0.025, 0.525))


@pytest.mark.parametrize(
    "values",
    [[0.0] * 5, [1.0] * 5, [1.0, 1.0 + 1e-7], [-2.0] * 3, [1e-40] * 2, [3.0], [1e-12, 1e3], [-1.0, 2.0]],
    ids=["zeros", "ones", "nearly ones", "negative", "tiny", "one layer", "decades", "both signs"],
)
def test_every_number_lies_well_within_the_axes(values):
    axes = axes_of("preactivation_std", values)
    rgb_array(axes.figure)
    lowest, highest = axes.get_ylim()
    inside = [axes.transLimits.transform(axes.transScale.transform(point))[1] for point in axes.lines[0].get_xydata()]
    assert 0 < min(inside) <= max(inside) < 1
    if axes.get_yscale() == "linear":
        assert lowest <= 0 <= highest  # so that what is nearly constant looks constant


def test_nan_leaves_a_gap_while_infinity_and_zero_are_marked_at_the_edge():
    axes = axes_of("gradient_std", [0.0, 1e-9, NAN, 1e-3, INF, -INF])
    line, infinite, minus_infinite, zero = axes.lines
    np.testing.assert_array_equal(line.get_ydata(), [NAN, 1e-9, NAN, 1e-3, NAN, NAN])
    marks = {mark.get_label(): mark.get_xydata().tolist() for mark in (infinite, minus_infinite, zero)}
    assert marks == {
        "line 0 infinite": [[5, 1]],
        "line 0 -infinite": [[6, 0]],
        "line 0 zero": [[1, 0]],
    }


@pytest.mark.parametrize("values", [[NAN] * 3, [INF, -INF, NAN]], ids=["nan", "infinite"])
def test_what_holds_no_number_at_all_is_still_plotted(values):
    axes = axes_of("shift_ratio", values)
    assert rgb_array(axes.figure).std() > 0


def test_few_layers_are_named_without_what_their_names_share():
    axes = axes_of("shift_ratio", [1, 2, 3], layers=["net.a.linear", "net.b.linear", "net.a_name_that_is_long.linear"])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a.linear", "b.linear", "…_is_long.linear"]


@pytest.mark.parametrize(("layers", "named"), [(12, True), (13, False)])
def test_up_to_twelve_layers_are_named(layers, named):
    axes = axes_of("shift_ratio", [1.0] * layers)
    assert ([label.get_text() for label in axes.get_xticklabels()] == [f"{n}.linear" for n in range(layers)]) is named


def test_many_layers_are_numbered():
    axes = axes_of("shift_ratio", [1.0] * 50)
    assert axes.get_xlabel() == "layer"
    assert [tick for tick in axes.get_xticks() if 1 <= tick <= 50] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("layers", [["linear"], ["a", "a.b"], ["", "a"]], ids=["one", "nested", "the root itself"])
def test_any_names_are_shown(layers):
    axes = axes_of("shift_ratio", [1.0] * len(layers), layers=layers)
    assert [label.get_text() for label in axes.get_xticklabels()] == layers


def test_labels_say_what_is_shown_and_all_text_stays_within_the_picture():
    axes = axes_of("gradient_std", [1e-12 * 10**number for number in range(10)], label="std of dL/dz")
    assert (axes.get_title(), axes.get_ylabel()) == ("gradient std", "std of dL/dz")
    image = rgb_array(axes.figure)
    assert image.shape == (270, 350, 3)  # as wide as a card of TensorBoard, in windows of any width
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all()
    assert all(re.fullmatch("10⁻?[¹²³⁴⁵⁶⁷⁸⁹⁰]+", label.get_text()) for label in axes.get_yticklabels())


def test_more_lines_than_colours_are_plotted():
    assert len(axes_of("shift_ratio", *[[number, number] for number in range(11)]).lines) == 11


def test_a_line_of_another_length_is_refused():
    with pytest.raises(ValueError, match="shift_ratio needs 3 numbers, one per layer; line 'LCW' has 2"):
        plot_against_depth("shift_ratio", {"LCW": [1.0, 2.0]}, HIDDEN[:3])
