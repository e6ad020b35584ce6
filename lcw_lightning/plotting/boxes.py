"""Box plots by layer (the paper's Fig. 4) and by unit (its Figs. 2 and 3)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from lcw_lightning.plotting.panels import COLORS, panel_grid, panels_in_rows, set_style, shortened, show_exponent

__all__ = ["QUANTILES", "Boxes", "plot_boxes_by_layer", "plot_boxes_by_unit", "quantiles"]

Boxes = Tensor | Sequence[Sequence[float]]
"""Shape ``(boxes, 5)``: for each box the values at :data:`QUANTILES`. Rows with NaN or infinity leave a gap."""

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Of the lower whisker, the lower end of the box, the line in it, its upper end and the upper whisker."""

MAX_UNITS = 20
MAX_TITLE_LENGTH = 32


def quantiles(values: Tensor, dim: int = -1) -> Tensor:
    """Return the values at :data:`QUANTILES` along ``dim``, in a new last dimension of 5; NaN where there is any NaN.

    The same as :func:`torch.quantile`, which in some versions of torch takes no more than 16 million numbers.

    Example:
        >>> quantiles(torch.arange(101.0)).tolist()
        [1.0, 25.0, 50.0, 75.0, 99.0]
    """
    values = values.detach().movedim(dim, -1)
    ordered = (values if values.dtype == torch.float64 else values.float()).sort(dim=-1).values
    ranks = torch.tensor(QUANTILES, dtype=torch.float64, device=values.device) * (values.shape[-1] - 1)
    below, above = ordered[..., ranks.floor().long()], ordered[..., ranks.ceil().long()]
    between = below.lerp(above, ranks.frac().to(ordered.dtype))
    return between.masked_fill(ordered[..., -1:].isnan(), torch.nan)  # sort puts NaN last


def plot_boxes_by_layer(columns: Mapping[str, Mapping[str, Boxes]]) -> Figure:
    """Plot quantities by layer as box plots: one row per quantity, one column per method, one box per layer.

    Args:
        columns: Boxes of all layers from input to output, by quantity, by method. All methods need the quantities of
            the first one.

    Raises:
        ValueError: Boxes are not of shape ``(layers, 5)``.

    Example:
        >>> boxes = quantiles(torch.randn(20, 1000))
        >>> columns = {method: {"preactivation": boxes, "gradient": boxes / 100} for method in ("plain", "LCW")}
        >>> [axes.get_title() for axes in plot_boxes_by_layer(columns).axes]
        ['plain', 'LCW', '', '']
    """
    rows = list(next(iter(columns.values())))
    figure, grid = panel_grid(len(rows), len(columns), width=2.6, height=1.5)
    for column, (method, quantities) in enumerate(columns.items()):
        for row, quantity in enumerate(rows):
            axes = grid[row, column]
            set_style(axes, method if row == 0 else "", "layer", quantity if column == 0 else "")
            _plot_boxes(axes, quantities[quantity], COLORS[column % len(COLORS)])
    return figure


def plot_boxes_by_unit(panels: Mapping[str, Boxes]) -> Figure:
    """Plot the activations of a layer's first 20 units as box plots: one panel per layer, three in a row, on one scale.

    Args:
        panels: Boxes of the units of a layer, by title of the panel.

    Raises:
        ValueError: Boxes are not of shape ``(units, 5)``.

    Example:
        >>> boxes = quantiles(torch.rand(128, 256), dim=0)
        >>> figure = plot_boxes_by_unit({"layer 1": boxes, "layer 5": boxes, "layer 9": boxes})
        >>> [axes.get_title() for axes in figure.axes]
        ['layer 1', 'layer 5', 'layer 9']
    """
    figure, grid = panels_in_rows(len(panels), sharey=True)
    for axes, (title, boxes) in zip(grid, panels.items(), strict=True):
        set_style(axes, shortened(title, MAX_TITLE_LENGTH), "unit", "activation" if axes in grid[::3] else "")
        _plot_boxes(axes, boxes[:MAX_UNITS], COLORS[0])
    return figure


def _plot_boxes(axes: Axes, boxes: Boxes, color: str) -> None:
    """Plot boxes as three collections: ``Axes.bxp`` makes six artists per box, and takes a second for 100 boxes."""
    values = _checked(boxes)
    numbers = np.arange(1, len(values) + 1)
    whole = np.isfinite(values).all(axis=1)
    x, (lowest, low, middle, high, highest) = numbers[whole], values[whole].T
    left, right = x - 0.3, x + 0.3
    corners = np.array([[left, low], [right, low], [right, high], [left, high]]).transpose(2, 0, 1)
    tint = 0.25 * np.array(to_rgb(color)) + 0.75
    thin = 1.0 if len(values) <= 50 else 0.5
    axes.vlines(x, lowest, highest, color=color, linewidth=thin)
    axes.add_collection(PolyCollection(list(corners), facecolor=tint, edgecolor=color, linewidth=thin, zorder=2.5))
    axes.hlines(middle, left, right, color="black", linewidth=1.5, zorder=3)
    axes.set_xlim(0.4, len(values) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    show_exponent(axes)


def _checked(boxes: Boxes) -> NDArray[np.float64]:
    values = torch.as_tensor(boxes).detach().cpu().double().numpy()
    if values.ndim != 2 or values.shape[1] != len(QUANTILES):
        raise ValueError(f"box plots need {len(QUANTILES)} quantiles per box, got data of shape {values.shape}.")
    return values
