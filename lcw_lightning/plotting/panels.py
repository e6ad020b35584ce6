"""Panels of a fixed size, one style, and images: the parts that all figures share.

Figures are made without pyplot, so that they are freed with the last reference to them. Sizes suit the image cards of
TensorBoard. Margins are fixed, because computing a layout would take longer than rendering the figure.
"""

from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = [
    "COLORS",
    "TICK_SIZE",
    "panel_grid",
    "panels_in_rows",
    "rgb_array",
    "set_style",
    "shortened",
    "show_exponent",
]

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TICK_SIZE = 9
PANELS_IN_A_ROW = 3


def panel_grid(
    rows: int,
    columns: int,
    width: float,
    height: float,
    bottom: float = 0.55,
    right: float = 0.15,
    sharey: bool = False,
) -> tuple[Figure, Any]:
    """Return a figure and its array of axes, each of this width and height in inches."""
    left, top, between_columns, between_rows = 0.85, 0.35, 0.65, 0.75
    total_width = left + columns * width + (columns - 1) * between_columns + right
    total_height = bottom + rows * height + (rows - 1) * between_rows + top
    margins = {
        "left": left / total_width,
        "right": 1 - right / total_width,
        "bottom": bottom / total_height,
        "top": 1 - top / total_height,
        "wspace": between_columns / width,
        "hspace": between_rows / height,
    }
    figure = Figure(figsize=(total_width, total_height), dpi=100, facecolor="white")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey, gridspec_kw=margins)


def panels_in_rows(count: int, right: float = 0.15, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure and ``count`` axes, three in a row."""
    columns = min(count, PANELS_IN_A_ROW)
    figure, grid = panel_grid(ceil(count / columns), columns, width=2.2, height=1.9, right=right, sharey=sharey)
    for unused in grid.flat[count:]:
        unused.remove()
    return figure, list(grid.flat[:count])


def shortened(name: str, length: int) -> str:
    """Return the end of a layer's name, which is more specific than its start.

    Example:
        >>> shortened("network.hidden.7.linear", length=10)
        '….7.linear'
    """
    return name if len(name) <= length else f"…{name[1 - length :]}"


def set_style(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Set title, labels and style of axes, in sizes that can be read without zooming."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel, fontsize=10)
    axes.set_ylabel(ylabel, fontsize=10)
    axes.tick_params(labelsize=TICK_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def show_exponent(axes: Axes) -> None:
    """Put one power of ten above the y axis if its numbers are small or large."""
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useOffset=False)
    axes.yaxis.get_offset_text().set_fontsize(TICK_SIZE)


def rgb_array(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure as an array ``(height, width, 3)``, for loggers that take images.

    Example:
        >>> rgb_array(Figure(figsize=(3, 2), dpi=100)).shape
        (200, 300, 3)
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
