"""The figures of the LCW paper and of the monitor: recorded numbers in, matplotlib figures out."""

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
