"""Scale the projections of MultiheadAttention by what query, key, value and heads make of them on a minibatch."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lcw_lightning.initialization.gate_statistics import pooled
from lcw_lightning.initialization.limits import Operands, UnscalableError
from lcw_lightning.initialization.recurrent_rescaling import Scaled
from lcw_lightning.initialization.rescaling import check_finite, has_gains, preactivation_moments, scale_weight_
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["PROJECTIONS", "projected_values", "rescale_projections_"]

PROJECTIONS: Mapping[str, slice] = {
    "in_proj_weight": slice(0, 3),
    "q_proj_weight": slice(0, 1),
    "k_proj_weight": slice(1, 2),
    "v_proj_weight": slice(2, 3),
}
"""By weight of attention: which of query, key and value it multiplies."""


def rescale_projections_(
    ref: WeightRef, given: Sequence[Tensor], bias: Tensor | None, target_std: float, by_unit: bool, name: str
) -> Scaled:
    """Give each of the projections in one weight of attention the target; each has factors of its own.

    Args:
        ref: A weight of :data:`PROJECTIONS`.
        given: Query, key and value.
        bias: The biases of all three, which become zero, or make the means zero where units have gains; None if they
            must not change.
        target_std: Of each projection.
        by_unit: Whether each unit has its own factor.
        name: The weight's name, for messages.

    Raises:
        UnscalableError: Weight and bias are as they were, for the reason in the message.
        ValueError: Projections are not finite.
    """
    which, size = PROJECTIONS[ref.name], 1 if by_unit or has_gains(ref) else cast(int, ref.layer.embed_dim)
    blocks = ref.units.detach().chunk(which.stop - which.start)
    scaled = []
    for number, (inputs, rows) in enumerate(zip(given[which], blocks, strict=True)):
        z = _precise(inputs) @ _precise(rows).T
        moments = pooled(preactivation_moments(z, -1, by_unit=True), size)
        operands = Operands.of(ref, z, inputs)
        norms, sums = (torch.chunk(each, len(blocks))[number] for each in (operands.norms, operands.sums))
        operands = operands._replace(norms=norms, sums=sums)
        check_finite(moments, name)
        resolution = operands.resolution(z.dtype, by_unit=True).view(-1, size).square().mean(1).sqrt()
        varies = moments.std > resolution
        factor = torch.where(varies, target_std / moments.std, 1.0)
        factor, varies, mean = (values.repeat_interleave(size) for values in (factor, varies, moments.mean))
        operands.check_range(factor, rows.dtype, has_gains(ref))
        scaled.append((factor, varies, -factor * mean if has_gains(ref) else torch.zeros_like(mean)))
    factor, varies, shift = map(torch.cat, zip(*scaled, strict=True))
    if not varies.any():
        raise UnscalableError("preactivations that do not vary")
    scale_weight_(ref, name, factor)
    if bias is not None:
        own = bias.view(3, -1)[which].view(-1)
        own.copy_(torch.where(varies, shift, own))
    return Scaled(factor, varies)


def projected_values(layer: nn.MultiheadAttention, value: Tensor) -> Tensor:
    """Return the projection of the values, which heads average, so that the output projection sees none larger."""
    name = "v_proj_weight" if layer.in_proj_weight is None else "in_proj_weight"
    weight: Tensor = getattr(layer, name)
    return _precise(value) @ _precise(weight.detach()[-layer.embed_dim :]).T


def _precise(values: Tensor) -> Tensor:
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))
