"""Context managers that show what layers see and send, forward and backward, and leave no hook behind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Observer", "Quantity", "eager_mode", "observe"]

Quantity = Literal["input", "preactivation", "preactivation_gradient", "input_gradient"]
Observer = Callable[[str, Quantity, Tensor], None]


class _EagerMode:
    """Runs compiled networks eagerly while anybody holds it.

    Entered and left in any order, unlike :func:`torch.compiler.set_stance`, which restores what it found: callbacks
    that each hold it for one training step leave it in the order in which they came.
    """

    def __init__(self) -> None:
        self._holders = 0
        self._stance = ExitStack()

    def __enter__(self) -> None:
        if self._holders == 0:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        self._holders += 1

    def __exit__(self, *_: object) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._stance.close()


eager_mode = _EagerMode()
"""Hooks on a compiled network fire within this context."""


@contextmanager
def observe(layers: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    """Call ``observer(name, quantity, tensor)`` for each layer's tensors as they appear, within the block.

    For a layer ``z = W a + b`` the quantities are ``input`` a and ``preactivation`` z in the forward pass, then
    ``preactivation_gradient`` dL/dz and ``input_gradient`` dL/da in the backward pass. The gradient of the input is
    this layer's share alone, where other layers read the same tensor too; it is computed even for the network's own
    input, but not for a frozen layer whose input needs none. Tensors come detached, are not kept, and values and
    gradients of the network stay bit for bit what they are. Compiled networks run eagerly within the block. A layer
    that is called several times is observed each time.

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
    hooks = _Hooks(observer)
    try:
        for name, layer in layers.items():
            hooks.handles.append(layer.register_forward_pre_hook(partial(hooks.before, name), with_kwargs=True))
            hooks.handles.append(layer.register_forward_hook(partial(hooks.after, name)))
        with eager_mode:
            yield
    finally:
        for handle in hooks.handles:
            handle.remove()


class _Hooks:
    """The hooks of one observation, and the handles to take them away."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.handles: list[RemovableHandle] = []

    def before(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        keyword = "" if args else next(iter(kwargs))
        first = args[0] if args else kwargs[keyword]
        self.observer(name, "input", first.detach())
        trained = first.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())
        if not (trained and torch.is_grad_enabled()):
            return None
        # An alias, so that its gradient is this layer's share alone.
        alias = first.view_as(first) if first.requires_grad else first.detach().requires_grad_()
        self.observe_gradient(alias, name, "input_gradient")
        return ((alias, *args[1:]), kwargs) if args else (args, {**kwargs, keyword: alias})

    def after(self, name: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        self.observer(name, "preactivation", output.detach())
        if output.requires_grad:
            self.observe_gradient(output, name, "preactivation_gradient")

    def observe_gradient(self, tensor: Tensor, name: str, quantity: Quantity) -> None:
        handle = tensor.register_hook(lambda gradient: self.observer(name, quantity, gradient.detach()))  # type: ignore[no-untyped-call]
        self.handles.append(handle)
