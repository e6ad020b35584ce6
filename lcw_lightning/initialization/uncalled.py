"""Rescale the weights that a network reads without a call of their layers, such as ``F.linear(x, self.qkv.weight)``."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lcw_lightning.compat import is_transformed, saves_by_hooks
from lcw_lightning.initialization.first_forward import Rescaling

__all__ = ["RescaleUncalled"]

_OPERANDS = ("input", "weight", "bias")
_PRODUCTS = {
    *(functional.linear, functional.conv1d, functional.conv2d, functional.conv3d),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
}
"""Functions that torch's own layers call, of an input, a weight and perhaps a bias."""


class RescaleUncalled(TorchFunctionMode):
    """Within the block, rescales a waiting weight on the first input that one of torch's functions multiplies by it.

    Only whole weights are recognized, not their slices or transposes.
    """

    def __init__(self, rescaling: Rescaling) -> None:
        super().__init__()
        self.rescaling = rescaling

    @override
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _PRODUCTS or is_transformed():
            return function(*args, **kwargs)
        operands = dict(zip(_OPERANDS, args, strict=False)) | kwargs
        name = self._waiting(operands["weight"])
        if name is None:
            return function(*args, **kwargs)

        def product(weight: Tensor, bias: Tensor | None) -> Tensor:
            given = {**operands, "weight": weight, "bias": bias}
            return cast(Tensor, function(*(given.pop(operand) for operand in _OPERANDS), *args[3:], **given))

        ref, weight, bias = self.rescaling.waiting[name], operands["weight"], operands.get("bias")
        with torch.no_grad():
            own = self.rescaling.biases.get(name)
            if own is not bias:
                self.rescaling.biases.pop(name, None)  # whatever is added here, it is not the bias of the layer
            self.rescaling.rescale(name, product(weight, None), operands["input"])
        self.rescaling.disarm(name)
        return product(weight if isinstance(weight, torch.nn.Parameter) else ref.value, bias)

    def _waiting(self, weight: Any) -> str | None:
        """Return the name of a weight that waits for its first input, outside the call of its own layer."""
        waiting, read = self.rescaling.waiting, self.rescaling.read
        found = (
            name
            for name, ref in waiting.items()
            if ref.is_observable and weight is read.get(name, ref.layer._parameters.get(ref.name))
        )
        name = next(found, None) if isinstance(weight, Tensor) else None
        # A parametrized weight is read again, and activation checkpointing counts the tensors that autograd saves.
        is_read_again = name in read and torch.is_grad_enabled() and saves_by_hooks()
        return None if name in self.rescaling.calling or is_read_again else name
