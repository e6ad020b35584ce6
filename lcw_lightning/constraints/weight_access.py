"""Read a parametrized weight by one call, where torch's machinery would call the same."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lcw_lightning.compat import global_module_hooks, is_cached, is_traced_by_fx, module_hooks

__all__ = ["read_directly"]


def read_directly(module: nn.Module, name: str) -> None:
    """Let ``module.name`` call its constraint's ``forward`` without the calls of two modules around it.

    In narrow layers these take a good part of a step. Nothing is kept: the weight is computed at each use. Torch's own
    way is taken wherever it would do more than that one call: while torch compiles, traces by fx or caches, with a
    second parametrization or several originals, and with hooks or a ``forward`` of their own on the modules in between,
    such as those by which accelerate fetches an offloaded weight.
    """
    computed: property = getattr(type(module), name)
    compute = cast(Callable[[nn.Module], Tensor], computed.fget)

    def read(self: nn.Module) -> Tensor:
        if torch.compiler.is_dynamo_compiling() or is_traced_by_fx() or is_cached() or global_module_hooks():
            return compute(self)
        held: Any = self._modules["parametrizations"]._modules[name]  # type: ignore[union-attr]
        original, constraint = held._parameters.get("original"), held._modules["0"]
        if original is None or len(held._modules) > 1 or _is_altered(held) or _is_altered(constraint):
            return compute(self)
        return cast(Tensor, constraint.forward(original))

    setattr(type(module), name, property(read, computed.fset))


def _is_altered(module: nn.Module) -> bool:
    return "forward" in vars(module) or module_hooks(module)
