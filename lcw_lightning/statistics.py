"""Activation-shift statistics: one torchmetrics Metric that gathers moments, and pure functions that read them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lcw_lightning.layers import WeightRef, split_channels
from lcw_lightning.recording import Quantity
from lcw_lightning.theory.zero_sum import angle_degrees

__all__ = ["ChannelMoments", "NetworkMoments", "layer_statistics"]


class ChannelMoments(NamedTuple):
    """Moments of each channel over samples and positions, all of shape ``(channels,)``."""

    mean: Tensor
    variance: Tensor
    zero_fraction: Tensor


class NetworkMoments(Metric):
    """Mean, variance and fraction of zeros of each channel of what layers see and send.

    All sums live in one float64 tensor: under DDP one collective makes them those of the union of all ranks' samples.
    float64 keeps the square of a vanished gradient from underflow and the variance beside a large shift from
    cancellation.

    Args:
        layers: Constrainable weights whose owners will be observed, by layer name.

    Example:
        >>> moments = NetworkMoments({"first": WeightRef(torch.nn.Linear(2, 1), "weight")})
        >>> moments.update("first", "input", torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
        >>> moments.compute()["first"]["input"].mean.tolist()
        [0.0, 2.0]
    """

    full_state_update = False
    totals: Tensor

    def __init__(self, layers: Mapping[str, WeightRef]) -> None:
        super().__init__()
        self.channel_dims = {name: ref.channel_dim for name, ref in layers.items()}
        self.columns: dict[tuple[str, Quantity], slice] = {}
        num_columns = 0
        for name, ref in layers.items():
            for quantity, width in _widths(ref).items():
                self.columns[name, quantity] = slice(num_columns, num_columns + width)
                num_columns += width
        self.add_state("totals", torch.zeros(4, num_columns, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, name: str, quantity: Quantity, values: Tensor) -> None:
        """Add one tensor with the channels of layer ``name`` along their dimension, any number of others around it."""
        values, others = split_channels(values, self.channel_dims[name])
        columns = self.totals[:, self.columns[name, quantity]]
        columns[0] += values.numel() // columns.shape[1]
        columns[1] += values.sum(others, dtype=torch.float64)
        columns[2] += torch.linalg.vector_norm(values, dim=others, dtype=torch.float64).square()
        columns[3] += (values == 0).sum(others)

    def compute(self) -> dict[str, dict[Quantity, ChannelMoments]]:
        """Return moments by layer and quantity, for all that was seen."""
        moments: dict[str, dict[Quantity, ChannelMoments]] = {}
        seen = (self.totals[0] > 0).cpu()
        for (name, quantity), columns in self.columns.items():
            if seen[columns].all():
                count, total, squares, zeros = self.totals[:, columns]
                mean = total / count
                variance = (squares / count - mean.square()).clamp(min=0)
                moments.setdefault(name, {})[quantity] = ChannelMoments(mean, variance, zeros / count)
        return moments


def layer_statistics(
    moments: Mapping[Quantity, ChannelMoments], ref: WeightRef, units: Tensor, bias: Tensor | None
) -> dict[str, Tensor]:
    r"""Return the activation-shift statistics of one layer ``z = W a`` (bias left out), scalars by name.

    ========================== ==========================================================================
    ``shift_ratio``            :math:`\sqrt{\mathrm{mean}_i E[z_i]^2 / \mathrm{mean}_i V[z_i]}`; 0: no shift
    ``shift_angle_degrees``    mean over units of :math:`|90 - \angle(w_i, E[a])|` (Proposition 2)
    ``input_mean``             mean over features of :math:`E[a_j]`
    ``input_mean_spread``      std over features of :math:`E[a_j]`; 0: P_gamma of Definition 1 holds
    ``preactivation_std``      :math:`\sqrt{\mathrm{mean}_i V[z_i]}`
    ``gradient_std``           the same for dL/dz
    ``amplification_forward``  V(z) / V(a), V being the mean of the channels' variances (Proposition 4)
    ``amplification_backward`` V(dL/da) / V(dL/dz) (Proposition 5)
    ``sparsity``               fraction of exact zeros in a
    ``dead_units``             fraction of input features that are zero on every sample
    ``constraint_residual``    :math:`\max_i |\sum_j w_{ij}| / \|w_i\|`; 0 up to rounding under LCW
    ========================== ==========================================================================

    ``gradient_std`` and ``amplification_backward`` are left out where there are no gradients.

    Args:
        moments: The layer's entry of :meth:`NetworkMoments.compute`.
        ref: The layer's weight.
        units: Its value at the time, as :attr:`WeightRef.units`.
        bias: What the layer adds to ``W a``, or None.
    """
    a, z = moments["input"], moments["preactivation"]
    shift = z.mean if bias is None else z.mean - bias
    units = units.to(torch.float64)
    norms: Tensor = torch.linalg.vector_norm(units, dim=1)
    statistics = {
        "shift_ratio": (shift.square().mean() / z.variance.mean()).sqrt(),
        "shift_angle_degrees": (90 - angle_degrees(units, ref.expand_to_fan_in(a.mean))).abs().mean(),
        "input_mean": a.mean.mean(),
        "input_mean_spread": a.mean.std(correction=0),
        "preactivation_std": z.variance.mean().sqrt(),
        "amplification_forward": z.variance.mean() / a.variance.mean(),
        "sparsity": a.zero_fraction.mean(),
        "dead_units": (a.zero_fraction == 1).double().mean(),
        "constraint_residual": (units.sum(1).abs() / norms.where(norms > 0, 1.0)).max(),
    }
    if "preactivation_gradient" in moments and "input_gradient" in moments:
        da, dz = moments["input_gradient"], moments["preactivation_gradient"]
        statistics["gradient_std"] = dz.variance.mean().sqrt()
        statistics["amplification_backward"] = da.variance.mean() / dz.variance.mean()
    return statistics


def _widths(ref: WeightRef) -> dict[Quantity, int]:
    return {
        "input": ref.num_channels,
        "preactivation": ref.num_units,
        "preactivation_gradient": ref.num_units,
        "input_gradient": ref.num_channels,
    }
