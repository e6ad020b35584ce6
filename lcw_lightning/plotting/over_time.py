"""The gradient of recurrent layers against time."""

from collections.abc import Mapping, Sequence
from itertools import cycle, product

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from lcw_lightning.plotting.panels import (
    CAPTION_HEIGHT,
    COLORS,
    TICK_SIZE,
    panel_grid,
    power_of_ten,
    set_style,
    shortened,
    write_caption,
)

__all__ = ["plot_over_time"]

FEW = 3  # lines whose legend fits into the axes
LEGEND_WIDTH = 2.6  # inches
MAX_LABEL_LENGTH = 28


def plot_over_time(lines: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the norm of dL/dh_t against t on a logarithmic axis, with one line per label.

    Zeros become triangles at the lower edge; infinity and NaN leave a gap. The y axis spans whole decades.

    Args:
        lines: Norms from the first step to the last, by label.

    Example:
        >>> figure = plot_over_time({"plain": [1e-9, 1e-6, 1e-3], "LCW": [1e-3, 1e-3, 1e-3]})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['plain', 'LCW']
    """
    right = 0.15 if len(lines) <= FEW else LEGEND_WIDTH
    figure, ((axes,),) = panel_grid(1, 1, width=4.0, height=2.4, bottom=0.55 + CAPTION_HEIGHT, right=right)
    set_style(axes, "gradient of recurrent layers over time", "step t", "norm of dL/dh_t")
    values = {label: np.array(line, dtype=float) for label, line in lines.items()}
    positive = np.concatenate([line[np.isfinite(line) & (line > 0)] for line in values.values()])
    lowest, highest = (np.log10(positive.min()), np.log10(positive.max())) if len(positive) else (0.0, 0.0)
    axes.set(yscale="log", ylim=(0.7 * 10 ** np.floor(lowest), 1.4 * 10 ** max(np.ceil(highest), np.floor(lowest) + 1)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(power_of_ten)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    for (label, line), (dashes, color) in zip(values.items(), cycle(product(("-", "--", ":"), COLORS)), strict=False):
        name, steps, zero = shortened(label, MAX_LABEL_LENGTH), np.arange(1, len(line) + 1), line == 0
        shown = np.where(np.isfinite(line) & ~zero, line, np.nan)
        axes.plot(steps, shown, dashes, color=color, linewidth=1.5, label=name)
        if zero.any():
            (marks,) = axes.plot(steps[zero], np.zeros(zero.sum()), "v", color=color, markersize=4)
            marks.set(transform=axes.get_xaxis_transform(), clip_on=False, label=f"{name}: zero")
    beside = {} if len(lines) <= FEW else {"loc": "upper left", "bbox_to_anchor": (1.02, 1.05)}
    axes.legend(fontsize=TICK_SIZE, frameon=False, **beside)
    write_caption(figure, "L: loss; h_t: state after step t, of all samples; gradients go from right to left")
    return figure
