"""Scale one layer's weight by the statistics of its preactivations on a minibatch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrize

from lcw_lightning.compat import clear_cached_weights
from lcw_lightning.constraints.kinds import computes_as_its_kind, constraint_class, constraint_of
from lcw_lightning.constraints.zero_sum import ZeroSum
from lcw_lightning.initialization.limits import Operands, UnscalableError
from lcw_lightning.observation.moments import ChannelSums
from lcw_lightning.weights.layer_types import SPATIAL_DIMS
from lcw_lightning.weights.restoring import unless_it_fails
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = [
    "PreactivationMoments",
    "Rescaled",
    "assign_weight_",
    "check_finite",
    "check_response",
    "computes_as_torch",
    "forget_used_weights",
    "has_gains",
    "is_scalable",
    "preactivation_moments",
    "rescale_layer_",
    "scale_weight_",
    "zeroed",
]


RESPONSE = 0.05
"""A doubled weight must change the output of a layer by at least this part of it."""


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
    found = ChannelSums.of(z.detach(), z.shape[channel_dim], channel_dim, count_zeros=False)
    sums = torch.stack((torch.full_like(found.total, found.number), found.total, found.squares))
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
    return (kind in SPATIAL_DIMS or kind is nn.Bilinear) and "forward" not in vars(ref.layer)


def has_gains(ref: WeightRef) -> bool:
    """Return whether each unit of a weight has a trained gain: under weight normalization, centred or not."""
    return constraint_class(ref).has_gains


class Rescaled(NamedTuple):
    """What became of a layer.

    Attributes:
        factor: Of the weight, shape ``(1,)``, or ``(units,)``; 1 for units that are left as they are.
        shift: The bias from now on, of the same shape; None if it did not change or is zero.
        varies: Which preactivations vary, so that they could be rescaled; of the same shape.
    """

    factor: Tensor
    shift: Tensor | None
    varies: Tensor

    def output(self, z: Tensor, channel_dim: int) -> Tensor:
        """Return the new output of a layer that is linear in its weight; float32 for half precision.

        Args:
            z: The old output without bias, which is overwritten.
            channel_dim: Of ``z``.
        """
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        ones = [1] * (-1 - channel_dim)
        z.mul_(self.factor.to(z.dtype).view(-1, *ones))
        return z if self.shift is None else z.add_(self.shift.to(z.dtype).view(-1, *ones))


def rescale_layer_(
    ref: WeightRef,
    name: str,
    z: Tensor | None,
    inputs: Tensor | None,
    bias: Tensor | None,
    target_std: float,
    by_unit: bool,
    again: Callable[[], Tensor | None] | None = None,
) -> Rescaled:
    """Give the preactivations of a layer ``target_std``, and mean zero where units have gains.

    Args:
        ref: The layer's weight.
        name: The weight's name, for messages.
        z: The layer's output without bias; None if there is none.
        inputs: The layer's input, if it is known.
        bias: The layer's bias, which is changed too; None if it must not be.
        target_std: Standard deviation of each unit, or of all units together.
        by_unit: Whether each unit has its own factor, as units with gains always have. Those that do not vary stay.
        again: Runs the layer again without its bias; given if the layer may not respond to its weight.

    Raises:
        UnscalableError: Weight and bias are as they were, for the reason in the message.
        ValueError: Preactivations are not finite.
    """
    if z is None or z.dim() < -ref.channel_dim:
        raise UnscalableError("its output is no tensor of floating-point numbers with channels")
    by_unit = by_unit or has_gains(ref)
    moments = preactivation_moments(z, ref.channel_dim, by_unit)
    operands = Operands.of(ref, z, inputs)
    check_finite(moments, name)
    if by_unit and len(moments.std) != len(operands.norms):
        raise UnscalableError("its output has not one channel for each unit")
    if again is not None:
        check_response(ref, z, again)
    varies = moments.std > operands.resolution(z.dtype, by_unit)
    if not varies.any():
        raise UnscalableError("preactivations that do not vary")
    factor = torch.where(varies, target_std / moments.std, 1.0)
    operands.check_range(factor, ref.value.dtype, has_gains(ref))
    scale_weight_(ref, name, factor)
    if bias is None:
        return Rescaled(factor, None, varies)
    shift = torch.where(varies, -factor * moments.mean if has_gains(ref) else 0.0, bias if by_unit else 0.0)
    return Rescaled(factor, bias.copy_(shift) if shift.any() else bias.zero_(), varies)


def check_response(ref: WeightRef, z: Tensor, again: Callable[[], Tensor | None]) -> None:
    """Raise if a doubled weight gives the same output, as in a layer that standardizes its weight; it is put back.

    Args:
        ref: The layer's weight.
        z: The layer's output.
        again: Runs the layer again.

    Raises:
        UnscalableError: The output does not respond.
    """
    originals = [parameter.clone() for parameter in ref.parameters]
    scale_weight_(ref, ref.name, torch.full((1,), 2.0, dtype=torch.float64, device=z.device))
    forget_used_weights()
    doubled = again()
    for parameter, original in zip(ref.parameters, originals, strict=True):
        parameter.copy_(original)
    assert doubled is not None
    change, size = (preactivation_moments(values, ref.channel_dim, False).mean_square for values in (doubled - z, z))
    if change <= RESPONSE**2 * size:
        raise UnscalableError("scaling it leaves the layer's output unchanged")


def forget_used_weights() -> None:
    """Clear the caches of autocast and of parametrizations, which may hold weights and biases that have changed."""
    torch.clear_autocast_cache()
    clear_cached_weights()


@contextmanager
def zeroed(bias: Tensor | None) -> Iterator[None]:
    """Let a bias be zero within the block."""
    before = None if bias is None else bias.clone()
    try:
        if bias is not None:
            bias.zero_()
        yield
    finally:
        if bias is not None and before is not None:
            bias.copy_(before)


def scale_weight_(ref: WeightRef, name: str, factor: Tensor) -> None:
    """Multiply a weight by one factor per unit or by one for all; directions get the factors of their gains.

    Raises:
        UnscalableError: A parametrization that is not of this package cannot represent the product.
    """
    is_parametrized = parametrize.is_parametrized(ref.layer, ref.name)
    if is_parametrized and not _scales_with_parameters(ref):
        weight = ref.value
        try:
            with unless_it_fails(ref.layer):
                assign_weight_(ref, name, weight * ref.expand_to_weight(factor.to(weight.dtype)))
        except ValueError as error:
            raise UnscalableError("its parametrization changes the value") from error
        return
    *gains, weight = ref.parameters
    factor = factor.to(torch.promote_types(weight.dtype, torch.float32))  # it may be beyond the range of the weight
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


def check_finite(moments: PreactivationMoments, name: str) -> None:
    """Raise unless the preactivations of a layer are finite.

    Raises:
        ValueError: They are NaN or infinite.
    """
    if not moments.std.isfinite().all():
        raise ValueError(
            f"minibatch initialization needs finite preactivations, but those of {name!r} are NaN or infinite on the "
            "first minibatch; look for NaN or infinite values in the data and in the weights."
        )


def _scales_with_parameters(ref: WeightRef) -> bool:
    is_alone = len(ref.layer.parametrizations[ref.name]) == 1  # type: ignore[index]
    return is_alone and computes_as_its_kind(ref) and is_scalable(ref)
