"""Box plots by layer (the paper's Fig. 4) and by unit (its Figs. 2 and 3)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray
from torch import Tensor

from lcw_lightning.plotting.panels import (
    CAPTION_HEIGHT,
    CARD_PANEL_WIDTH,
    COLORS,
    height_of_names,
    number_layers,
    panel_grid,
    panels_in_rows,
    power_of_ten,
    set_style,
    short_names,
    shortened,
    show_exponent,
    write_caption,
)

__all__ = ["QUANTILES", "Boxes", "plot_boxes_by_layer", "plot_boxes_by_unit", "quantiles"]

Boxes = Tensor | Sequence[Sequence[float]]
"""Shape ``(boxes, 5)``: for each box the values at :data:`QUANTILES`. Rows with NaN or infinity leave a gap."""

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Of the lower whisker, the lower end of the box, the line in it, its upper end and the upper whisker."""

CAPTION = "boxes: quartiles and median; whiskers: 1 % and 99 %"
MAX_DECADES = 12  # smaller boxes are lines at zero

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


def plot_boxes_by_layer(columns: Mapping[str, Mapping[str, Boxes]], layers: Sequence[str] = ()) -> Figure:
    """Plot quantities by layer as box plots: one row per quantity, one column per method, one box per layer.

    The panels of a row have one scale, so that methods can be compared. It is symmetric logarithmic, linear around
    zero, where the sizes of a row's boxes span more than a decade, as vanishing gradients do, and linear elsewhere.

    Args:
        columns: Boxes of all layers from input to output, by quantity, by method. All methods need the quantities of
            the first one.
        layers: Their names, which stand below the boxes if there are at most 12; else the layers are numbered.

    Raises:
        ValueError: Boxes are not of shape ``(layers, 5)``.

    Example:
        >>> boxes = quantiles(torch.randn(20, 1000))
        >>> columns = {method: {"preactivation": boxes, "gradient": boxes / 100} for method in ("plain", "LCW")}
        >>> [axes.get_title() for axes in plot_boxes_by_layer(columns).axes]
        ['plain', 'LCW', '', '']
    """
    rows = list(next(iter(columns.values())))
    names = short_names(layers)
    bottom = height_of_names(names) + CAPTION_HEIGHT
    figure, grid = panel_grid(len(rows), len(columns), width=CARD_PANEL_WIDTH, height=1.5, bottom=bottom, sharey="row")
    for row, quantity in enumerate(rows):
        boxes = [_checked(quantities[quantity]) for quantities in columns.values()]
        is_last = row == len(rows) - 1
        for column, method in enumerate(columns):
            axes = grid[row, column]
            xlabel = "layer" if is_last and not names else ""
            set_style(axes, method if row == 0 else "", xlabel, quantity if column == 0 else "")
            _plot_boxes(axes, boxes[column], COLORS[column % len(COLORS)])
            number_layers(axes, names)
            axes.tick_params(labelbottom=is_last)
        _set_scale(grid[row, 0], np.concatenate(boxes))
    write_caption(figure, CAPTION)
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
    figure, grid = panels_in_rows(len(panels), bottom=0.55 + CAPTION_HEIGHT, sharey=True)
    for axes, (title, boxes) in zip(grid, panels.items(), strict=True):
        set_style(axes, shortened(title, MAX_TITLE_LENGTH), "unit", "activation" if axes in grid[::3] else "")
        _plot_boxes(axes, _checked(boxes)[:MAX_UNITS], COLORS[0])
        number_layers(axes, ())
        show_exponent(axes)
    write_caption(figure, CAPTION)
    return figure


def _set_scale(axes: Axes, boxes: NDArray[np.float64]) -> None:
    """Set the scale of a row of panels, which share their y axis."""
    finite = boxes[np.isfinite(boxes).all(axis=1)]
    sizes = abs(finite).max(axis=1, initial=0.0)
    sizes = sizes[sizes > 0]
    if len(sizes) == 0 or sizes.max() <= 10 * sizes.min():
        show_exponent(axes)
        return
    lowest = int(np.floor(np.log10(max(sizes.min(), sizes.max() / 10**MAX_DECADES))))
    highest = int(np.ceil(np.log10(sizes.max())))
    exponents = range(highest, lowest - 1, -max(1, (highest - lowest) // 3))
    powers = [10.0**exponent for exponent in exponents]
    axes.set_yscale("symlog", linthresh=10.0**lowest)
    axes.set_ylim(1.5 * min(finite.min(), 0), 1.5 * max(finite.max(), 0))
    below = [-power for power in powers if finite.min() < 0]
    axes.set_yticks([*below, 0, *(power for power in powers if finite.max() > 0)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(power_of_ten)


def _plot_boxes(axes: Axes, values: NDArray[np.float64], color: str) -> None:
    """Plot boxes as three collections: ``Axes.bxp`` makes six artists per box, and takes a second for 100 boxes."""
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


def _checked(boxes: Boxes) -> NDArray[np.float64]:
    values = torch.as_tensor(boxes).detach().cpu().double().numpy()
    if values.ndim != 2 or values.shape[1] != len(QUANTILES):
        raise ValueError(f"box plots need {len(QUANTILES)} quantiles per box, got data of shape {values.shape}.")
    return values
