import numpy as np
import pytest
import torch

from lcw_lightning.plotting import plot_heat_maps, rgb_array


def test_a_map_shows_its_matrix_under_its_title_with_a_colour_bar():
    matrices = {"W": torch.randn(10, 20), "A": torch.rand(20, 30), "Z": torch.randn(10, 30)}
    figure = plot_heat_maps(matrices)
    maps = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in maps] == list(matrices)
    for axes, matrix in zip(maps, matrices.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), matrix.double())
        assert axes.images[0].colorbar is not None


def test_zero_is_white_where_there_are_negative_numbers_and_there_alone():
    figure = plot_heat_maps({"signed": torch.tensor([[-1.0, 0.0, 3.0]]), "positive": torch.tensor([[1.0, 0.0, 3.0]])})
    signed, positive = (axes.images[0] for axes in figure.axes if axes.get_title())
    assert signed.get_clim() == (-3, 3)
    assert signed.to_rgba([0.0])[0].tolist() == pytest.approx([1, 1, 1, 1], abs=0.04)
    assert positive.get_clim() == (0, 3)
    assert min(positive.to_rgba([0.0])[0]) < 0.5


@pytest.mark.parametrize("fill", [0.0, -1.0, torch.nan], ids=str)
def test_constant_and_broken_matrices_are_plotted(fill):
    assert rgb_array(plot_heat_maps({"W": torch.full((3, 4), fill)})).std() > 0


def test_nothing_is_cut_off_at_the_border():
    image = rgb_array(plot_heat_maps({f"Z {number}": -1000 * torch.rand(100, 100) for number in range(6)}))
    assert (np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]) == 255).all()
