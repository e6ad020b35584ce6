"""Panels of a fixed size, one style, and images: the parts that all figures share.

Figures are made without pyplot, so that they are freed with the last reference to them. Sizes suit the image cards of
TensorBoard. Margins are fixed, because computing a layout would take longer than rendering the figure.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

__all__ = [
    "CAPTION_HEIGHT",
    "CARD_PANEL_WIDTH",
    "COLORS",
    "TICK_SIZE",
    "height_of_names",
    "number_layers",
    "panel_grid",
    "panels_in_rows",
    "power_of_ten",
    "rgb_array",
    "set_style",
    "short_names",
    "shortened",
    "show_exponent",
    "write_caption",
]

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TICK_SIZE = 9
CAPTION_HEIGHT = 0.2  # inches
PANELS_IN_A_ROW = 3
CARD_PANEL_WIDTH = 2.5
"""Inches of a panel alone: with its margins 350 pixels, a card of TensorBoard, which drops pixels of wider figures."""

MAX_NAMES = 12  # more layers are numbered
MAX_NAME_LENGTH = 16
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def panel_grid(
    rows: int,
    columns: int,
    width: float,
    height: float,
    bottom: float = 0.55,
    right: float = 0.15,
    sharey: bool | Literal["row"] = False,
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


def panels_in_rows(
    count: int, bottom: float = 0.55, right: float = 0.15, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure and ``count`` axes, three in a row."""
    columns = min(count, PANELS_IN_A_ROW)
    width = CARD_PANEL_WIDTH if count == 1 else 2.2
    figure, grid = panel_grid(ceil(count / columns), columns, width, 1.9, bottom, right, sharey)
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


def short_names(layers: Sequence[str]) -> list[str]:
    """Return the layers' names without the parts that all share; none if there are more layers than fit on an axis.

    Example:
        >>> short_names(["network.first.linear", "network.output"])
        ['first.linear', 'output']
    """
    if not 0 < len(layers) <= MAX_NAMES:
        return []
    paths = [layer.split(".") for layer in layers]
    shared = 0
    while all(len(path) > shared + 1 for path in paths) and len({path[shared] for path in paths}) == 1:
        shared += 1
    return [shortened(".".join(path[shared:]), MAX_NAME_LENGTH) for path in paths]


def height_of_names(names: Sequence[str]) -> float:
    """Return the inches below axes that the names of layers take, or their numbers where there are no names."""
    return 0.25 + 0.055 * max(map(len, names)) if names else 0.55


def number_layers(axes: Axes, names: Sequence[str]) -> None:
    """Put the names of layers 1, 2, ... below the axes, or numbers where there are no names."""
    if names:
        numbers = range(1, len(names) + 1)
        axes.set_xticks(numbers, names, rotation=45, rotation_mode="anchor", horizontalalignment="right")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))


def write_caption(figure: Figure, text: str) -> None:
    """Write a line at the lower edge of a figure, which says how to read it."""
    figure.text(0.5, 0.02, text, fontsize=8, color="0.3", horizontalalignment="center")


def power_of_ten(value: float, _: object = None) -> str:
    """Return a power of ten, its negative, or zero as the label of a tick.

    matplotlib's own formatter parses TeX, which takes longer than everything else in a figure.

    Example:
        >>> power_of_ten(1e-3), power_of_ten(0.0)
        ('10⁻³', '0')
    """
    if value == 0:
        return "0"
    sign = "" if value > 0 else "\N{MINUS SIGN}"
    return f"{sign}10{str(round(np.log10(abs(value)))).translate(SUPERSCRIPTS)}"


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
