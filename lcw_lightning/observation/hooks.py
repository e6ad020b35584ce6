"""Context managers that show what layers see and send, forward and backward, and leave no hook behind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lcw_lightning.observation.compiled import eager_mode

__all__ = ["Observer", "Quantity", "observe"]

Quantity = Literal["input", "preactivation", "preactivation_gradient", "input_gradient"]
Observer = Callable[[str, Quantity, Tensor], None]


@contextmanager
def observe(layers: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    """Call ``observer(name, quantity, tensor)`` for each layer's tensors as they appear, within the block.

    For a layer ``z = W a + b`` the quantities are ``input`` a and ``preactivation`` z in the forward pass, then
    ``preactivation_gradient`` dL/dz and ``input_gradient`` dL/da in the backward pass. The gradient of the input is
    this layer's share alone, where other layers read the same tensor too; it is computed even for the network's own
    input, but not for a frozen layer whose input needs none. Tensors come detached, are not kept, and values and
    gradients of the network stay bit for bit what they are. Compiled networks run eagerly within the block. A layer
    that is called several times is observed each time.

    Of a layer that returns several tensors z is the first. The last hidden states that a recurrent layer returns
    beside it show their gradient as one of z, since a network may read either; packed sequences show their data.

    Args:
        layers: Modules that take their input as first argument, by name. Where the same tensor is given as another
            argument too, as in self-attention, the gradient of the input is that of all of them. If that tensor is
            read elsewhere too, and is not all of query, key and value, its shares may be summed in another order.
            Of an input that is no tensor of floating-point numbers nothing is shown.
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
        given = args[0] if args else kwargs.get(_first_parameter(layer), next(iter(kwargs.values()), None))
        first = _data(given)
        if not (isinstance(first, Tensor) and first.is_floating_point()):
            return None  # the layer knows what it makes of this
        self.observer(name, "input", first.detach())
        trained = first.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())
        if not (trained and torch.is_grad_enabled()):
            return None
        # An alias, so that its gradient is this layer's share alone.
        alias = first.view_as(first) if first.requires_grad else first.detach().requires_grad_()
        self.observe_gradient(alias, name, "input_gradient")
        replacement = given._replace(data=alias) if isinstance(given, PackedSequence) else alias
        # Attention computes another way where query, key and value are not one object.
        positional = tuple(replacement if value is given else value for value in args)
        return positional, {key: replacement if value is given else value for key, value in kwargs.items()}

    def after(self, name: str, layer: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
        first = _data(output[0] if isinstance(output, tuple) and output else output)
        if not (isinstance(first, Tensor) and first.is_floating_point()):
            return None
        self.observer(name, "preactivation", first.detach())
        if first._is_view() and first.requires_grad:
            # A view that a later layer changes in place, such as ReLU(inplace=True), loses the hooks on it.
            first = first.clone()
            output = _with_first(output, first)
        read = [first]
        if isinstance(layer, nn.RNNBase):
            read.append(output[1] if isinstance(output[1], Tensor) else output[1][0])
        for tensor in read:
            if tensor.requires_grad:
                self.observe_gradient(tensor, name, "preactivation_gradient")
        return output

    def observe_gradient(self, tensor: Tensor, name: str, quantity: Quantity) -> None:
        def hook(gradient: Tensor | None) -> None:
            if gradient is not None:  # as for the outputs of a recurrent layer of which only its last state is read
                self.observer(name, quantity, gradient.detach())

        self.handles.append(tensor.register_hook(hook))  # type: ignore[no-untyped-call]


def _first_parameter(layer: nn.Module) -> str:
    return next(iter(signature(layer.forward).parameters))


def _with_first(output: Any, tensor: Tensor) -> Any:
    """Return a layer's output with ``tensor`` in place of its first tensor."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, PackedSequence):
        return output._replace(data=tensor)
    parts = (_with_first(output[0], tensor), *output[1:])
    return parts if type(output) is tuple else type(output)(*parts)


def _data(value: Any) -> Tensor:
    tensor: Tensor = value.data if isinstance(value, PackedSequence) else value
    return tensor
