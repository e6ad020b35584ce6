"""Restore a network after a block of code that changes it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy

__all__ = ["at_rest", "restored", "undisturbed", "unless_it_fails"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the buffers of ``model`` (BatchNorm statistics among them) and the random number generators back at the end.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with undisturbed(norm):
        ...     _ = norm(torch.rand(8, 2))
        >>> norm.running_mean
        tensor([0., 0.])
    """
    buffers = _saved(module._buffers for module in model.modules())
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            _put_back(buffers)


@contextmanager
def restored(network: nn.Module) -> Iterator[None]:
    """Restore weights, gradients, buffers and random number generators at the end, bit for bit, also after an error.

    Parameters are the same objects in the same memory as before.

    Example:
        >>> network = nn.Linear(2, 1, bias=False)
        >>> before = network.weight.tolist()
        >>> with restored(network):
        ...     _ = nn.init.zeros_(network.weight)
        >>> network.weight.tolist() == before
        True
    """
    parameters = _saved(module._parameters for module in network.modules())
    gradients = [(p, p.grad, None if p.grad is None else p.grad.detach().clone()) for p in network.parameters()]
    with undisturbed(network):
        try:
            yield
        finally:
            _put_back(parameters)
            for parameter, gradient, value in gradients:
                parameter.grad = gradient
                if gradient is not None and value is not None:
                    gradient.detach().copy_(value)


@contextmanager
def unless_it_fails(model: nn.Module) -> Iterator[None]:
    """Let the block change ``model``; if it raises, put parameters, buffers and parametrizations back, bit for bit.

    Takes memory for a copy of the model until the block ends.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> before = layer.weight.tolist()
        >>> try:
        ...     with unless_it_fails(layer):
        ...         _ = nn.init.zeros_(layer.weight)
        ...         raise ValueError
        ... except ValueError:
        ...     layer.weight.tolist() == before
        True
    """
    saved = _saved(tensors for module in model.modules() for tensors in (module._parameters, module._buffers))
    structure = [_Structure(module) for module in model.modules() if not isinstance(module, ScriptModule)]
    try:
        yield
    except BaseException:
        for module in structure:
            module.put_back()
        _put_back(saved)
        raise


@contextmanager
def at_rest(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Put parametrizations in evaluation mode: in training mode each reading of torch's spectral norm updates it.

    Example:
        >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
        >>> before = layer.parametrizations.weight[0]._u.clone()
        >>> with at_rest([layer]):
        ...     _ = layer.weight
        >>> torch.equal(layer.parametrizations.weight[0]._u, before)
        True
    """
    held = [child for layer in layers for name, child in layer.named_children() if name == "parametrizations"]
    training = [module for parametrizations in held for module in parametrizations.modules() if module.training]
    for module in training:
        vars(module)["training"] = False  # not by Module.__setattr__, which is slow
    try:
        yield
    finally:
        for module in training:
            vars(module)["training"] = True


class _Saved:
    """One parameter or buffer: which tensor it is, where its memory is, and a copy of its values."""

    def __init__(self, holder: dict[str, Any], name: str, tensor: Tensor | None) -> None:
        self.holder = holder
        self.name = name
        self.tensor = tensor
        self.values: Tensor | None = None  # of a lazy tensor there are none
        if self.tensor is not None and not is_lazy(self.tensor):
            self.requires_grad = self.tensor.requires_grad
            self.data = self.tensor.data
            self.values = self.tensor.detach().clone()

    @torch.no_grad()
    def put_back(self) -> None:
        self.holder[self.name] = self.tensor
        if self.tensor is not None and self.values is not None:
            self.data.copy_(self.values)
            self.tensor.data = self.data
            self.tensor.requires_grad_(self.requires_grad)


class _Structure:
    """The class of a module, and what it holds by name."""

    HELD = ("_parameters", "_buffers", "_modules", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kind = type(module)
        self.held = {name: dict(vars(module)[name]) for name in self.HELD}

    def put_back(self) -> None:
        self.module.__class__ = self.kind
        for name, content in self.held.items():
            holder = vars(self.module)[name]  # the same object as before, since others may hold it
            holder.clear()
            holder.update(content)


def _saved(holders: Iterable[dict[str, Any]]) -> list[_Saved]:
    # By items, since those of a scripted module are no dict, and iteration over them gives no names.
    return [_Saved(held, name, tensor) for held in holders for name, tensor in held.items()]


def _put_back(saved: list[_Saved]) -> None:
    for tensor in saved:
        tensor.put_back()
