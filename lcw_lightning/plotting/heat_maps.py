"""Matrices as heat maps (the paper's Fig. 1)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lcw_lightning.plotting.panels import TICK_SIZE, panels_in_rows, set_style

__all__ = ["plot_heat_maps"]


def plot_heat_maps(panels: Mapping[str, Tensor]) -> Figure:
    """Plot matrices as heat maps with colour bars, three in a row.

    If a matrix has negative numbers, zero is white, positive numbers are red and negative ones blue. NaN and infinity
    are left out.

    Args:
        panels: Matrices ``(rows, columns)`` by title.

    Example:
        >>> import torch
        >>> figure = plot_heat_maps({"W": torch.randn(100, 100), "A": torch.rand(100, 100)})
        >>> len(figure.axes)  # two maps, two colour bars
        4
    """
    figure, grid = panels_in_rows(len(panels), right=0.6)  # space for the numbers of the last colour bar
    for axes, (title, matrix) in zip(grid, panels.items(), strict=True):
        values = np.ma.masked_invalid(matrix.detach().cpu().double().numpy())
        set_style(axes, title)
        axes.grid(visible=False)
        image = axes.imshow(values, cmap="viridis", interpolation="nearest")
        if values.min() < 0:
            largest = abs(values).max()
            image.set(cmap="RdBu_r", clim=(-largest, largest))
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
        bar.ax.tick_params(labelsize=TICK_SIZE)
    return figure
