r"""Activations that are mostly zero (Price et al., ICLR 2024, arXiv 2402.16184, Section 2).

====================  ======================  ===================================================
Module                Paper                   :math:`\varphi(x)`, with m = ``max``
====================  ======================  ===================================================
ShiftedReLU           :math:`ReLU_\tau`       :math:`\max(x - \tau, 0)`
SoftThreshold         :math:`ST_\tau`         :math:`\mathrm{sign}(x) \max(|x| - \tau, 0)`
ClippedShiftedReLU    :math:`CReLU_{\tau,m}`  :math:`\min(\max(x - \tau, 0), m)`
ClippedSoftThreshold  :math:`CST_{\tau,m}`    :math:`\mathrm{sign}(x) \min(\max(|x| - \tau, 0), m)`
====================  ======================  ===================================================

Zeros and saturated values are exact. The slope is 0 where the output is 0 or saturated, the kinks included, and 1
elsewhere. NaN stays NaN. In half precision tau and max may be rounded to the input's dtype: a value just outside the
dead zone may then become 0, but a value inside never becomes non-zero.
"""

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lcw_lightning.theory.edge_of_chaos import threshold_and_clip
from lcw_lightning.theory.thresholded import Thresholded

__all__ = ["ClippedShiftedReLU", "ClippedSoftThreshold", "ShiftedReLU", "SoftThreshold"]


class _ThresholdedActivation(nn.Module):
    odd: ClassVar[bool]
    clipped: ClassVar[bool]

    def __init__(self, tau: float, max: float) -> None:
        super().__init__()
        name = type(self).__name__
        if not math.isfinite(tau) or (self.odd and tau < 0):
            raise ValueError(f"{name} needs a finite tau{' of at least 0' * self.odd}, got {tau}.")
        if not max > 0:
            raise ValueError(f"{name} needs a max above 0, got {max}; for no max use the class without Clipped.")
        self.tau, self.max = float(tau), float(max)

    @property
    def thresholded(self) -> Thresholded:
        """The activation as a function of the theory, in closed form."""
        return Thresholded(self.tau, self.max, self.odd)

    @override
    def extra_repr(self) -> str:
        return f"tau={self.tau:.6g}" + f", max={self.max:.6g}" * self.clipped


class _Unclipped(_ThresholdedActivation):
    clipped = False

    def __init__(self, tau: float | None = None, *, sparsity: float | None = None, q: float = 1.0) -> None:
        if tau is not None and sparsity is None:
            super().__init__(tau, math.inf)
        elif tau is None and sparsity is not None:
            super().__init__(*threshold_and_clip(type(self), sparsity, q=q))
        else:
            name, given = type(self).__name__, f"tau={tau}, sparsity={sparsity}"
            raise ValueError(f"{name} needs either tau or sparsity, got {given}: give one of them.")


class _Clipped(_ThresholdedActivation):
    clipped = True

    def __init__(
        self,
        tau: float | None = None,
        max: float | None = None,
        *,
        sparsity: float | None = None,
        slope: float = 0.7,
        q: float = 1.0,
        zero_sum: bool = False,
    ) -> None:
        if tau is not None and max is not None and sparsity is None:
            super().__init__(tau, max)
        elif tau is None and max is None and sparsity is not None:
            super().__init__(*threshold_and_clip(type(self), sparsity, slope, q, zero_sum))
        else:
            name, given = type(self).__name__, f"tau={tau}, max={max}, sparsity={sparsity}"
            raise ValueError(f"{name} needs either tau and max or sparsity, got {given}: give those two or that one.")


class ShiftedReLU(_Unclipped):
    r""":math:`\max(x - \tau, 0)`, the paper's :math:`ReLU_\tau`; with tau 0 it is ReLU.

    Args:
        tau: Threshold above which the output rises; may be negative.
        sparsity: Replaces tau: the fraction of zeros at the output for inputs of variance ``q``.
        q: Variance of the inputs, for ``sparsity``.

    Raises:
        ValueError: Both or neither of tau and sparsity are given, or a value is out of range.

    Example:
        >>> import torch
        >>> ShiftedReLU(tau=0.5)(torch.tensor([-1.0, 0.5, 2.0]))
        tensor([0.0000, 0.0000, 1.5000])
        >>> ShiftedReLU(sparsity=0.85)
        ShiftedReLU(tau=1.03643)
    """

    odd = False

    @override
    def forward(self, x: Tensor) -> Tensor:
        # In place, so that autograd keeps only the output, which the next layer keeps anyway.
        return functional.relu(x - self.tau, inplace=True)


class SoftThreshold(_Unclipped):
    r""":math:`\mathrm{sign}(x) \max(|x| - \tau, 0)`, the paper's :math:`ST_\tau`; with tau 0 it is the identity.

    Args:
        tau: Half the width of the dead zone, at least 0.
        sparsity: Replaces tau: the fraction of zeros at the output for inputs of variance ``q``.
        q: Variance of the inputs, for ``sparsity``.

    Raises:
        ValueError: Both or neither of tau and sparsity are given, or a value is out of range.

    Example:
        >>> import torch
        >>> SoftThreshold(tau=0.5)(torch.tensor([-2.0, 0.5, 2.0]))
        tensor([-1.5000,  0.0000,  1.5000])
    """

    odd = True

    @override
    def forward(self, x: Tensor) -> Tensor:
        return functional.softshrink(x, self.tau)


class ClippedShiftedReLU(_Clipped):
    r""":math:`\min(\max(x - \tau, 0), m)`, the paper's :math:`CReLU_{\tau,m}`.

    Args:
        tau: Threshold above which the output rises; may be negative.
        max: The largest output m.
        sparsity: Replaces tau and max: the fraction of zeros at the output for inputs of variance ``q``. The max is
            chosen so that the variance map has the given slope.
        slope: Slope of the variance map at its fixed point ``q`` on the edge of chaos, for ``sparsity``.
        q: Variance of the inputs, for ``sparsity``.
        zero_sum: Whether ``slope`` refers to zero-sum weights (LCW).

    Raises:
        ValueError: Neither tau and max nor sparsity are given, or a mixture of both, or a value is out of range.

    Example:
        >>> import torch
        >>> ClippedShiftedReLU(tau=0.5, max=1.0)(torch.tensor([-1.0, 1.0, 2.0]))
        tensor([0.0000, 0.5000, 1.0000])
        >>> ClippedShiftedReLU(sparsity=0.85, slope=0.7)
        ClippedShiftedReLU(tau=1.03643, max=1.17037)
    """

    odd = False

    @override
    def forward(self, x: Tensor) -> Tensor:
        return functional.hardtanh(x - self.tau, 0.0, self.max)


class ClippedSoftThreshold(_Clipped):
    r""":math:`\mathrm{sign}(x) \min(\max(|x| - \tau, 0), m)`, the paper's :math:`CST_{\tau,m}`.

    Args:
        tau: Half the width of the dead zone, at least 0.
        max: The largest output m.
        sparsity: As in :class:`ClippedShiftedReLU`, like the other arguments.
        slope: Used with ``sparsity``.
        q: Used with ``sparsity``.
        zero_sum: Used with ``sparsity``; it has no effect, since an odd function has mean zero.

    Raises:
        ValueError: Neither tau and max nor sparsity are given, or a mixture of both, or a value is out of range.

    Example:
        >>> import torch
        >>> ClippedSoftThreshold(tau=0.5, max=1.0)(torch.tensor([-3.0, 0.5, 1.0]))
        tensor([-1.0000,  0.0000,  0.5000])
    """

    odd = True

    @override
    def forward(self, x: Tensor) -> Tensor:
        return functional.hardtanh(functional.softshrink(x, self.tau), -self.max, self.max)
