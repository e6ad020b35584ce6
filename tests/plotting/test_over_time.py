import math

import numpy as np
import pytest

from lcw_lightning.plotting import rgb_array
from lcw_lightning.plotting.over_time import FEW, plot_over_time


def axes_of(**lines):
    (axes,) = plot_over_time(lines).axes
    return axes


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_line_holds_the_norms_against_the_steps_on_a_logarithmic_axis():
    axes = axes_of(plain=[1e-9, 1e-5, 1e-1], lcw=[1.0, 2.0, 3.0])
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [(1, 1e-9), (2, 1e-5), (3, 1e-1)])
    assert axes.get_yscale() == "log"
    assert labels(axes) == ["plain", "lcw"]
    assert axes.lines[0].get_color() != axes.lines[1].get_color()


def test_the_figure_explains_itself():
    figure = plot_over_time({"rnn.h_l0": [1e-3, 1e-1]})
    (axes,), (caption,) = figure.axes, figure.texts
    assert (axes.get_title(), axes.get_xlabel()) == ("gradient of recurrent layers over time", "step t")
    assert axes.get_ylabel() == "norm of dL/dh_t"
    assert "h_t: state after step t" in caption.get_text()


@pytest.mark.parametrize("line", [[1.0] * 5, [0.0] * 5, [1e-300, 1e-3], [1e-3, 1.0, math.inf, math.nan]], ids=str)
def test_every_positive_number_lies_within_the_axes(line):
    axes = axes_of(a=line)
    lowest, highest = axes.get_ylim()
    assert all(lowest <= value <= highest for value in line if 0 < value < math.inf)
    assert rgb_array(axes.figure).std() > 0


def test_zeros_are_triangles_at_the_lower_edge():
    axes = axes_of(a=[0.0, 0.0, 1e-30, 1e-3])
    line, marks = axes.lines
    assert np.isnan(line.get_ydata()).tolist() == [True, True, False, False]
    assert marks.get_xdata().tolist() == [1, 2]
    assert marks.get_marker() == "v"
    assert labels(axes) == ["a", "a: zero"]


def test_the_legend_of_many_lines_stands_beside_the_axes():
    lines = {f"network.recurrent.lstm.h_l{number}_reverse": [1e-3, 1e-1] for number in range(9)}
    figure = plot_over_time(lines)
    (axes,) = figure.axes
    assert figure.get_figwidth() > plot_over_time(dict(list(lines.items())[:FEW])).get_figwidth()
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 9
    rgb_array(figure)
    legend, frame = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.x0 >= frame.x1
    assert legend.x1 <= figure.bbox.x1
