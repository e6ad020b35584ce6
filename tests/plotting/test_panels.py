import gc

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot

from lcw_lightning.plotting import (
    plot_against_depth,
    plot_boxes_by_layer,
    plot_boxes_by_unit,
    plot_heat_maps,
    quantiles,
    rgb_array,
)

LAYERS = [f"hidden.{number}" for number in range(50)]


def one_of_each():
    boxes = quantiles(torch.randn(50, 99))
    return [
        plot_against_depth("gradient_std", {"": [1e-9 * 2**number for number in range(50)]}, LAYERS),
        plot_boxes_by_layer({"LCW": {"preactivation": boxes, "gradient": boxes}}),
        plot_boxes_by_unit({"layer 1": boxes, "layer 5": boxes, "layer 9": boxes}),
        plot_heat_maps({"W": torch.randn(100, 100), "A": torch.rand(100, 100)}),
    ]


def test_arrays_hold_the_picture():
    for figure in one_of_each():
        image = rgb_array(figure)
        width, height = 100 * figure.get_size_inches()
        assert image.dtype == np.uint8
        assert image.shape == (pytest.approx(height, abs=1), pytest.approx(width, abs=1), 3)
        assert (image == 255).all(axis=2).mean() > 0.2  # white ground
        assert (image != 255).any(axis=2).mean() > 0.01  # and something on it


def test_figures_belong_to_nobody():
    settings = dict(matplotlib.rcParams)
    for figure in one_of_each():
        rgb_array(figure)
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def test_rendered_figures_go_with_their_last_reference():
    def objects_left(times, keep):
        gc.collect()
        before = len(gc.get_objects())
        figures = []
        for _ in range(times):
            figures = [*figures * keep, *one_of_each()]
            for figure in figures[-4:]:
                rgb_array(figure)
            del figure
        figures *= keep
        gc.collect()
        return len(gc.get_objects()) - before

    objects_left(times=1, keep=False)  # fills matplotlib's caches
    assert objects_left(times=3, keep=False) < objects_left(times=3, keep=True) / 10


def test_a_users_style_of_dark_backgrounds_leaves_figures_white():
    with matplotlib.rc_context({"figure.facecolor": "black"}):
        assert rgb_array(one_of_each()[0])[0, 0].tolist() == [255, 255, 255]
