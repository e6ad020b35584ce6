"""The figure of a pre-flight check: q and gradient growth against depth, over many draws of the weights."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lcw_lightning.plotting.panels import (
    CAPTION_HEIGHT,
    COLORS,
    TICK_SIZE,
    height_of_names,
    number_layers,
    panels_in_rows,
    set_style,
    short_names,
    write_caption,
)

__all__ = ["plot_preflight", "quantile"]


def plot_preflight(q: Mapping[str, Tensor], growth: Mapping[str, Tensor], layers: Sequence[str] = ()) -> Figure:
    """Plot the median over draws as a line and from it to the 90th percentile as a band; infinity is cut at the edge.

    Args:
        q: Mean square of the preactivations, shape ``(draws, layers)``, by label; the label is ``""`` if there is
            only one network.
        growth: Decades by which gradients grow from the last layer back to each, of the same shapes.
        layers: Names of the layers, which stand on the axis if there are at most 12; else the layers are numbered.

    Example:
        >>> import torch
        >>> figure = plot_preflight({"": torch.ones(20, 5)}, {"": torch.randn(20, 5)})
        >>> [axes.get_title() for axes in figure.axes]
        ['mean square q of z', 'growth of the gradient']
    """
    names = short_names(layers)
    figure, (left, right) = panels_in_rows(2, bottom=height_of_names(names) + CAPTION_HEIGHT)
    xlabel = "" if names else "hidden layer"
    set_style(left, "mean square q of z", xlabel, "log10 of q")
    set_style(right, "growth of the gradient", xlabel, "decades (last layer: 0)")
    with np.errstate(divide="ignore"):
        _plot_bands(left, {label: np.log10(values.numpy()) for label, values in q.items()})
    _plot_bands(right, {label: values.numpy() for label, values in growth.items()})
    for axes in (left, right):
        number_layers(axes, names)
    draws = next((len(values) for values in q.values()), 0)
    write_caption(figure, f"line: median of {draws} draws of the weights; band: up to their 90th percentile")
    if set(q) != {""}:
        right.legend(fontsize=TICK_SIZE, frameon=False)
    return figure


def _plot_bands(axes: Axes, lines: Mapping[str, NDArray[np.float64]]) -> None:
    bands = {
        label: np.array([[quantile(layer, fraction) for layer in values.T] for fraction in (0.5, 0.9)])
        for label, values in lines.items()
    }
    every = np.concatenate([band.ravel() for band in bands.values()])
    finite = every[np.isfinite(every)]
    low, high = min(finite.min(initial=0.0), -1.0), max(finite.max(initial=0.0), 1.0)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for (label, band), color in zip(bands.items(), cycle(COLORS), strict=False):
        median, most = np.clip(band, *axes.get_ylim())
        numbers = np.arange(1, len(median) + 1)
        axes.fill_between(numbers, median, most, color=color, alpha=0.25, linewidth=0)
        axes.plot(numbers, median, color=color, linewidth=1.5, label=label)


def quantile(values: Tensor | NDArray[np.float64], fraction: float) -> float:
    """Return a quantile, interpolated linearly; infinite numbers are allowed and ordered as numbers.

    Example:
        >>> quantile(np.array([3.0, np.inf, 1.0]), 0.5), quantile(np.array([1.0, np.inf]), 0.5)
        (3.0, inf)
    """
    ordered: list[float] = sorted(values.tolist())
    place = fraction * (len(ordered) - 1)
    below = math.floor(place)
    weight = place - below
    if weight == 0 or ordered[below] == ordered[below + 1]:
        return ordered[below]  # here torch.quantile computes zero times infinity, which is NaN
    between = (1 - weight) * ordered[below] + weight * ordered[below + 1]
    return math.inf if math.isnan(between) else between
