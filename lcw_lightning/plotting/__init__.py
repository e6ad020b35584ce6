"""The figures of the LCW paper, of the monitor and of the analysis: recorded numbers in, matplotlib figures out.

Stands on torch and matplotlib. It sees no network and writes no file: loggers and reports take its figures.
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
