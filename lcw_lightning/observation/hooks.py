"""A context manager that shows the inputs and outputs of layers and their gradients, and leaves no hook behind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lcw_lightning.compat import is_transformed, is_view
from lcw_lightning.observation.compiled import eager_mode

__all__ = ["Observer", "Quantity", "observe"]

Quantity = Literal["input", "preactivation", "preactivation_gradient", "input_gradient"]
Observer = Callable[[str, Quantity, Tensor], None]


@contextmanager
def observe(layers: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    """Call ``observer(name, quantity, tensor)`` for each tensor of the layers that is computed within the block.

    For a layer ``z = W a + b`` the quantities are ``input`` a and ``preactivation`` z in the forward pass, then
    ``preactivation_gradient`` dL/dz and ``input_gradient`` dL/da in the backward pass. If several layers read the same
    tensor, the gradient of the input is this layer's share only. It is also computed for the network's own input, but
    not for a frozen layer whose input needs no gradient. The tensors are detached and not kept, and values and
    gradients of the network stay bit for bit the same. Compiled networks run eagerly within the block. A layer that is
    called several times is observed each time.

    If a layer returns several tensors, as a tuple or a dict, z is the first. A recurrent layer also returns its last
    hidden states; their gradient is shown as a gradient of z at these steps, because a network may read either. Of
    packed sequences the data are shown.

    Args:
        layers: Modules by name; the input is the first argument that is a tensor of floating-point numbers. If another
            argument is the same tensor, as in self-attention, the gradient of the input is the sum over all of these
            arguments. If that tensor is also read elsewhere, and is not all of query, key and value, its gradients may
            be summed in another order.
        observer: Must not keep its tensors, because later operations may change them in place.

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
    """The hooks of one observation, and the handles by which they are removed."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.handles: list[RemovableHandle] = []

    def before(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        given = next((value for value in _in_order(layer, args, kwargs) if _can_be_observed(_data(value))), None)
        if given is None:
            return None  # an error only if the layer raises one
        first = _data(given)
        self.observer(name, "input", first.detach())
        trained = first.requires_grad or any(parameter.requires_grad for parameter in layer.parameters())
        if not (trained and torch.is_grad_enabled()):
            return None
        # The gradient of an alias is this layer's share only.
        alias = first.view_as(first) if first.requires_grad else first.detach().requires_grad_()
        self.observe_gradient(alias, name, "input_gradient")
        replacement = given._replace(data=alias) if isinstance(given, PackedSequence) else alias
        # Attention takes another code path if query, key and value are not the same object.
        positional = tuple(replacement if value is given else value for value in args)
        return positional, {key: replacement if value is given else value for key, value in kwargs.items()}

    def after(self, name: str, layer: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
        first = _first(output)
        if not _can_be_observed(first):
            return None
        self.observer(name, "preactivation", first.detach())
        if is_view(first) and first.requires_grad:
            # Hooks on a view are lost when a later layer, such as ReLU(inplace=True), changes it in place.
            first = first.clone()
            output = _with_first(output, first)
        if isinstance(layer, nn.RNNBase) and first.requires_grad:
            self.observe_gradient_of_states(layer, name, output)
        elif first.requires_grad:
            self.observe_gradient(first, name, "preactivation_gradient")
        return output

    def observe_gradient_of_states(self, layer: nn.RNNBase, name: str, output: tuple[Any, Any]) -> None:
        states, last = output[0], output[1] if isinstance(output[1], Tensor) else output[1][0]

        def hook(gradients: Sequence[Tensor | None]) -> None:
            if (gradient := _gradient_of_states(layer, states, gradients)) is not None:
                self.observer(name, "preactivation_gradient", gradient.detach())

        self.handles.append(register_multi_grad_hook((_data(states), last), hook))

    def observe_gradient(self, tensor: Tensor, name: str, quantity: Quantity) -> None:
        def hook(gradient: Tensor | None) -> None:
            if gradient is not None:
                self.observer(name, quantity, gradient.detach())

        self.handles.append(tensor.register_hook(hook))  # type: ignore[no-untyped-call]


def _gradient_of_states(
    layer: nn.RNNBase, states: Tensor | PackedSequence, gradients: Sequence[Tensor | None]
) -> Tensor | None:
    """Return the gradient of a recurrent layer's hidden states, to which that of its last ones belongs.

    So it does not matter whether a network reads ``output[:, -1]`` or the last hidden state.
    """
    full, of_last = gradients
    if of_last is None:
        return full
    full = torch.zeros_like(_data(states)) if full is None else full.clone()
    directions = 1 + layer.bidirectional
    for direction, part in enumerate(of_last[-directions:]):  # of the last of stacked layers
        units = slice(direction * part.shape[-1], (direction + 1) * part.shape[-1])
        if isinstance(states, PackedSequence):
            full[_last_rows(states, direction), units] += part
        else:
            steps = full.transpose(0, 1) if layer.batch_first and full.dim() == 3 else full
            steps[direction - 1, ..., units] += part  # the second direction ends at step 0
    return full


def _last_rows(packed: PackedSequence, direction: int) -> Tensor:
    """Return where the last step of each sequence lies in packed data."""
    sizes = packed.batch_sizes
    sequences = torch.arange(int(sizes[0]))
    lengths = (sizes.unsqueeze(1) > sequences).sum(0)
    rows = sequences if direction else (sizes.cumsum(0) - sizes)[lengths - 1] + sequences
    return rows if packed.unsorted_indices is None else rows[packed.unsorted_indices.cpu()]


def _in_order(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Yield a layer's arguments; of those given by name, its first parameter comes first."""
    yield from args
    if kwargs:  # looking at a signature takes as long as a narrow layer
        yield kwargs.get(next(iter(signature(layer.forward).parameters), ""))
        yield from kwargs.values()


def _can_be_observed(value: Any) -> bool:
    # Within a transform of torch.func tensors take no hooks, and nested tensors have no common shape.
    return isinstance(value, Tensor) and value.is_floating_point() and not value.is_nested and not is_transformed()


def _with_first(output: Any, tensor: Tensor) -> Any:
    """Return a layer's output with ``tensor`` in place of its first tensor."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, PackedSequence):
        return output._replace(data=tensor)
    if isinstance(output, dict):
        changed = copy(output)
        changed[_first_key(output)] = tensor
        return changed
    parts = (_with_first(output[0], tensor), *output[1:])
    return parts if type(output) is tuple else type(output)(*parts)


def _first(output: Any) -> Any:
    """Return the first tensor of a layer's output."""
    if isinstance(output, dict):
        return output.get(_first_key(output))
    return _data(output[0] if isinstance(output, tuple) and output else output)


def _first_key(output: dict[Any, Any]) -> Any:
    return next((key for key, value in output.items() if _can_be_observed(value)), None)


def _data(value: Any) -> Tensor:
    tensor: Tensor = value.data if isinstance(value, PackedSequence) else value
    return tensor
