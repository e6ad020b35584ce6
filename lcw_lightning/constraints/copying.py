"""Copy and pickle layers with constrained weights, which torch's parametrizations do not allow or do in part."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lcw_lightning.compat import without_flat_weights
from lcw_lightning.constraints.weight_access import read_directly

__all__ = ["detached_copy", "make_copyable"]

_Module = TypeVar("_Module", bound=nn.Module)


def detached_copy(model: _Module) -> _Module:
    """Return a deep copy of a module, also of one that keeps tensors of its last forward pass, such as attention maps.

    :func:`copy.deepcopy` refuses those that belong to a graph; the copy has them without it.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.last_output = layer(torch.ones(2))
        >>> detached_copy(layer).last_output.requires_grad
        False
    """
    with _DetachedCopies():
        return copy.deepcopy(model)


class _DetachedCopies(TorchFunctionMode):
    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def make_copyable(module: nn.Module) -> None:
    """Let a parametrized layer be pickled, and deep-copied in the same way.

    Changes the class that parametrize has made for this module alone.
    """
    kind: Any = type(module)
    kind.__reduce_ex__ = _reduce
    if "__deepcopy__" in vars(kind):
        # Of a wrapper that hands on its layer's attributes, copy.deepcopy would find it and copy the bare layer.
        del kind.__deepcopy__


def _reduce(module: nn.Module, _protocol: Any) -> tuple[Any, ...]:
    # The class exists only in this process, so that another one has to make it again.
    plain: Any = parametrize.type_before_parametrizations(module)
    with torch.no_grad():  # a recurrent layer reads its weights here, which must not move a spectral norm's buffers
        state = plain.__getstate__(module) if hasattr(plain, "__getstate__") else dict(vars(module))  # Python 3.10
    if isinstance(module, nn.RNNBase):
        # It keeps the weights of its last forward pass, which cannot be copied. Without them it computes them anew.
        state = without_flat_weights(module, state)
    constraints: Any = module.parametrizations
    return _blank, (plain, list(constraints)), state


def _blank(plain: type[nn.Module], names: Sequence[str]) -> nn.Module:
    """Return a layer of this type that computes the named weights by parametrizations, and waits for its state."""
    layer = plain.__new__(plain)
    nn.Module.__init__(layer)
    for name in names:
        layer.register_parameter(name, nn.Parameter(torch.empty(0)))
        parametrize.register_parametrization(layer, name, nn.Identity())
        read_directly(layer, name)
    make_copyable(layer)
    return layer
