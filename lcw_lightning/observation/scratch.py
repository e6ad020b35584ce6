"""Memory on CPUs for intermediate results, which is used again: new memory takes longer than the sums in it."""

import torch
from torch import Tensor

__all__ = ["Scratch"]

_MOST = 256  # tensors that are held by shape; in sequences of any length shapes have no end


class Scratch:
    """Tensors whose content lasts until the next one is taken, and tensors of ones.

    Example:
        >>> scratch, values = Scratch(), torch.zeros(2, 3)
        >>> scratch.like(values, torch.float64).dtype, scratch.ones(values)
        (torch.float64, tensor([[1., 1.]]))
    """

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, Tensor] = {}
        self._tensors: dict[object, Tensor] = {}

    def like(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a tensor of this dtype, in the shape and layout of ``values``, of any content."""
        if not _is_plain(values):
            return torch.empty_like(values, dtype=dtype)
        key = dtype, values.shape, values.stride()
        return self._tensors[key] if key in self._tensors else self._like(key, values, dtype)

    def ones(self, values: Tensor) -> Tensor:
        """Return a row of as many ones as ``values`` has rows, in its dtype; do not write to it."""
        if not _is_plain(values):
            return values.new_ones(1, values.shape[0])
        key = values.dtype, values.shape[0]
        return self._tensors[key] if key in self._tensors else self._ones(key, values)

    # In inference mode a later sample could not write to new memory. To leave the mode takes longer than to look up.

    @torch.inference_mode(False)
    def _like(self, key: object, values: Tensor, dtype: torch.dtype) -> Tensor:
        layout = torch.empty_like(values, dtype=dtype, device="meta")  # dense, where values are expanded
        return self._keep(key, self._at_least(layout.numel(), dtype).as_strided(layout.shape, layout.stride()))

    @torch.inference_mode(False)
    def _ones(self, key: object, values: Tensor) -> Tensor:
        return self._keep(key, values.new_ones(1, values.shape[0]))

    def _at_least(self, number: int, dtype: torch.dtype) -> Tensor:
        if dtype not in self._memory or self._memory[dtype].numel() < number:
            self._tensors.clear()
            self._memory[dtype] = torch.empty(number, dtype=dtype, device="cpu")
        return self._memory[dtype]

    def _keep(self, key: object, tensor: Tensor) -> Tensor:
        if len(self._tensors) == _MOST:
            self._tensors.clear()
        self._tensors[key] = tensor
        return tensor


def _is_plain(values: Tensor) -> bool:
    # Other devices have new memory at once, and their streams would write to the same.
    return values.is_cpu and type(values) is Tensor
