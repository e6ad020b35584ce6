"""The statistics of activation shift: their definitions, how they are shown, and how they follow from moments."""

import math
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lcw_lightning.observation.moments import NetworkMoments, Series
from lcw_lightning.observation.observed_layers import ObservedLayer

__all__ = ["GATE_STATISTICS", "Statistic", "WeightFacts", "gate_statistics", "network_statistics"]

Scale = Literal["logarithmic", "linear", "fraction"]


class Statistic(str, Enum):
    r"""The statistics of a layer ``z = W a`` (bias left out), by the name under which they are logged.

    V is the mean of the channels' variances. :class:`~lcw_lightning.observation.observed_layers.ObservedLayer` says
    what z and a are in other layers. A new statistic needs a row here and its formula in :func:`network_statistics`.

    Attributes:
        heading: Of its column in the table of layers; empty for those that the table leaves out.
        label: Of its axis in figures, the unit included.
        scale: ``logarithmic`` for numbers that may span decades, ``fraction`` for those from 0 to 1, else ``linear``.

    Example:
        >>> Statistic("sparsity").scale
        'fraction'
    """

    SHIFT_RATIO = "shift_ratio", "shift\nratio", "0 = no activation shift", "logarithmic"
    r""":math:`\sqrt{\mathrm{mean}_i E[z_i]^2 / \mathrm{mean}_i V[z_i]}`; 0 means no activation shift."""
    SHIFT_ANGLE_DEGREES = "shift_angle_degrees", "shift\nangle", "degrees off orthogonal", "linear"
    r"""Mean over units of :math:`|90 - \angle(w_i, E[a])|`; 0 means weights orthogonal to the mean input
    (Proposition 2)."""
    INPUT_MEAN = "input_mean", "", "mean of a", "linear"
    """Mean over features of E[a_j]."""
    INPUT_MEAN_SPREAD = "input_mean_spread", "", "std of E[a] over features", "logarithmic"
    """Standard deviation over features of E[a_j]; 0 means that P_gamma of Definition 1 holds."""
    PREACTIVATION_STD = "preactivation_std", "std\nof z", "std of z", "logarithmic"
    """The square root of V(z); the same in all layers of a healthy network."""
    GRADIENT_STD = "gradient_std", "std of\ndL/dz", "std of dL/dz", "logarithmic"
    """The square root of V(dL/dz); the same in all layers of a healthy network."""
    AMPLIFICATION_FORWARD = "amplification_forward", "V(z)\n/ V(a)", "V(z) / V(a)", "logarithmic"
    """V(z) / V(a); under LCW equal to ``amplification_backward`` (Propositions 4 and 5)."""
    AMPLIFICATION_BACKWARD = "amplification_backward", "V(dL/da)\n/V(dL/dz)", "V(dL/da) / V(dL/dz)", "logarithmic"
    """V(dL/da) / V(dL/dz)."""
    SPARSITY = "sparsity", "zeros\nin a", "fraction of zeros in a", "fraction"
    """Fraction of exact zeros in a."""
    DEAD_UNITS = "dead_units", "dead\nunits", "fraction of all inputs", "fraction"
    """Fraction of input features that are zero for every sample."""
    CONSTRAINT_RESIDUAL = "constraint_residual", "", "max |sum(w)| / |w|", "logarithmic"
    r""":math:`\max_i |\sum_j w_{ij}| / \|w_i\|`; 0 up to rounding under LCW and centered weight normalization."""

    _value_: str
    heading: str
    label: str
    scale: Scale

    def __new__(cls, name: str, heading: str, label: str, scale: Scale) -> "Statistic":
        """Return a string, the name, with attributes."""
        statistic = str.__new__(cls, name)
        statistic._value_ = name
        statistic.heading, statistic.label, statistic.scale = heading, label, scale
        return statistic

    __str__ = str.__str__  # before Python 3.11 there is no StrEnum


GATE_STATISTICS = ("preactivation_mean", Statistic.PREACTIVATION_STD.value, Statistic.SHIFT_RATIO.value)
"""What is known of each gate of a recurrent layer."""


class WeightFacts(NamedTuple):
    """What the statistics need of a layer's weights and bias, copied before the optimizer changes them.

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
    """Norm of each weight vector that multiplies the input, shape ``(num_projections, 1)``."""
    bias: Tensor | None
    """The bias of z, one value per channel; None without one."""

    @classmethod
    def of(cls, layer: ObservedLayer, units: Mapping[str, Tensor]) -> "WeightFacts":
        """Return the facts of a layer's weights, given as :meth:`ObservedLayer.units` returns them.

        Sums are those of the weights that multiply: under autocast they are rounded to its dtype.
        """
        dtype = torch.promote_types(next(iter(units.values())).dtype, torch.float32)
        norms = {
            name: torch.linalg.vector_norm(matrix, dim=1, keepdim=True, dtype=dtype) for name, matrix in units.items()
        }
        sums = [_as_multiplied(matrix).sum(1, keepdim=True, dtype=dtype) for matrix in units.values()]
        bias = None if (used := layer.bias) is None else used.to(torch.float64, copy=True)
        return cls(_joined(sums), _joined(list(norms.values())), layer.input_units(norms), bias)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _as_multiplied(weight: Tensor) -> Tensor:
    kind = weight.device.type
    is_rounded = torch.is_autocast_enabled(kind) and weight.dtype == torch.float32
    return weight.to(torch.get_autocast_dtype(kind)) if is_rounded else weight


def network_statistics(
    moments: NetworkMoments, layers: Mapping[str, ObservedLayer], facts: Mapping[str, WeightFacts]
) -> dict[str, dict[str, float]]:
    """Return the value of every :class:`Statistic` of each layer, by name.

    Layers that were not called are left out, and so are statistics of gradients where there were none.

    Args:
        moments: Of all tensors that the layers have seen, on all ranks.
        layers: The layers that ``moments`` was made for.
        facts: Of the weights that the layers used, by layer.
    """
    table, pooled = moments.compute(), moments.layer_means
    seen = moments.mean_by_layer(table[0])
    mean, variance, zeros = (
        {series: row[moments.columns_of(series)] for series in get_args(Series)} for row in table[1:]
    )
    z, dz, a, da = (
        pooled(series, variance[series])
        for series in ("preactivation", "preactivation_gradient", "input", "input_gradient")
    )
    shift = mean["preactivation"] - _biases(layers, facts, mean["preactivation"])
    degrees = _degrees_off_orthogonal(mean["projection"], _lengths(moments, layers, facts, mean["input"]))
    input_mean = pooled("input", mean["input"])
    spread = mean["input"] - input_mean.repeat_interleave(moments.widths_of("input"))
    values: dict[Statistic, tuple[Series, Tensor]] = {
        Statistic.SHIFT_RATIO: ("preactivation", (pooled("preactivation", shift**2) / z).sqrt()),
        Statistic.SHIFT_ANGLE_DEGREES: ("projection", pooled("projection", degrees)),
        Statistic.INPUT_MEAN: ("input", input_mean),
        Statistic.INPUT_MEAN_SPREAD: ("input", pooled("input", spread**2).sqrt()),
        Statistic.PREACTIVATION_STD: ("preactivation", z.sqrt()),
        Statistic.GRADIENT_STD: ("preactivation_gradient", dz.sqrt()),
        Statistic.AMPLIFICATION_FORWARD: ("preactivation", z / a),
        Statistic.AMPLIFICATION_BACKWARD: ("input_gradient", da / dz),
        Statistic.SPARSITY: ("input", pooled("input", zeros["input"])),
        Statistic.DEAD_UNITS: ("input", pooled("input", (zeros["input"] == 1).double())),
        Statistic.CONSTRAINT_RESIDUAL: ("input", _residuals([facts[name] for name in layers])),
    }
    return _by_layer(list(layers), values, seen)


def _by_layer(
    layers: Sequence[str], values: Mapping[Statistic, tuple[Series, Tensor]], seen: Mapping[Series, Tensor]
) -> dict[str, dict[str, float]]:
    """Return the statistics of each layer whose series was seen, copied from the device at once."""
    names = [statistic.value for statistic in values]
    rows = torch.stack([row for series, vector in values.values() for row in (vector, seen[series])])
    found: dict[str, dict[str, float]] = {}
    for layer, column in zip(layers, rows.t().tolist(), strict=True):
        triples = zip(names, column[::2], column[1::2], strict=True)
        found[layer] = {name: number for name, number, count in triples if count > 0}
    return {layer: statistics for layer, statistics in found.items() if statistics}


def gate_statistics(
    moments: NetworkMoments, layers: Mapping[str, ObservedLayer], unknown: Collection[str] = ()
) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean, standard deviation and shift ratio of the preactivations of gates, by layer and gate.

    Args:
        moments: As :func:`network_statistics` takes them.
        layers: The layers to show.
        unknown: Layers some of whose gates are NaN because they are not known; these gates are left out.
    """
    seen = moments.compute()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, layer in ((name, layer) for name, layer in layers.items() if layer.gates):
        columns = seen[:, moments.columns[name, "gates"]].view(len(seen), len(layer.gates), -1)
        count, mean, variance = columns[0, :, 0], columns[1], columns[2].mean(1)
        shift = (mean.square().mean(1) / variance).sqrt()
        rows = torch.stack((mean.mean(1), variance.sqrt(), shift), dim=1).tolist()
        for gate, row, number in zip(layer.gates, rows, count.tolist(), strict=True):
            if number and not (name in unknown and math.isnan(row[0])):
                found.setdefault(name, {})[gate] = dict(zip(GATE_STATISTICS, row, strict=True))
    return found


def _biases(layers: Mapping[str, ObservedLayer], facts: Mapping[str, WeightFacts], like: Tensor) -> Tensor:
    """Return the bias of z of each channel of all layers, in the dtype of ``like``."""
    biases = {name: facts[name].bias for name in layers}
    return torch.cat([like.new_zeros(layers[name].out_channels) if b is None else b for name, b in biases.items()])


def _lengths(
    moments: NetworkMoments, layers: Mapping[str, ObservedLayer], facts: Mapping[str, WeightFacts], mean: Tensor
) -> Tensor:
    """Return |w_i| |E[a]| of each weight vector that multiplies the input, of all layers, given E[a]."""
    means = dict(zip(layers, torch.split(mean, moments.widths_of("input").tolist()), strict=True))
    norms = {name: torch.linalg.vector_norm(layers[name].expand_to_fan_in(a), dim=1) for name, a in means.items()}
    return torch.cat([facts[name].input_norms.squeeze(1) * norm for name, norm in norms.items()])


def _degrees_off_orthogonal(projection: Tensor, length: Tensor) -> Tensor:
    """Return |90 - angle(w_i, E[a])|, given w_i E[a] and |w_i| |E[a]|."""
    return (projection / length.where(length > 0, 1.0)).clamp(-1, 1).asin().rad2deg().abs()


def _residuals(facts: Sequence[WeightFacts]) -> Tensor:
    """Return the largest sum of a unit's weights, divided by their norm, for each layer."""
    sums, norms = (torch.cat([getattr(fact, name) for fact in facts]).squeeze(1) for name in ("sums", "norms"))
    lengths = torch.tensor([len(fact.sums) for fact in facts], device=sums.device)
    return torch.segment_reduce((sums / norms.where(norms > 0, 1.0)).abs(), "max", lengths=lengths)
