"""All figures of one snapshot of a network, or of several side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lcw_lightning.plotting.boxes import QUANTILES, plot_boxes_by_layer, plot_boxes_by_unit, quantiles
from lcw_lightning.plotting.depth import plot_against_depth

__all__ = ["plot_snapshots"]

ROWS = {"preactivation": "z", "preactivation_gradient": "dL/dz"}


def plot_snapshots(
    statistics: Mapping[str, Mapping[str, Mapping[str, float]]], values: Mapping[str, Mapping[tuple[str, Any], Tensor]]
) -> dict[str, Figure]:
    """Draw every statistic against depth, box plots by layer, and box plots by unit.

    Args:
        statistics: Numbers by name, by layer from input to output, by label; ``""`` labels a snapshot that is alone.
        values: Samples of the values of ``(layer, quantity)`` by label: of ``preactivation`` and
            ``preactivation_gradient`` shape ``(values,)``, of ``input``, for some layers, ``(units, values)``.

    Returns:
        Figures by name: ``depth/statistic``, ``boxes/by_layer``, and ``units/layer``, or ``units_label/layer``.

    Example:
        >>> statistics = {"": {"first": {"shift_ratio": 2.0}, "second": {"shift_ratio": 3.0}}}
        >>> list(plot_snapshots(statistics, {"": {("first", "preactivation"): torch.randn(100)}}))
        ['depth/shift_ratio', 'boxes/by_layer']
    """
    layers = list(dict.fromkeys(layer for rows in statistics.values() for layer in rows))
    return {**_depth(statistics, layers), **_by_layer(values, layers), **_by_unit(values, layers)} if layers else {}


def _depth(statistics: Mapping[str, Mapping[str, Mapping[str, float]]], layers: Sequence[str]) -> dict[str, Figure]:
    names = dict.fromkeys(name for rows in statistics.values() for row in rows.values() for name in row)
    lines = {
        name: {
            label: [rows.get(layer, {}).get(name, torch.nan) for layer in layers] for label, rows in statistics.items()
        }
        for name in names
    }
    return {f"depth/{name}": plot_against_depth(name, by_label, layers) for name, by_label in lines.items()}


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
    return {"boxes/by_layer": plot_boxes_by_layer(columns)} if any(columns.values()) else {}


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
