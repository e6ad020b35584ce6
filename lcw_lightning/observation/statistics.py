"""The statistics of activation shift, read from moments."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lcw_lightning.observation.moments import NetworkMoments, Series
from lcw_lightning.observation.observed_layers import ObservedLayer

__all__ = ["WeightFacts", "network_statistics"]


class WeightFacts(NamedTuple):
    """What the statistics need of a layer's weights and bias, which an optimizer is about to change.

    Example:
        >>> from torch import nn
        >>> from lcw_lightning.observation.observed_layers import observed_layers
        >>> layer = observed_layers(nn.Linear(4, 2))["Linear"]
        >>> WeightFacts.of(layer, layer.units()).norms.shape
        torch.Size([2, 1])
    """

    sums: Tensor
    """Sum of every unit's weights, shape ``(units, 1)``."""
    norms: Tensor
    """Norm of every unit's weights."""
    input_norms: Tensor
    """Norm of each weight vector that meets the input, shape ``(num_projections, 1)``."""
    bias: Tensor | None
    """What the layer adds to its preactivation."""

    @classmethod
    def of(cls, layer: ObservedLayer, units: Mapping[str, Tensor]) -> "WeightFacts":
        """Look at a layer's weights, as :meth:`ObservedLayer.units` gives them."""
        dtype = torch.promote_types(next(iter(units.values())).dtype, torch.float32)
        norms = {
            name: torch.linalg.vector_norm(matrix, dim=1, keepdim=True, dtype=dtype) for name, matrix in units.items()
        }
        sums = [matrix.sum(1, keepdim=True, dtype=dtype) for matrix in units.values()]
        bias = None if layer.bias is None else layer.bias.to(torch.float64, copy=True)
        return cls(torch.cat(sums), torch.cat(list(norms.values())), layer.input_units(norms), bias)


def network_statistics(
    moments: NetworkMoments, layers: Mapping[str, ObservedLayer], facts: Mapping[str, WeightFacts]
) -> dict[str, dict[str, float]]:
    r"""Return the activation-shift statistics of each layer ``z = W a`` (bias left out), numbers by name.

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

    For what z is of other layers, see :class:`~lcw_lightning.observation.observed_layers.ObservedLayer`. Layers that
    were not called are left out, and so are statistics of gradients where there were none.

    Args:
        moments: What was seen, on all ranks.
        layers: Those that ``moments`` was made for.
        facts: Of the weights that the layers used, by layer.
    """
    count, mean, variance, zeros = moments.compute()
    pooled = moments.mean_by_layer
    means, variances, seen = pooled(mean), pooled(variance), pooled(count)
    shift, degrees, spread = _shift_angle_spread(moments, layers, facts, mean)
    values: dict[str, tuple[Series, Tensor]] = {
        "shift_ratio": ("preactivation", (pooled(shift**2)["preactivation"] / variances["preactivation"]).sqrt()),
        "shift_angle_degrees": ("projection", pooled(degrees)["projection"]),
        "input_mean": ("input", means["input"]),
        "input_mean_spread": ("input", pooled(spread**2)["input"].sqrt()),
        "preactivation_std": ("preactivation", variances["preactivation"].sqrt()),
        "gradient_std": ("preactivation_gradient", variances["preactivation_gradient"].sqrt()),
        "amplification_forward": ("preactivation", variances["preactivation"] / variances["input"]),
        "amplification_backward": ("input_gradient", variances["input_gradient"] / variances["preactivation_gradient"]),
        "sparsity": ("input", pooled(zeros)["input"]),
        "dead_units": ("input", pooled((zeros == 1).double())["input"]),
        "constraint_residual": ("input", _residuals([facts[name] for name in layers])),
    }
    table = torch.stack([row for series, vector in values.values() for row in (vector, seen[series])])
    found: dict[str, dict[str, float]] = {}
    for name, column in zip(layers, table.t().tolist(), strict=True):
        triples = zip(values, column[::2], column[1::2], strict=True)
        found[name] = {statistic: number for statistic, number, count in triples if count > 0}
    return {name: statistics for name, statistics in found.items() if statistics}


def _shift_angle_spread(
    moments: NetworkMoments, layers: Mapping[str, ObservedLayer], facts: Mapping[str, WeightFacts], mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return E[z_i] without the bias, |90 - angle(w_i, E[a])| and E[a_j] less its layer's mean, by channel."""
    biases, lengths = [], []
    for name in layers:
        fact, a = facts[name], mean[moments.columns[name, "input"]]
        biases.append(fact.bias if fact.bias is not None else mean.new_zeros(layers[name].out_channels))
        lengths.append(fact.input_norms * layers[name].expand_to_fan_in(a).norm(dim=1, keepdim=True))
    length, angle, shift = torch.cat(lengths).squeeze(1), torch.zeros_like(mean), mean.clone()
    shift[moments.columns_of("preactivation")] -= torch.cat(biases)
    projection = moments.columns_of("projection")
    angle[projection] = (mean[projection] / length.where(length > 0, 1.0)).clamp(-1, 1).asin().rad2deg().abs()
    layer_mean = torch.cat(list(moments.mean_by_layer(mean).values()))
    return shift, angle, mean - layer_mean.repeat_interleave(moments.widths)


def _residuals(facts: Sequence[WeightFacts]) -> Tensor:
    """Return the largest sum of a unit's weights over their norm, of each layer."""
    sums, norms = (torch.cat([getattr(fact, name) for fact in facts]).squeeze(1) for name in ("sums", "norms"))
    lengths = torch.tensor([len(fact.sums) for fact in facts], device=sums.device)
    return torch.segment_reduce((sums / norms.where(norms > 0, 1.0)).abs(), "max", lengths=lengths)
