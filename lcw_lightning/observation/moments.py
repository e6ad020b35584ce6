"""Sums over samples of layers' inputs, outputs and gradients, channel by channel, as a torchmetrics Metric."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lcw_lightning.observation.hooks import Quantity
from lcw_lightning.observation.observed_layers import ObservedLayer

__all__ = ["ChannelSums", "NetworkMoments", "Series", "split_channels"]

Series = Literal[Quantity, "projection", "gates"]
"""What is summed: the observed quantities, w_i a for each weight vector that multiplies the input, and gates' z."""

_LARGEST_COPY = 2**20  # numbers that are copied to float64 at a time


class ChannelSums(NamedTuple):
    """Sums over samples and positions, one per channel, in float64.

    In float64 the square of a vanished gradient does not underflow, and the variance beside a large shift is not lost
    to cancellation.
    """

    number: int
    """Number of values per channel."""
    total: Tensor
    squares: Tensor
    zeros: Tensor
    """Number of exact zeros."""

    @classmethod
    def of(cls, values: Tensor, num_channels: int, channel_dim: int, count_zeros: bool = True) -> "ChannelSums":
        """Return the sums of one tensor. Those of the two directions of a bidirectional layer are pooled.

        Example:
            >>> ChannelSums.of(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), num_channels=2, channel_dim=-1).total.tolist()
            [0.0, 4.0]
        """
        width = values.shape[-1]
        if channel_dim == -1 and width != num_channels and width % num_channels == 0:  # otherwise the layer raises
            values = torch.unflatten(values, -1, (-1, num_channels))
        values, others = split_channels(values, channel_dim)
        longest = max(others, key=lambda dim: values.shape[dim])
        if values.numel() > _LARGEST_COPY and values.shape[longest] > 1:
            halves = values.chunk(2, longest)
            first, second = (cls.of(half, num_channels, channel_dim, count_zeros) for half in halves)
            return first.plus(second)
        precise = values.to(torch.float64, copy=True)
        total, squares = _sum(precise, others), _sum(precise.square_(), others)
        zeros = torch.zeros_like(total)
        if count_zeros:  # as numbers, because torch is slow with booleans
            zeros = _sum(torch.eq(values, 0, out=torch.empty_like(values)).double(), others)
        return cls(values.numel() // num_channels, total, squares, zeros)

    def plus(self, other: "ChannelSums") -> "ChannelSums":
        """Return the sums over the values of both."""
        total, squares, zeros = (one + another for one, another in zip(self[1:], other[1:], strict=True))
        return ChannelSums(self.number + other.number, total, squares, zeros)


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
        widths = [_width(layers[name], series) for name, series in keys]
        ends = list(accumulate(widths))
        self.columns = {key: slice(end - width, end) for key, end, width in zip(keys, ends, widths, strict=True)}
        self.register_buffer("widths", torch.tensor(widths), persistent=False)
        self.add_state("totals", torch.zeros(4, sum(widths), dtype=torch.float64), dist_reduce_fx="sum")

    def columns_of(self, series: Series) -> slice:
        """Return the columns of a series: those of its layers are adjacent."""
        parts = [columns for (_, other), columns in self.columns.items() if other == series]
        return slice(parts[0].start, parts[-1].stop)

    def update(self, sums: Mapping[tuple[str, Series], ChannelSums]) -> None:
        """Add sums, by layer and series."""
        unseen = self.totals.new_zeros(self.totals.shape[1])
        counts = torch.tensor([sums[key].number if key in sums else 0 for key in self.columns], device=unseen.device)
        rows = [
            torch.cat([getattr(sums[key], row) if key in sums else unseen[cols] for key, cols in self.columns.items()])
            for row in ("total", "squares", "zeros")
        ]
        self.totals += torch.stack((counts.repeat_interleave(self.widths), *rows))

    def compute(self) -> Tensor:
        """Return count, mean, variance and fraction of zeros of each channel, shape ``(4, columns)``.

        For channels that were not observed the count is zero and the others are NaN.
        """
        count, total, squares, zeros = self.totals
        mean = total / count
        return torch.stack((count, mean, (squares / count - mean.square()).clamp(min=0), zeros / count))

    def mean_by_layer(self, channels: Tensor) -> dict[Series, Tensor]:
        """Return the mean over the channels of each layer, by series, shape ``(layers,)``."""
        means = torch.segment_reduce(channels, "mean", lengths=self.widths)
        return dict(zip(get_args(Series), means.view(len(get_args(Series)), -1), strict=True))


def _sum(values: Tensor, dims: list[int]) -> Tensor:
    """Return the sum over all dimensions except one."""
    if values.dim() == 2 and dims == [0]:
        # A reduction would start torch's threads, which takes longer than summing a batch of vectors.
        return (values.new_ones(1, len(values)) @ values)[0]
    return values.sum(dims)


def _width(layer: ObservedLayer, series: Series) -> int:
    if series == "projection":
        return layer.num_projections
    if series == "gates":
        return layer.gate_channels
    return layer.out_channels if series.startswith("preactivation") else layer.in_channels


def split_channels(values: Tensor, channel_dim: int) -> tuple[Tensor, list[int]]:
    """Return the tensor, with a batch dimension if it was a vector of channels, and all dimensions except the channels.

    Example:
        >>> [split_channels(torch.zeros(shape), dim)[1] for shape, dim in (((2, 3, 5, 5), -3), ((3,), -1))]
        [[0, 2, 3], [0]]
    """
    values = values.unsqueeze(0) if values.dim() == 1 else values
    return values, [dim for dim in range(values.dim()) if dim != values.dim() + channel_dim]
