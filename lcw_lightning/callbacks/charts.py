"""Charts for TensorBoard's custom scalars: what a person reads first, and all layers in one chart a statistic."""

import math
from collections.abc import Iterable, Mapping
from statistics import median

from lcw_lightning.observation.statistics import Statistic

__all__ = ["Charts", "bands", "charts"]

Charts = dict[str, dict[str, tuple[str, list[str]]]]
"""By category and title: ``Multiline`` with the beginnings of tags, or ``Margin`` with the tags of value and limits."""

PARTS = ("median", "lowest", "highest")


def bands(statistics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the median over layers, the lowest and the highest value of each statistic, by tag.

    TensorBoard's custom scalars have no logarithmic axis, so statistics that may span decades are given as their
    logarithms to base 10, which their tags say. Values that are not finite are left out, and so are zeros that have no
    logarithm.

    Example:
        >>> found = bands({"0": {"shift_ratio": 0.01}, "2": {"shift_ratio": 1.0}, "4": {"shift_ratio": 100.0}})
        >>> found["band/log10_shift_ratio/median"], found["band/log10_shift_ratio/lowest"]
        (0.0, -2.0)
    """
    found: dict[str, float] = {}
    for statistic in Statistic:
        values = [row[statistic] for row in statistics.values() if math.isfinite(row.get(statistic, math.nan))]
        if statistic.scale == "logarithmic":
            values = [math.log10(value) for value in values if value > 0]
        if values:
            found |= dict(zip(_tags(statistic), (median(values), min(values), max(values)), strict=True))
    return found


def charts(first: Iterable[str], statistics: Iterable[str]) -> Charts:
    """Return the layout: a chart for each number that is read first, then the band of each statistic, then its lines.

    Bands and lines are categories of their own, because within one TensorBoard shows all lines before all bands. It
    shows bands from the last to the first, so they are given in that order.

    Args:
        first: Tags of the numbers that are read first.
        statistics: Names of the statistics that are logged as ``statistic/layer``.
    """
    names = set(statistics)
    shown = [statistic for statistic in Statistic if statistic.value in names]
    return {
        "read first": {tag: ("Multiline", [tag]) for tag in first},
        "median, lowest and highest layer": {_scaled(known): ("Margin", _tags(known)) for known in reversed(shown)},
        "a line a layer": {known.value: ("Multiline", [f"{known.value}/"]) for known in shown},
    }


def _scaled(statistic: Statistic) -> str:
    return f"{'log10_' if statistic.scale == 'logarithmic' else ''}{statistic.value}"


def _tags(statistic: Statistic) -> list[str]:
    return [f"band/{_scaled(statistic)}/{part}" for part in PARTS]
