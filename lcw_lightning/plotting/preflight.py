"""The figure of a pre-flight check: q and gradient growth against depth, over many draws of the weights."""

import math
from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from lcw_lightning.plotting.panels import COLORS, TICK_SIZE, panels_in_rows, set_style

__all__ = ["plot_preflight", "quantile"]


def plot_preflight(q: Mapping[str, Tensor], growth: Mapping[str, Tensor]) -> Figure:
    """Plot the median over draws as a line and the 10 % to 90 % quantiles as a band; infinity is cut at the edge.

    Args:
        q: Mean square of the preactivations, shape ``(draws, layers)``, by label; the label is ``""`` if there is
            only one network.
        growth: Decades by which gradients grow from the last layer back to each, of the same shapes.

    Example:
        >>> import torch
        >>> figure = plot_preflight({"": torch.ones(20, 5)}, {"": torch.randn(20, 5)})
        >>> [axes.get_title() for axes in figure.axes]
        ['q', 'gradient growth']
    """
    figure, (left, right) = panels_in_rows(2)
    set_style(left, "q", "hidden layer", "log10 of the mean of z²")
    set_style(right, "gradient growth", "hidden layer", "decades")
    with np.errstate(divide="ignore"):
        _plot_bands(left, {label: np.log10(values.numpy()) for label, values in q.items()})
    _plot_bands(right, {label: values.numpy() for label, values in growth.items()})
    if set(q) != {""}:
        right.legend(fontsize=TICK_SIZE, frameon=False)
    return figure


def _plot_bands(axes: Axes, lines: Mapping[str, NDArray[np.float64]]) -> None:
    bands = {
        label: np.array([[quantile(layer, fraction) for layer in values.T] for fraction in (0.1, 0.5, 0.9)])
        for label, values in lines.items()
    }
    every = np.concatenate([band.ravel() for band in bands.values()])
    finite = every[np.isfinite(every)]
    low, high = min(finite.min(initial=0.0), -1.0), max(finite.max(initial=0.0), 1.0)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    for (label, band), color in zip(bands.items(), cycle(COLORS), strict=False):
        least, median, most = np.clip(band, *axes.get_ylim())
        numbers = np.arange(1, len(median) + 1)
        axes.fill_between(numbers, least, most, color=color, alpha=0.25, linewidth=0)
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
