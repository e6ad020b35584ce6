"""Scale one layer's weight to what its preactivations are on a minibatch."""

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from lcw_lightning.kinds import kind_of
from lcw_lightning.layers import WeightRef, split_channels

__all__ = [
    "PreactivationMoments",
    "assign_weight_",
    "check_varies",
    "has_gains",
    "is_scalable",
    "preactivation_moments",
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
    """Return moments of a layer's output over samples and positions, of each unit by itself or of all together."""
    z, others = split_channels(z, channel_dim)
    total = z.sum(others, dtype=torch.float64)
    squares = torch.linalg.vector_norm(z, dim=others, dtype=torch.float64).square()
    sums = torch.stack((torch.full_like(total, z.numel() // len(total)), total, squares))
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sums)
    if not by_unit:
        sums = sums.sum(dim=1, keepdim=True)
    count, total, squares = sums
    mean = total / count
    variance = squares / count - mean.square()
    # What lies below the resolution of z is rounding, not variation.
    is_rounding = variance <= torch.finfo(z.dtype).eps ** 2 * squares / count
    return PreactivationMoments(mean, variance.masked_fill(is_rounding, 0.0).sqrt())


def check_varies(moments: PreactivationMoments, name: str) -> None:
    """Look whether a layer's preactivations can be scaled to a standard deviation.

    Raises:
        ValueError: They are constant or not finite.
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


def is_scalable(ref: WeightRef) -> bool:
    """Return whether a weight may have any norm: under spectral normalization it may not."""
    return kind_of(ref) != "sn"


def has_gains(ref: WeightRef) -> bool:
    """Return whether each unit of a weight has a trained gain: under weight normalization, centred or not."""
    return kind_of(ref) in ("wn", "cwn")


def scale_weight_(ref: WeightRef, name: str, factor: Tensor) -> None:
    """Multiply a weight by a factor for each unit, or by one for all.

    Raises:
        ValueError: The weight's parametrization cannot hold the product.
    """
    weight = ref.value
    assign_weight_(ref, name, weight * ref.expand_to_weight(factor.to(weight.dtype)))


def assign_weight_(ref: WeightRef, name: str, weight: Tensor) -> None:
    """Write a weight, and look whether it is there.

    Raises:
        ValueError: The weight's parametrization cannot hold it.
    """
    try:
        ref.assign_(weight)
        held = (ref.value - weight).norm() <= 0.02 * weight.norm()
    except ValueError:
        held = False
    if not held:
        raise ValueError(
            f"initialization sets weights, which the parametrization of {name!r} does not let it do; initialize "
            "without it."
        )
