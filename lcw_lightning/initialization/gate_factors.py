"""Find the factors of a recurrent layer's weights, whose states depend on them, by iteration."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lcw_lightning.initialization.anderson import find_root

__all__ = ["Factors", "Free", "Statistics", "UnsettledError", "find_factors"]

STD_TOLERANCE = 5e-4
SHARE_TOLERANCE = 1e-2
"""Of the log ratio of the parts' standard deviations, which moves the share by half of it at most."""
QUICK_STEPS = 30
STEPS = 60
DAMPING = 0.25
LARGEST_STEP = 3.0


class UnsettledError(ValueError):
    """No factors were found; ``group`` is the number of the group of units that missed its target by most.

    It is negative for a projection.
    """

    def __init__(self, group: int) -> None:
        super().__init__(group)
        self.group = group


class Factors(NamedTuple):
    """What multiplies the input weights, recurrent weights and projection of each group of units, and what is added."""

    ih: Tensor
    hh: Tensor
    hr: Tensor
    shift: Tensor


class Free(NamedTuple):
    """Which of the :class:`Factors` may change, as booleans of the same shapes."""

    ih: Tensor
    hh: Tensor
    hr: Tensor
    shift: Tensor


class Statistics(NamedTuple):
    """What gates of a layer with given factors show on a minibatch, of each group of units.

    Attributes:
        inputs: Standard deviation of :math:`W_{ih} x_t`.
        recurrent: That of :math:`W_{hh} h_{t-1}`.
        total: That of their sum.
        mean: Mean of their sum.
        outputs: Standard deviation of the projection's outputs; empty without a projection.
    """

    inputs: Tensor
    recurrent: Tensor
    total: Tensor
    mean: Tensor
    outputs: Tensor


def find_factors(
    measure: Callable[[Factors], Statistics], free: Free, target_std: float, recurrent_share: float
) -> Factors:
    r"""Return factors at which every group has ``target_std`` to 1e-3, and the recurrent part its share to 1e-2.

    With :math:`\rho` for the share, a group's factors are written :math:`s t^{-\rho}` of the input weights and
    :math:`s t^{1 - \rho}` of the recurrent ones, so that s moves the standard deviation alone and t the share alone, as
    long as the states stay. As they follow, whole steps diverge or cycle. Anderson's acceleration of half steps mostly
    settles within 20. Where it has not in 30, quarter steps do,

    .. math:: s \leftarrow s \, (\sigma / \mathrm{std})^{1/4}, \qquad
              t \leftarrow t \, \Bigl(\frac{\rho}{1 - \rho} \, \frac{V[W_{ih} x]}{V[W_{hh} h]}\Bigr)^{1/8}.

    or bring it near: after 60 of them Anderson's acceleration starts again, for 100 more. The share bounds what a ReLU
    feeds back, so that it needs nothing else.

    Args:
        measure: Runs the layer.
        free: A group of which one part alone is free has no share; one without any is left as it is.
        target_std: Of every group.
        recurrent_share: :math:`\rho = V[W_{hh} h] / (V[W_{hh} h] + V[W_{ih} x])`, between 0 and 1.

    Raises:
        UnsettledError: There are no such factors, or the states are so chaotic that none are found.
    """
    both, either = free.ih & free.hh, free.ih | free.hh
    sizes = [len(either), len(both), len(free.hr), len(free.shift)]
    odds = 0.5 * math.log(recurrent_share / (1 - recurrent_share))

    def factors(x: Tensor) -> Factors:
        scale, tilt, projection, shift = torch.split(x, sizes)
        tilt = tilt * both
        ih = ((scale - recurrent_share * tilt) * free.ih).exp()
        hh = ((scale + (1 - recurrent_share) * tilt) * free.hh).exp()
        return Factors(ih, hh, projection.exp(), shift * target_std)

    def missed(x: Tensor) -> Tensor:
        seen = measure(factors(x))
        total = (seen.total / target_std).log()
        tilt = (seen.recurrent / seen.inputs).log() - odds
        shift = seen.mean / target_std + torch.split(x, sizes)[3] if sizes[3] else seen.mean[:0]
        parts = ((total, either), (tilt, both), ((seen.outputs / target_std).log(), free.hr), (shift, free.shift))
        f = torch.cat([part.where(is_free, 0.0) for part, is_free in parts])
        # What overflows is too large.
        return f.nan_to_num(nan=LARGEST_STEP).clamp(-LARGEST_STEP, LARGEST_STEP)

    tolerance = torch.full((sum(sizes),), STD_TOLERANCE, dtype=torch.float64, device=either.device)
    torch.split(tolerance, sizes)[1].fill_(SHARE_TOLERANCE)
    start = torch.zeros_like(tolerance)
    found = find_root(missed, start, tolerance, QUICK_STEPS)
    if found is None:
        x = _damped(missed, start, tolerance)
        if (found := find_root(missed, x, tolerance)) is None:
            groups = [*range(sizes[0]), *range(sizes[1]), *[-1] * sizes[2], *range(sizes[3])]
            raise UnsettledError(groups[int((missed(x).abs() / tolerance).argmax())])
    return factors(found)


def _damped(missed: Callable[[Tensor], Tensor], x: Tensor, tolerance: Tensor) -> Tensor:
    for _ in range(STEPS):
        f = missed(x)
        if (f.abs() <= tolerance).all():
            break
        x = x - DAMPING * f
    return x
