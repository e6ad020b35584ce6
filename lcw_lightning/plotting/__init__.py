"""Plotting: the figures of the papers, the monitor and the reports.

Takes numbers and returns matplotlib figures. It imports no other part of the package.
"""

from lcw_lightning.plotting.boxes import QUANTILES, Boxes, plot_boxes_by_layer, plot_boxes_by_unit, quantiles
from lcw_lightning.plotting.depth import plot_against_depth
from lcw_lightning.plotting.heat_maps import plot_heat_maps
from lcw_lightning.plotting.panels import rgb_array

__all__ = [
    "QUANTILES",
    "Boxes",
    "plot_against_depth",
    "plot_boxes_by_layer",
    "plot_boxes_by_unit",
    "plot_heat_maps",
    "quantiles",
    "rgb_array",
]
