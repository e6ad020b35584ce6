"""Scale one layer's weight by the statistics of its preactivations on a minibatch."""

from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrize

from lcw_lightning.compat import clear_cached_weights
from lcw_lightning.constraints.kinds import computes_as_its_kind, constraint_class, constraint_of
from lcw_lightning.constraints.zero_sum import ZeroSum
from lcw_lightning.observation.moments import ChannelSums
from lcw_lightning.weights.layer_types import SPATIAL_DIMS
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = [
    "PreactivationMoments",
    "assign_weight_",
    "computes_as_torch",
    "has_gains",
    "is_scalable",
    "preactivation_moments",
    "rescale_layer_",
    "scale_weight_",
]


class PreactivationMoments(NamedTuple):
    """Mean and standard deviation over the union of all ranks' samples, shape ``(1,)`` or ``(units,)``, in float64."""

    mean: Tensor
    std: Tensor

    @property
    def mean_square(self) -> Tensor:
        """Second moment around zero."""
        return self.mean.square() + self.std.square()


def preactivation_moments(z: Tensor, channel_dim: int, by_unit: bool) -> PreactivationMoments:
    """Return moments of a layer's output over samples and positions, of each unit or of all units together."""
    number, total, squares, _ = ChannelSums.of(z.detach(), z.shape[channel_dim], channel_dim, count_zeros=False)
    sums = torch.stack((torch.full_like(total, number), total, squares))
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sums)
    if not by_unit:
        sums = sums.sum(dim=1, keepdim=True)
    count, total, squares = sums
    mean = total / count
    variance = squares / count - mean.square()
    # A deviation below the resolution of z is rounding error, not variation.
    is_rounding = variance <= torch.finfo(z.dtype).eps ** 2 * squares / count
    return PreactivationMoments(mean, variance.masked_fill(is_rounding, 0.0).sqrt())


def is_scalable(ref: WeightRef) -> bool:
    """Return whether scaling a weight has an effect: spectral normalization fixes its norm."""
    return not constraint_class(ref).has_fixed_norm


def computes_as_torch(ref: WeightRef) -> bool:
    """Return whether a layer has the forward of one of torch's own classes, which is linear in the weight."""
    kind: type[nn.Module] = parametrize.type_before_parametrizations(ref.layer)
    return kind in SPATIAL_DIMS and "forward" not in vars(ref.layer)


def has_gains(ref: WeightRef) -> bool:
    """Return whether each unit of a weight has a trained gain: under weight normalization, centred or not."""
    return constraint_class(ref).has_gains


def rescale_layer_(
    ref: WeightRef, name: str, z: Tensor, bias: Tensor | None, target_std: float, by_unit: bool
) -> Tensor:
    """Give the preactivations of a layer ``target_std``, and mean zero where units have gains.

    Args:
        ref: The layer's weight.
        name: The weight's name, for messages.
        z: The layer's output, which is overwritten.
        bias: The layer's bias, which is zero; None if it must not change.
        target_std: Standard deviation of each unit, or of all units together.
        by_unit: Whether each unit has its own factor, as units with gains always have.

    Returns:
        The new output of a layer that is linear in its weight; float32 for half precision.

    Raises:
        ValueError: Preactivations are constant or not finite, or the weight cannot be scaled.
    """
    moments = preactivation_moments(z, ref.channel_dim, by_unit or has_gains(ref))
    _check_varies(moments, name)
    factor = target_std / moments.std
    scale_weight_(ref, name, factor)
    shift = -factor * moments.mean if bias is not None and has_gains(ref) else None
    if bias is not None and shift is not None:
        bias.copy_(shift)
    # The caches may hold the old weight and bias, which the layer has just used.
    torch.clear_autocast_cache()
    clear_cached_weights()
    return _scaled_output(z, ref.channel_dim, factor, shift)


def scale_weight_(ref: WeightRef, name: str, factor: Tensor) -> None:
    """Multiply a weight by one factor per unit or by one for all; directions get the factors of their gains.

    Raises:
        ValueError: A parametrization that is not of this package cannot represent the product.
    """
    is_parametrized = parametrize.is_parametrized(ref.layer, ref.name)
    if is_parametrized and not _scales_with_parameters(ref):
        weight = ref.value
        assign_weight_(ref, name, weight * ref.expand_to_weight(factor.to(weight.dtype)))
        return
    *gains, weight = ref.parameters
    factor = factor.to(weight.dtype)
    for gain in gains:
        gain.mul_(factor.view_as(gain) if len(factor) > 1 else factor)
    # expand_to_weight() only where needed, because it computes the weight.
    has_unit_rows = not ref.transposed_groups or isinstance(constraint_of(ref), ZeroSum)
    weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)) if has_unit_rows else ref.expand_to_weight(factor))


def assign_weight_(ref: WeightRef, name: str, weight: Tensor) -> None:
    """Assign a weight, and raise if its parametrization changes the value.

    Raises:
        ValueError: The weight's parametrization cannot represent the value.
    """
    try:
        ref.assign_(weight)
        held = (ref.value - weight).norm() <= 0.02 * weight.norm()
    except ValueError:
        held = False
    if not held:
        raise ValueError(
            f"initialization cannot set {name!r}, because its parametrization changes the value; initialize "
            "without the parametrization."
        )


def _check_varies(moments: PreactivationMoments, name: str) -> None:
    """Raise unless a layer's preactivations can be scaled to a standard deviation.

    Raises:
        ValueError: The preactivations are constant or not finite.
    """
    if not moments.std.isfinite().all():
        raise ValueError(
            f"minibatch initialization needs finite preactivations, but those of {name!r} are NaN or infinite on the "
            "first minibatch; look for NaN or infinite values in the data and in the weights."
        )
    if not moments.std.all():
        raise ValueError(
            f"minibatch initialization needs preactivations that vary, but {int((moments.std == 0).sum())} of "
            f"{len(moments.std)} standard deviations of {name!r} are zero on the first minibatch; look for constant "
            "inputs, dead units before the layer and weights that are zero."
        )


def _scales_with_parameters(ref: WeightRef) -> bool:
    is_alone = len(ref.layer.parametrizations[ref.name]) == 1  # type: ignore[index]
    return is_alone and computes_as_its_kind(ref) and is_scalable(ref)


def _scaled_output(z: Tensor, channel_dim: int, factor: Tensor, shift: Tensor | None) -> Tensor:
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    ones = [1] * (-1 - channel_dim)
    z.mul_(factor.to(z.dtype).view(-1, *ones))
    return z if shift is None else z.add_(shift.to(z.dtype).view(-1, *ones))
