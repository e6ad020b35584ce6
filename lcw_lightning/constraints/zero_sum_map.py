r"""The weight :math:`w = B v` as one node of the autograd graph, in few operations and few passes over memory."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import override

from lcw_lightning.compat import is_transformed
from lcw_lightning.theory.zero_sum import HALF, embed_zero_sum, shear, zero_sum_coordinates

__all__ = ["zero_sum_weight"]

ORDINARY = (Tensor, nn.Parameter)  # tensors that are traced or sharded have other types
SMALL = 2**17
"""Elements of the largest weight that stays in a core's cache, where an operation costs more than a memory pass."""


def zero_sum_weight(
    v: Tensor, shape: tuple[int, ...], memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Return :func:`~lcw_lightning.theory.zero_sum.embed_zero_sum` of ``v`` in a weight's shape and layout.

    Derivatives of any order, forward derivatives, the transforms of :mod:`torch.func` and ``torch.compile`` work: under
    tracing and transforms the map is plain operations, otherwise one autograd function.

    Args:
        v: Coordinates, shape ``(units, fan_in - 1)``.
        shape: Of the weight, ``units`` first.
        memory_format: Of the weight.

    Returns:
        The weight, of this shape and memory format, in the dtype of ``v``.

    Example:
        >>> zero_sum_weight(torch.tensor([[3.0]]), (1, 2, 1, 1)).flatten()
        tensor([-2.1213,  2.1213])
    """
    if is_transformed():  # where tensors have no memory format
        return embed_zero_sum(v).view(shape)
    is_traced = torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    w: Tensor
    if is_traced or type(v) not in ORDINARY:
        w = embed_zero_sum(v)
    elif _is_small(v) and not torch.is_grad_enabled():
        w = _embed(v)  # without the call of an autograd function, which takes as long as an operation
    else:
        w = _Embedding.apply(v)
    return w if len(shape) == 2 else w.view(shape).contiguous(memory_format=memory_format)


class _Embedding(Function):
    # Without setup_context, which costs Python time in each call; transforms need it, but take plain operations.
    @staticmethod
    @override
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return _embed(v)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return zero_sum_coordinates(grad)  # the transpose of B, in differentiable operations

    @staticmethod
    @override
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return embed_zero_sum(tangent)


def _is_small(v: Tensor) -> bool:
    return v.numel() <= SMALL and v.is_cpu


def _embed(v: Tensor) -> Tensor:
    if v.dtype in HALF:
        return embed_zero_sum(v)
    m = v.shape[1] + 1
    if _is_small(v):
        zeros, directions = _constants(v.shape[0], m, v.dtype)
        return torch.cat((zeros, v), 1).addcmul_(v.sum(1, keepdim=True), directions)
    w = v.new_empty((v.shape[0], m))
    first, rest = w.split_with_sizes([1, m - 1], 1)
    torch.sum(v, 1, keepdim=True, out=first)
    torch.sub(v, first, alpha=shear(m), out=rest)
    first.div_(-math.sqrt(m))
    return w


@lru_cache
def _constants(units: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a column of zeros, and the factor by which each entry of a unit adds the sum of ``v``."""
    directions = torch.full((m,), -shear(m), dtype=dtype, device="cpu")
    directions[0] = -1 / math.sqrt(m)
    return torch.zeros(units, 1, dtype=dtype, device="cpu"), directions
