r"""Zero-sum vectors :math:`\mathcal{W}_{LC} = \{w \in \mathbb{R}^m : \sum_i w_i = 0\}` and their orthonormal basis.

The paper (Kutsuna, Definition 3 and Section 3.1) writes a linearly constrained weight as :math:`w = B v` with a dense
basis :math:`B \in \mathbb{R}^{m \times (m-1)}` from a QR decomposition (Appendix B). The basis here is the last
:math:`m-1` columns of the Householder reflection that takes :math:`e_1` to :math:`-\mathbf{1}/\sqrt m`; it has a closed
form, so that ``B v`` and ``B.T w`` take O(m) time and need no matrix.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "BASIS_VERSION",
    "HALF",
    "embed_zero_sum",
    "project_zero_sum",
    "shear",
    "zero_sum_coordinates",
]

BASIS_VERSION = 1
"""The version of the basis, kept in checkpoints: in another basis the same coordinates give other weights."""

HALF = (torch.float16, torch.bfloat16)
"""The dtypes in which nothing is computed: float32 is used, and the result is rounded."""


def embed_zero_sum(v: Tensor) -> Tensor:
    r"""Return the zero-sum vectors :math:`w = B v` with coordinates ``v``.

    With :math:`s = \sum_i v_i` and :math:`c = (1 - 1/\sqrt m) / (m - 1) = 1 / (m + \sqrt m)`:

    .. math:: w_0 = -s / \sqrt m, \qquad w_i = v_i - c s \quad (i = 1, \dots, m-1).

    ``B`` is orthonormal, so that :math:`\|w\| = \|v\|`. Half precision is computed in float32.

    Args:
        v: Coordinates, shape ``(..., m - 1)`` with ``m >= 2``.

    Returns:
        Vectors that sum to zero, shape ``(..., m)``, in the dtype of ``v``.

    Example:
        >>> embed_zero_sum(torch.tensor([3.0]))
        tensor([-2.1213,  2.1213])
    """
    if v.dtype in HALF:
        return embed_zero_sum(v.float()).to(v.dtype)
    m = v.shape[-1] + 1
    s = v.sum(-1, keepdim=True)
    return torch.cat((s / -math.sqrt(m), torch.sub(v, s, alpha=shear(m))), dim=-1)


def zero_sum_coordinates(w: Tensor) -> Tensor:
    r"""Return the coordinates :math:`v = B^\top w`, the right inverse of :func:`embed_zero_sum`.

    .. math:: v_i = w_i - w_0 / \sqrt m - c \sum_{j=1}^{m-1} w_j
        = w_i - c \Big(\sqrt m \, w_0 + \sum_{j=0}^{m-1} w_j\Big) \quad (i = 1, \dots, m-1).

    A ``w`` off the subspace loses its component along :math:`\mathbf{1}`: the result has the coordinates of the
    orthogonal projection ``w - w.mean()``. Half precision is computed in float32.

    Args:
        w: Vectors, shape ``(..., m)`` with ``m >= 2``.

    Returns:
        Coordinates, shape ``(..., m - 1)``, in the dtype of ``w``.

    Example:
        >>> zero_sum_coordinates(torch.tensor([1.0, 2.0]))
        tensor([0.7071])
    """
    if w.dtype in HALF:
        return zero_sum_coordinates(w.float()).to(w.dtype)
    m = w.shape[-1]
    first, rest = w.split_with_sizes([1, m - 1], -1)
    shift = torch.add(w.sum(-1, keepdim=True), first, alpha=math.sqrt(m))
    return torch.sub(rest, shift, alpha=shear(m))


def project_zero_sum(w: Tensor) -> Tensor:
    r"""Return :math:`w - \bar w`, the zero-sum vector nearest to ``w``. Shape ``(..., m)`` in and out.

    Example:
        >>> project_zero_sum(torch.tensor([1.0, 2.0, 6.0]))
        tensor([-2., -1.,  3.])
    """
    if w.dtype in HALF:
        return project_zero_sum(w.float()).to(w.dtype)
    return w - w.mean(-1, keepdim=True)


def shear(m: int) -> float:
    r"""Return :math:`c = 1 / (m + \sqrt m)`, which each entry of ``B v`` but the first loses of the sum of ``v``."""
    return 1 / (m + math.sqrt(m))
