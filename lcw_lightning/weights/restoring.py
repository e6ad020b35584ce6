"""Leave a network as it was, whatever is drawn into it meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["restored", "undisturbed"]


@contextmanager
def restored(network: nn.Module) -> Iterator[None]:
    """Put weights, gradients, buffers and random number generators back at the end, bit for bit, error or not.

    Parameters are the same objects in the same memory as before.

    Example:
        >>> network = nn.Linear(2, 1, bias=False)
        >>> before = network.weight.tolist()
        >>> with restored(network):
        ...     _ = nn.init.zeros_(network.weight)
        >>> network.weight.tolist() == before
        True
    """
    owners = [(module, dict(module._parameters)) for module in network.modules()]
    kept = [_Kept(parameter) for parameter in network.parameters()]
    with undisturbed(network):
        try:
            yield
        finally:
            for module, parameters in owners:
                module._parameters.update(parameters)
            for parameter in kept:
                parameter.put_back()


class _Kept:
    """A parameter, and copies of what redrawing may change in place."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.requires_grad = parameter.requires_grad
        self.tensors: list[tuple[Tensor, Tensor]] = []
        self.data, self.grad = parameter.data, parameter.grad
        for tensor in (self.data, self.grad):
            if tensor is not None:
                self.tensors.append((tensor, tensor.detach().clone()))

    @torch.no_grad()
    def put_back(self) -> None:
        for tensor, value in self.tensors:
            tensor.copy_(value)
        self.parameter.data, self.parameter.grad = self.data, self.grad
        self.parameter.requires_grad_(self.requires_grad)


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
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                module._buffers[name] = buffer.copy_(value)
