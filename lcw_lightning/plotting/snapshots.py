"""All figures of one snapshot of a network, or of several networks side by side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lcw_lightning.plotting.boxes import QUANTILES, plot_boxes_by_layer, plot_boxes_by_unit, quantiles
from lcw_lightning.plotting.depth import Scale, plot_against_depth

__all__ = ["Described", "plot_snapshots"]

ROWS = {"preactivation": "preactivation z", "preactivation_gradient": "gradient dL/dz"}


class Described(Protocol):
    """What figures show of a statistic beside its numbers."""

    @property
    def value(self) -> str:
        """Its name."""

    @property
    def label(self) -> str:
        """Of the y axis."""

    @property
    def scale(self) -> Scale:
        """Of the y axis."""


def plot_snapshots(
    statistics: Mapping[str, Mapping[str, Mapping[str, float]]],
    values: Mapping[str, Mapping[tuple[str, Any], Tensor]],
    described: Iterable[Described],
) -> dict[str, Figure]:
    """Plot every statistic against depth, box plots by layer, and box plots by unit.

    Args:
        statistics: Numbers by name, by layer from input to output, by label; the label is ``""`` if there is only one
            snapshot.
        values: Samples of the values of ``(layer, quantity)`` by label: of ``preactivation`` and
            ``preactivation_gradient`` with shape ``(values,)``, of ``input``, for some layers, ``(units, values)``.
        described: The statistics to plot, each if there are numbers of it.

    Returns:
        Figures by name: ``depth/statistic``, ``boxes/by_layer``, and ``units/layer``, or ``units_label/layer``.

    Example:
        >>> from types import SimpleNamespace
        >>> statistics = {"": {"first": {"shift_ratio": 2.0}, "second": {"shift_ratio": 3.0}}}
        >>> values = {"": {("first", "preactivation"): torch.randn(100)}}
        >>> shift = SimpleNamespace(value="shift_ratio", label="0 = no activation shift", scale="logarithmic")
        >>> list(plot_snapshots(statistics, values, [shift]))
        ['depth/shift_ratio', 'boxes/by_layer']
    """
    layers = list(dict.fromkeys(layer for rows in statistics.values() for layer in rows))
    if not layers:
        return {}
    return {**_depth(statistics, described, layers), **_by_layer(values, layers), **_by_unit(values, layers)}


def _depth(
    statistics: Mapping[str, Mapping[str, Mapping[str, float]]],
    described: Iterable[Described],
    layers: Sequence[str],
) -> dict[str, Figure]:
    seen = {name for rows in statistics.values() for row in rows.values() for name in row}
    figures = {}
    for statistic in described:
        if (name := statistic.value) in seen:
            lines = {
                label: [rows.get(layer, {}).get(name, torch.nan) for layer in layers]
                for label, rows in statistics.items()
            }
            figures[f"depth/{name}"] = plot_against_depth(name, lines, layers, statistic.label, statistic.scale)
    return figures


def _by_layer(values: Mapping[str, Mapping[tuple[str, Any], Tensor]], layers: Sequence[str]) -> dict[str, Figure]:
    seen = {quantity for samples in values.values() for _, quantity in samples}
    columns = {
        label: {
            row: _boxes([samples.get((layer, quantity)) for layer in layers])
            for quantity, row in ROWS.items()
            if quantity in seen
        }
        for label, samples in values.items()
    }
    return {"boxes/by_layer": plot_boxes_by_layer(columns, layers)} if any(columns.values()) else {}


def _by_unit(values: Mapping[str, Mapping[tuple[str, Any], Tensor]], layers: Sequence[str]) -> dict[str, Figure]:
    return {
        f"units{label and '_'}{label}/{layer}": plot_boxes_by_unit({layer: quantiles(sample)})
        for label, samples in values.items()
        for (layer, quantity), sample in samples.items()
        if quantity == "input" and layer in layers
    }


def _boxes(samples: list[Tensor | None]) -> Tensor:
    unseen = torch.full((len(QUANTILES),), torch.nan)
    return torch.stack([unseen if sample is None else quantiles(sample.cpu()).float() for sample in samples])
