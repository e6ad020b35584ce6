"""Sums over samples of layers' inputs, outputs and gradients, channel by channel, as a torchmetrics Metric."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lcw_lightning.observation.hooks import Quantity
from lcw_lightning.observation.observed_layers import ObservedLayer
from lcw_lightning.observation.scratch import Scratch

__all__ = ["ChannelSums", "NetworkMoments", "Series", "sizes_of", "split_channels"]

Series = Literal[Quantity, "projection", "gates"]
"""What is summed: the observed quantities, w_i a for each weight vector that multiplies the input, and gates' z."""

_LARGEST_COPY = 2**20  # numbers that are copied to float64 at a time
_LARGEST_CACHED = 2**17  # numbers whose copy stays in the cache of a CPU's core


class ChannelSums(NamedTuple):
    """Sums over samples and positions, one per channel, in float64.

    In float64 the square of a vanished gradient does not underflow, and the variance beside a large shift is not lost
    to cancellation.
    """

    number: int
    """Number of values per channel."""
    sums: Tensor
    """Of values, of their squares, and the number of exact zeros, shape ``(3, channels)``."""

    @property
    def total(self) -> Tensor:
        """Sum of the values."""
        return self.sums[0]

    @property
    def squares(self) -> Tensor:
        """Sum of their squares."""
        return self.sums[1]

    @property
    def zeros(self) -> Tensor:
        """Number of exact zeros."""
        return self.sums[2]

    @classmethod
    def of(
        cls,
        values: Tensor,
        num_channels: int,
        channel_dim: int,
        count_zeros: bool = True,
        scratch: Scratch | None = None,
    ) -> "ChannelSums":
        """Return the sums of one tensor. Those of the two directions of a bidirectional layer are pooled.

        Many sums of one step share their scratch memory.

        Example:
            >>> ChannelSums.of(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), num_channels=2, channel_dim=-1).total.tolist()
            [0.0, 4.0]
        """
        if channel_dim == -1 and values.shape[-1] % num_channels == 0:  # otherwise the layer raises
            values = values.reshape(-1, num_channels)
        values = values.unsqueeze(0) if values.dim() == 1 else values
        scratch = Scratch() if scratch is None else scratch
        if values.numel() > (min(_LARGEST_CACHED, _LARGEST_COPY) if values.is_cpu else _LARGEST_COPY):
            longest = max(split_channels(values, channel_dim)[1], key=values.shape.__getitem__)
            if values.shape[longest] > 1:
                halves = values.chunk(2, longest)
                first, second = (cls.of(half, num_channels, channel_dim, count_zeros, scratch) for half in halves)
                return first.plus(second)
        sums_of = _sums_of_rows if values.dim() == 2 and channel_dim == -1 else _sums_of_positions
        return cls(values.numel() // num_channels, sums_of(values, channel_dim, count_zeros, scratch))

    def plus(self, other: "ChannelSums") -> "ChannelSums":
        """Return the sums over the values of both."""
        return ChannelSums(self.number + other.number, self.sums + other.sums)


def _sums_of_rows(values: Tensor, _: int, count_zeros: bool, scratch: Scratch) -> Tensor:
    # By products, since a reduction would start torch's threads, which takes longer than summing a batch of vectors.
    precise = scratch.like(values, torch.float64).copy_(values)
    ones = scratch.ones(precise)
    total, squares = torch.mm(ones, precise), torch.mm(ones, precise.square_())
    # As float64, since torch is slow with booleans, and autocast rounds counts in float32.
    zeros = torch.mm(ones, torch.eq(values, 0, out=precise)) if count_zeros else torch.zeros_like(total)
    return torch.cat((total, squares, zeros))


def _sums_of_positions(values: Tensor, channel_dim: int, count_zeros: bool, scratch: Scratch) -> Tensor:
    values, others = split_channels(values, channel_dim)
    precise = scratch.like(values, torch.float64).copy_(values)
    total, squares = precise.sum(others), precise.square_().sum(others)
    zeros = torch.eq(values, 0, out=precise).sum(others) if count_zeros else torch.zeros_like(total)
    return torch.stack((total, squares, zeros))


class NetworkMoments(Metric):
    """The :class:`ChannelSums` of each channel of each layer.

    All sums are in one float64 tensor, so that under DDP one collective adds those of all ranks.

    Args:
        layers: By name.

    Example:
        >>> from torch import nn
        >>> from lcw_lightning.observation.observed_layers import observed_layers
        >>> moments = NetworkMoments(observed_layers(nn.Sequential(nn.Linear(2, 1))))
        >>> moments.update({("0", "input"): ChannelSums.of(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), 2, channel_dim=-1)})
        >>> moments.compute()[1, moments.columns["0", "input"]].tolist()
        [0.0, 2.0]
    """

    full_state_update = False
    totals: Tensor
    widths: Tensor

    def __init__(self, layers: Mapping[str, ObservedLayer]) -> None:
        super().__init__()
        keys = [(name, series) for series in get_args(Series) for name in layers]
        self.sizes = sizes_of(layers)
        widths = [self.sizes[name][series] for name, series in keys]
        self.first, self.last = (names := list(layers))[0], names[-1]
        ends = list(accumulate(widths))
        self.columns = {key: slice(end - width, end) for key, end, width in zip(keys, ends, widths, strict=True)}
        self.register_buffer("widths", torch.tensor(widths), persistent=False)
        self.add_state("totals", torch.zeros(4, sum(widths), dtype=torch.float64), dist_reduce_fx="sum")

    def columns_of(self, series: Series) -> slice:
        """Return the columns of a series: those of its layers are adjacent."""
        return slice(self.columns[self.first, series].start, self.columns[self.last, series].stop)

    def update(self, sums: Mapping[tuple[str, Series], ChannelSums]) -> None:
        """Add sums, by layer and series."""
        nothing = torch.zeros_like(self.totals[1:])
        parts = [sums[key] if key in sums else (0, nothing[:, columns]) for key, columns in self.columns.items()]
        numbers, parts_of_totals = zip(*parts, strict=True)
        self.totals[0] += torch.tensor(numbers, device=nothing.device).repeat_interleave(self.widths)
        self.totals[1:] += torch.cat(parts_of_totals, dim=1)

    def compute(self) -> Tensor:
        """Return count, mean, variance and fraction of zeros of each channel, shape ``(4, columns)``.

        For channels that were not observed the count is zero and the others are NaN.
        """
        found = self.totals / self.totals[0]
        count, mean, variance, _ = found
        count.copy_(self.totals[0])
        variance.sub_(mean.square()).clamp_(min=0)
        return found

    def mean_by_layer(self, channels: Tensor) -> dict[Series, Tensor]:
        """Return the mean over the channels of each layer, by series, shape ``(layers,)``."""
        return {series: self.layer_means(series, channels[self.columns_of(series)]) for series in get_args(Series)}

    def layer_means(self, series: Series, channels: Tensor) -> Tensor:
        """Return the mean over the channels of each layer, shape ``(layers,)``, of values for one series alone."""
        return torch.segment_reduce(channels, "mean", lengths=self.widths_of(series))

    def widths_of(self, series: Series) -> Tensor:
        """Return the number of columns of each layer in a series."""
        return self.widths.view(len(get_args(Series)), -1)[get_args(Series).index(series)]


def sizes_of(layers: Mapping[str, ObservedLayer]) -> dict[str, dict[Series, int]]:
    """Return how many channels each layer has in each series.

    Example:
        >>> from lcw_lightning.observation.observed_layers import observed_layers
        >>> sizes_of(observed_layers(torch.nn.Sequential(torch.nn.Linear(4, 3))))["0"]["input"]
        4
    """
    return {
        name: {
            **dict.fromkeys(("input", "input_gradient"), layer.in_channels),
            **dict.fromkeys(("preactivation", "preactivation_gradient"), layer.out_channels),
            "projection": layer.num_projections,
            "gates": layer.gate_channels,
        }
        for name, layer in layers.items()
    }


def split_channels(values: Tensor, channel_dim: int) -> tuple[Tensor, list[int]]:
    """Return the tensor, with a batch dimension if it was a vector of channels, and all dimensions except the channels.

    Example:
        >>> [split_channels(torch.zeros(shape), dim)[1] for shape, dim in (((2, 3, 5, 5), -3), ((3,), -1))]
        [[0, 2, 3], [0]]
    """
    values = values.unsqueeze(0) if values.dim() == 1 else values
    return values, [dim for dim in range(values.dim()) if dim != values.dim() + channel_dim]
