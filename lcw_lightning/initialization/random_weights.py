"""Random matrices with one row per unit and rows of mean square norm 1, zero-sum or not, and kernels made of them."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lcw_lightning.theory.zero_sum import embed_zero_sum, project_zero_sum

__all__ = ["at_centre", "gaussian_rows", "orthogonal_rows"]


def gaussian_rows(units: int, fan_in: int, zero_sum: bool = False, **factory: Any) -> Tensor:
    r"""Draw rows :math:`w \sim \mathcal{N}(0, I / m)` for m = ``fan_in``.

    Zero-sum rows are :math:`w = u - \bar u` with :math:`u \sim \mathcal{N}(0, I / (m - 1))`: a Gaussian on the
    subspace of m - 1 dimensions. Elements have variance 1/m in both cases, and the variance of :math:`w \cdot a` for
    an input a is the mean square of its elements, or with zero-sum rows their unbiased sample variance.

    Args:
        units: Number of rows.
        fan_in: Length of the rows, at least 2 for zero-sum rows.
        zero_sum: Make each row sum to zero.
        factory: ``dtype`` and ``device``.

    Returns:
        Shape ``(units, fan_in)``.
    """
    rows = torch.randn(units, fan_in, **factory) / math.sqrt(fan_in - zero_sum)
    return project_zero_sum(rows) if zero_sum else rows


def orthogonal_rows(units: int, fan_in: int, zero_sum: bool = False, **factory: Any) -> Tensor:
    r"""Draw orthonormal rows, or orthogonal columns if there are more rows than dimensions.

    The columns have length :math:`\sqrt{n / d}` for n = ``units`` rows in d = ``fan_in`` dimensions, so that rows have
    mean square norm 1. Zero-sum rows are :math:`O B^\top`, where O is such a matrix with d = ``fan_in - 1`` columns and
    B is the orthonormal basis of the zero-sum vectors. Arguments and shape are those of :func:`gaussian_rows`.

    Example:
        >>> rows = orthogonal_rows(3, 8, zero_sum=True)
        >>> torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-6), bool(rows.sum(1).abs().max() < 1e-6)
        (True, True)
    """
    dimensions = fan_in - zero_sum
    rows = nn.init.orthogonal_(torch.empty(units, dimensions, **factory), gain=max(1.0, units / dimensions) ** 0.5)
    return embed_zero_sum(rows) if zero_sum else rows


def at_centre(matrix: Tensor, *kernel_size: int) -> Tensor:
    """Return the kernel of a convolution that applies ``matrix`` at each position: it is zero except at its centre.

    Args:
        matrix: Shape ``(out_channels, in_channels)``.
        kernel_size: Odd numbers; empty for a Linear layer, whose weight is the matrix.

    Returns:
        Shape ``(out_channels, in_channels, *kernel_size)``.

    Example:
        >>> at_centre(torch.tensor([[5.0]]), 3)
        tensor([[[0., 5., 0.]]])
    """
    centre = matrix.view(*matrix.shape, *[1] * len(kernel_size))
    return nn.functional.pad(centre, [size // 2 for size in reversed(kernel_size) for _ in range(2)])
