"""Samples of the values of layers' inputs, outputs and gradients for box plots, as a torchmetrics Metric."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lcw_lightning.observation.hooks import Quantity
from lcw_lightning.observation.moments import split_channels

__all__ = ["ValueSamples", "spread"]

NUM_VALUES = 4096
NUM_UNITS = 20
NUM_VALUES_OF_UNIT = 256
_GOLDEN_RATIO = 0.6180339887498949


class ValueSamples(Metric):
    """Samples of the values of every layer's z and dL/dz, and of the first 20 channels of the input of three layers.

    Under DDP they come from all ranks. The values of a layer that was not called are NaN.

    Args:
        layers: Names of the layers.

    Example:
        >>> samples = ValueSamples(["first"])
        >>> part = samples.part("first", "preactivation", torch.randn(128, 256), channel_dim=-1)
        >>> samples.update({("first", "preactivation"): [part]})
        >>> samples.compute()["first", "preactivation"].shape
        torch.Size([4096])
    """

    full_state_update = False
    values: Tensor
    units: Tensor

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        quantities: tuple[Quantity, ...] = ("preactivation", "preactivation_gradient")
        self.keys_of_values = [(name, quantity) for quantity in quantities for name in layers]
        last = len(layers) - 1
        self.unit_layers = [layers[place] for place in sorted({min(1, last), (last + 1) // 2, last})]
        shapes = {
            "values": (len(self.keys_of_values), NUM_VALUES),
            "units": (len(self.unit_layers), NUM_UNITS, NUM_VALUES_OF_UNIT),
        }
        for state, shape in shapes.items():
            # If there is no reduction, torchmetrics stacks the states of all ranks.
            self.add_state(state, torch.full(shape, torch.nan), dist_reduce_fx=None)

    def part(self, name: str, quantity: Quantity, values: Tensor, channel_dim: int) -> Tensor | None:
        """Return a copy of the part of one call's tensor that :meth:`update` needs, or None if it needs none of it."""
        if not values.numel():  # such as the input of an expert to which no sample is routed
            return None
        if (name, quantity) in self.keys_of_values:
            return spread(values.flatten(), NUM_VALUES)
        if quantity == "input" and name in self.unit_layers:
            units = split_channels(values, channel_dim)[0].movedim(channel_dim, 0)[:NUM_UNITS]
            return spread(units.flatten(1), NUM_VALUES_OF_UNIT)
        return None

    def update(self, seen: Mapping[tuple[str, Quantity], Sequence[Tensor]]) -> None:
        """Add the :meth:`part` of every call."""
        for row, key in enumerate(self.keys_of_values):
            if key in seen:
                self.values[row] = spread(torch.cat(list(seen[key])), NUM_VALUES)
        for row, name in enumerate(self.unit_layers):
            if (name, "input") in seen:
                units = torch.cat(list(seen[name, "input"]), dim=1)
                self.units[row, : len(units)] = spread(units, NUM_VALUES_OF_UNIT)

    def compute(self) -> dict[tuple[str, Quantity], Tensor]:
        """Return the sample of each layer and quantity, shape ``(values,)``, for an input ``(units, values)``."""
        found: dict[tuple[str, Quantity], Tensor] = {}
        for row, key in enumerate(self.keys_of_values):
            found[key] = _of_ranks_that_saw(self.values.view(-1, *self.values.shape[-2:])[:, row]).flatten()
        for row, name in enumerate(self.unit_layers):
            units = _of_ranks_that_saw(self.units.view(-1, *self.units.shape[-3:])[:, row])
            found[name, "input"] = units.transpose(0, 1).flatten(1)
        return found


def spread(values: Tensor, count: int) -> Tensor:
    """Return ``count`` of the values along the last dimension, as a copy.

    Their places are multiples of the golden ratio, so that they follow no stride of units or positions. If there are
    fewer values, they are repeated.

    Example:
        >>> spread(torch.arange(1000.0), 8).sort().values.tolist()
        [0.0, 90.0, 236.0, 326.0, 472.0, 618.0, 708.0, 854.0]
    """
    number = values.shape[-1]
    places = torch.arange(count) % number
    if number > count:
        places = (torch.arange(count, dtype=torch.float64) * _GOLDEN_RATIO % 1 * number).long()
    return values[..., places.to(values.device)].float()


def _of_ranks_that_saw(samples: Tensor) -> Tensor:
    seen = ~samples.flatten(1).isnan().all(dim=1)
    return samples[seen] if seen.any() else samples
