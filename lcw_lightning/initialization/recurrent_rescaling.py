"""Scale the weights of one direction of a recurrent layer, so that every gate's preactivation has the target."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lcw_lightning.initialization.gate_factors import Factors, Free, UnsettledError, find_factors
from lcw_lightning.initialization.gate_statistics import Direction, pooled
from lcw_lightning.initialization.limits import Operands, UnscalableError
from lcw_lightning.initialization.rescaling import check_finite, has_gains, preactivation_moments, scale_weight_
from lcw_lightning.observation.recurrent_gates import GATES
from lcw_lightning.observation.recurrent_inputs import RecurrentCall, mode_of
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["WEIGHTS", "Scaled", "Target", "rescale_direction_"]

WEIGHTS = IH, HH, HR = "weight_ih", "weight_hh", "weight_hr"
"""Names of a direction's weights, without suffix."""


class Target(NamedTuple):
    """What preactivations are to have; ``recurrent_share`` as in :func:`find_factors`."""

    std: float
    by_unit: bool
    recurrent_share: float


class Scaled(NamedTuple):
    """The factor of each unit of a weight, and which units varied, so that they could be scaled."""

    factor: Tensor
    varies: Tensor


class _Seen(NamedTuple):
    """What a direction's own weights show, by their names without suffix.

    Attributes:
        operands: Of the weights that can be scaled.
        varies: Of each group of units whether it varies; all False for a weight that must be left.
        left: Why.
    """

    operands: dict[str, Operands]
    varies: dict[str, Tensor]
    left: dict[str, str]


def rescale_direction_(
    call: RecurrentCall, suffix: str, refs: Mapping[str, WeightRef], biases: Collection[str], target: Target, name: str
) -> dict[str, Scaled | str]:
    """Give every gate of one direction the target, and the output of an LSTM's projection too.

    Biases become zero; where units have gains, those of the input part make every mean zero. Groups of units that do
    not vary keep weights and biases.

    Args:
        call: Of the layer.
        suffix: Of the direction's names.
        refs: The weights to rescale, by their names without suffix.
        biases: Names without suffix of the biases that may change.
        target: Of the preactivations.
        name: The name of the layer's input weight, for messages.

    Returns:
        What became of each weight, or why it was left, by the same names.

    Raises:
        UnscalableError: All of the weights must be left. They may have changed.
        ValueError: Preactivations are not finite, or there are no factors. Weights have not changed.
    """
    direction = _direction(call, suffix, refs, target.by_unit)
    held = {bias: getattr(call.layer, bias + suffix).detach() for bias in biases}
    seen = _look(direction, refs, held, name)
    if not any(varies.any() for varies in seen.varies.values()):
        return dict(seen.left)
    either = seen.varies[IH] | seen.varies[HH]
    rows = either.repeat_interleave(direction.gate_size)
    has_shift = "bias_ih" in biases and _have_gains(refs)
    zeroed = {bias: value.masked_fill(rows, 0.0).to(direction.inputs) for bias, value in held.items()}
    direction.weights = direction.weights._replace(**zeroed)
    free = Free(seen.varies[IH], seen.varies[HH], seen.varies[HR], either if has_shift else either[:0])
    try:
        factors = find_factors(direction.measure, free, target.std, target.recurrent_share)
    except UnsettledError as error:
        raise _unsettled(direction, error.group, name) from None
    scaled = _scale_(direction, refs, seen, factors)
    for value in held.values():
        value.masked_fill_(rows, 0.0)
    if has_shift:
        held["bias_ih"].add_(factors.shift.where(rows, 0.0))
    return {**seen.left, **scaled}


def _direction(call: RecurrentCall, suffix: str, refs: Mapping[str, WeightRef], by_unit: bool) -> Direction:
    """Return a direction; its units are scaled one by one where any of its gates' weights has gains."""
    weights = call.weights(suffix)
    gates_by_unit = by_unit or _have_gains(refs)
    outputs_by_unit = by_unit or (HR in refs and has_gains(refs[HR]))
    outputs = 0 if weights.hr is None else len(weights.hr)
    sizes = 1 if gates_by_unit else call.layer.hidden_size, 1 if outputs_by_unit else outputs
    return Direction(call, suffix, weights, call.inputs(suffix), *sizes)


def _have_gains(refs: Mapping[str, WeightRef]) -> bool:
    """Return whether the units of a gate have gains, so that each has its own factors, and the mean zero."""
    return any(has_gains(ref) for weight, ref in refs.items() if weight != HR)


def _look(direction: Direction, refs: Mapping[str, WeightRef], biases: Mapping[str, Tensor], name: str) -> _Seen:
    """Return what can be scaled, as the weights are now, with zero biases.

    Raises:
        ValueError: The input part of a preactivation is not finite.
    """
    zero = {bias: direction.inputs.new_zeros(()) for bias in biases}
    weights = direction.weights._replace(**zero)
    ran = direction.call.sweep(direction.suffix, direction.inputs, weights)
    outputs = ran.outputs[:, : 0 if weights.hr is None else None]
    shown = {IH: (direction.inputs, direction.call.rows), HH: (ran.recurrent, ran.states), HR: (outputs, None)}
    seen = _Seen({}, {}, {})
    for weight, (z, given) in shown.items():
        size = direction.projection_size if weight == HR else direction.gate_size
        seen.varies[weight] = torch.zeros(z.shape[1] // max(size, 1), dtype=torch.bool, device=z.device)
        if weight not in refs:
            continue
        moments = preactivation_moments(z, -1, by_unit=True)
        try:
            seen.operands[weight] = operands = Operands.of(refs[weight], z, given)
        except UnscalableError as reason:
            seen.left[weight] = str(reason) if weight == IH else str(reason).replace("inputs", "states")
            continue
        if weight == IH:
            check_finite(moments, name)
        resolution = operands.resolution(z.dtype, by_unit=True).view(-1, size).square().mean(1).sqrt()
        # A part that overflows varies, and is scaled down.
        seen.varies[weight] = ~(pooled(moments, size).std <= resolution)
        if not seen.varies[weight].any():
            seen.left[weight] = "preactivations that do not vary"
    return seen


def _scale_(direction: Direction, refs: Mapping[str, WeightRef], seen: _Seen, factors: Factors) -> dict[str, Scaled]:
    """Scale the weights that vary.

    Raises:
        UnscalableError: One of them would leave the range of its dtype, or is changed by a foreign parametrization.
    """
    sizes = direction.gate_size, direction.gate_size, direction.projection_size
    scaled = {
        weight: Scaled(factor.repeat_interleave(size), seen.varies[weight].repeat_interleave(size))
        for weight, factor, size in zip(WEIGHTS, factors[:3], sizes, strict=True)
        if seen.varies[weight].any()
    }
    for weight, (factor, _) in scaled.items():
        ref = refs[weight]
        seen.operands[weight].check_range(factor, ref.value.dtype, has_gains(ref))
        scale_weight_(ref, ref.name, factor)
    return scaled


def _unsettled(direction: Direction, group: int, name: str) -> ValueError:
    gates = GATES[mode_of(direction.call.layer)]
    gate = (
        "projection" if group < 0 else f"{gates[group * direction.gate_size // direction.call.layer.hidden_size]} gate"
    )
    return ValueError(
        "minibatch initialization needs factors that give every gate of a recurrent layer its std, but has found none "
        f"for the {gate} of {name!r}; take a larger batch, a smaller recurrent_share or granularity='layer', or leave "
        "the layer out by exclude."
    )
