"""Context managers that show what layers see and send, forward and backward, and leave no hook behind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Observer", "Quantity", "observe"]

Quantity = Literal["input", "preactivation", "preactivation_gradient", "input_gradient"]
Observer = Callable[[str, Quantity, Tensor], None]


@contextmanager
def observe(layers: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    """Call ``observer(name, quantity, tensor)`` for each layer's tensors as they appear, within the block.

    For a layer ``z = W a + b`` the quantities are ``input`` a and ``preactivation`` z in the forward pass, then
    ``preactivation_gradient`` dL/dz and ``input_gradient`` dL/da in the backward pass. The gradient of the input is
    this layer's share alone, where other layers read the same tensor too; it is computed even for the network's own
    input. Tensors come detached, are not kept, and values and gradients of the network stay bit for bit what they
    are. Hooks fire in eager mode only. A layer that is called several times is observed each time.

    Args:
        layers: Modules that take their input as first argument and return a tensor, by name.
        observer: Must not keep its tensors: later operations may change them in place.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())
        >>> with observe({"first": network[0]}, lambda name, quantity, tensor: print(name, quantity, *tensor.shape)):
        ...     network(torch.ones(5, 3)).sum().backward()
        first input 5 3
        first preactivation 5 2
        first preactivation_gradient 5 2
        first input_gradient 5 3
    """
    handles: list[RemovableHandle] = []

    def before(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        first = args[0] if args else kwargs["input"]
        observer(name, "input", first.detach())
        if not torch.is_grad_enabled():
            return None
        alias = first.view_as(first) if first.requires_grad else first.detach().requires_grad_()
        on_gradient(alias, name, "input_gradient")
        return ((alias, *args[1:]), kwargs) if args else (args, {**kwargs, "input": alias})

    def after(name: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        observer(name, "preactivation", output.detach())
        if output.requires_grad:
            on_gradient(output, name, "preactivation_gradient")

    def on_gradient(tensor: Tensor, name: str, quantity: Quantity) -> None:
        handle = tensor.register_hook(lambda gradient: observer(name, quantity, gradient.detach()))  # type: ignore[no-untyped-call]
        handles.append(handle)

    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            handles.append(layer.register_forward_hook(partial(after, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
