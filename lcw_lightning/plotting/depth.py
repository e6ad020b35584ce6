"""One statistic of all layers against depth."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from lcw_lightning.plotting.panels import (
    CARD_PANEL_WIDTH,
    COLORS,
    TICK_SIZE,
    height_of_names,
    number_layers,
    panel_grid,
    power_of_ten,
    set_style,
    short_names,
    show_exponent,
)

__all__ = ["Scale", "plot_against_depth"]

Scale = Literal["logarithmic", "linear", "fraction"]


def plot_against_depth(
    statistic: str,
    lines: Mapping[str, Sequence[float]],
    layers: Sequence[str],
    label: str = "",
    scale: Scale = "logarithmic",
) -> Figure:
    """Plot one statistic of all layers against the layers' numbers, with one line per label.

    NaN leaves a gap; infinity, and zero on a logarithmic scale, become triangles at the edge.

    Args:
        statistic: Its name, such as ``shift_ratio``.
        lines: Numbers of all layers from input to output, by label; the label is ``""`` if there is only one line.
        layers: Their names.
        label: Of the y axis.
        scale: ``logarithmic`` is used for positive numbers that span more than a decade, and is linear for others;
            ``fraction`` is linear and goes to 1.

    Raises:
        ValueError: A line has more or fewer numbers than there are layers.

    Example:
        >>> lines = {"plain": [3.1, 22.0, 80.5], "LCW": [0.4, 0.1, 0.1]}
        >>> figure = plot_against_depth("shift_ratio", lines, ["first", "second", "output"])
        >>> figure.axes[0].get_yscale()
        'log'
    """
    values = {name: np.array(line, dtype=float) for name, line in lines.items()}
    for name, line in values.items():
        if len(line) != len(layers):
            raise ValueError(f"{statistic} needs {len(layers)} numbers, one per layer; line {name!r} has {len(line)}.")
    names = short_names(layers)
    bottom = height_of_names(names)
    figure, ((axes,),) = panel_grid(1, 1, width=CARD_PANEL_WIDTH, height=2.35 - bottom, bottom=bottom)
    set_style(axes, statistic.replace("_", " "), "" if names else "layer", label)
    number_layers(axes, names)
    axes.set_xlim(0.5, len(layers) + 0.5)
    _set_scale(axes, scale, np.concatenate(list(values.values())))
    for (name, line), color in zip(values.items(), cycle(COLORS), strict=False):
        _plot_line(axes, line, color, name)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=TICK_SIZE, frameon=False)
    return figure


def _set_scale(axes: Axes, scale: Scale, values: NDArray[np.float64]) -> None:
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    spans_decades = len(positive) > 0 and positive.max() > 10 * positive.min()
    if spans_decades and finite.min() >= 0 and scale == "logarithmic":
        # Whole decades, so that at least two ticks carry a number.
        lowest, highest = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))
        axes.set(yscale="log", ylim=(0.7 * 10**lowest, 1.4 * 10**highest))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(power_of_ten)
        return
    lowest, highest = min(0.0, finite.min(initial=0.0)), max(0.0, finite.max(initial=0.0))
    if scale == "fraction" or lowest == highest:
        highest = 1.0
    margin = 0.05 * (highest - lowest)
    axes.set_ylim(lowest - margin, highest + margin)
    show_exponent(axes)


def _plot_line(axes: Axes, line: NDArray[np.float64], color: str, label: str) -> None:
    numbers = np.arange(1, len(line) + 1)
    zero = (line == 0) & (axes.get_yscale() == "log")
    shown = np.isfinite(line) & ~zero
    axes.plot(numbers, np.where(shown, line, np.nan), ".-", color=color, linewidth=1.5, markersize=6, label=label)
    for where, marker, height, name in (
        (np.isposinf(line), "^", 1.0, "infinite"),
        (np.isneginf(line), "v", 0.0, "-infinite"),
        (zero, "v", 0.0, "zero"),
    ):
        if where.any():
            heights = np.full(where.sum(), height)
            (marks,) = axes.plot(numbers[where], heights, marker, color=color, label=f"{label} {name}".strip())
            marks.set(transform=axes.get_xaxis_transform(), clip_on=False)
