"""The modules given to :mod:`torch.nn.utils.parametrize`, and one verb for each."""

import math
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from typing_extensions import override

from lcw_lightning.layers import WeightRef, exchange_channels
from lcw_lightning.theory.zero_sum import BASIS_VERSION, embed_zero_sum, zero_sum_coordinates

__all__ = ["ZeroSum", "constrainable_parameter", "linearly_constrained", "stop_accepting_plain_weights"]


class ZeroSum(nn.Module):
    r"""Parametrize a weight by its coordinates in the zero-sum subspace: ``weight = B original`` (paper, Section 3.1).

    ``original`` has shape ``(units, fan_in - 1)``; each unit of the weight, flattened, sums to zero. The basis comes
    from the shape alone, so there is no buffer to save, move or broadcast.

    Args:
        weight_shape: Shape of the weight, output units along dimension 0.
        transposed_groups: Groups of a transposed convolution, whose weight has shape
            ``(in_channels, out_channels // groups, *kernel)``; 0 for other layers.
    """

    _version = BASIS_VERSION  # torch saves it beside every state dict

    def __init__(self, weight_shape: tuple[int, ...], transposed_groups: int = 0) -> None:
        super().__init__()
        self.weight_shape = tuple(weight_shape)
        self.transposed_groups = transposed_groups

    @property
    def original_shape(self) -> tuple[int, int]:
        """Shape of the coordinates, ``(units, fan_in - 1)``."""
        units = self.weight_shape[1] * self.transposed_groups if self.transposed_groups else self.weight_shape[0]
        return units, math.prod(self.weight_shape) // max(units, 1) - 1

    def forward(self, original: Tensor) -> Tensor:
        """Return the weight for coordinates of shape :attr:`original_shape`."""
        units = embed_zero_sum(original)
        if not self.transposed_groups:
            return units.view(self.weight_shape)
        kernels = units.view(len(units), self.weight_shape[0] // self.transposed_groups, *self.weight_shape[2:])
        return exchange_channels(kernels, self.transposed_groups)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the coordinates of the zero-sum weight nearest to ``weight``: an assigned weight is projected."""
        kernels = exchange_channels(weight, self.transposed_groups) if self.transposed_groups else weight
        return zero_sum_coordinates(kernels.flatten(start_dim=1))

    @override
    def extra_repr(self) -> str:
        groups = f", transposed_groups={self.transposed_groups}" if self.transposed_groups else ""
        return f"weight_shape={self.weight_shape}{groups}"

    @override
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        version = local_metadata.get("version", BASIS_VERSION)
        if version != BASIS_VERSION:
            layer = prefix.partition("parametrizations.")[0].rstrip(".")
            error_msgs.append(
                f"the coordinates of {layer!r} are in basis version {version}, but this lcw_lightning reads version "
                f"{BASIS_VERSION}; load them with the version that wrote them"
            )


def linearly_constrained(module: nn.Module, name: str = "weight") -> nn.Module:
    r"""Constrain each output unit's weights to sum to zero (LCW; Kutsuna, Definition 3).

    .. math:: w_i = B v_i, \qquad \sum_j w_{ij} = 0

    A unit is a row of a weight matrix (a gate's or a query's row too), or the flattened kernel of one output channel
    of a convolution over its group's input channels, transposed or not. The trained parameter becomes
    ``module.parametrizations.weight.original``, the coordinates :math:`v` of shape ``(units, fan_in - 1)`` in an
    orthonormal basis: :math:`\|v_i\| = \|w_i\|`, so weight decay keeps its meaning, and SGD walks the path of the plain
    weight with its gradient centred per unit. Adam's path depends on the basis.

    **Initial value:** the zero-sum weight nearest to the present one, ``w - w.mean()`` per unit. The Parameter object
    stays the same one, so an optimizer made earlier, but not yet stepped, trains it. Later assignments
    ``module.weight = w`` are projected likewise, and a state dict with a plain ``weight`` loads. Functions that write
    into ``module.weight``, as those of ``torch.nn.init``, write into a computed tensor and change nothing: draw first.
    A weight that another module shares becomes coordinates there too; :func:`~lcw_lightning.constrain` refuses those.

    Args:
        module: Owner of the weight: Linear, Bilinear, a convolution, a recurrent layer, MultiheadAttention, or any
            module with a weight whose rows are units.
        name: Attribute name of the weight, such as ``weight_hh_l0`` of an LSTM.

    Returns:
        The module itself.

    Raises:
        ValueError: No such parameter, it is lazy, sharded or parametrized already, or its fan_in is below 2.

    Example:
        >>> layer = linearly_constrained(nn.Linear(64, 3))
        >>> bool(layer.weight.sum(dim=1).abs().max() < 1e-6)
        True
        >>> layer.parametrizations.weight.original.shape
        torch.Size([3, 63])
    """
    weight = constrainable_parameter(module, name)
    if parametrize.is_parametrized(module):
        # A copy shares its class with the original, which one more property would break.
        kind = type(module)
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
    weight.grad = None  # it has the shape of the weight, not of the coordinates
    zero_sum = ZeroSum(tuple(weight.shape), WeightRef(module, name).transposed_groups)
    parametrize.register_parametrization(module, name, zero_sum)
    module.register_load_state_dict_pre_hook(partial(_accept_plain_weight, name=name))  # type: ignore[no-untyped-call]
    if isinstance(module, nn.RNNBase):
        _forget_computed_weights_in_copies(module)
    return module


def constrainable_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """Return the plain parameter ``module.name``, if it can be constrained.

    Raises:
        ValueError: No such parameter, it is lazy, sharded or parametrized already, or its fan_in is below 2.
    """
    owner = f"{type(module).__name__}.{name}"
    if parametrize.is_parametrized(module, name):
        raise ValueError(f"a constraint needs a plain parameter, but {owner} is parametrized already; leave it out.")
    weight = module._parameters.get(name)
    if weight is None:
        raise ValueError(
            f"a constraint needs a parameter, but {owner} is none; name the module that owns the weight, and take away "
            "hooks that compute it, such as the old weight_norm and spectral_norm, and pruning."
        )
    if is_lazy(weight):
        raise ValueError(f"a constraint needs the shape of {owner}, which is lazy; run one forward first.")
    if hasattr(weight, "device_mesh"):
        raise ValueError(
            f"a constraint needs the whole weight, but {owner} is sharded; constrain the model before fully_shard()."
        )
    fan_in = WeightRef(module, name).fan_in if weight.dim() > 1 else 1
    if fan_in < 2:
        raise ValueError(
            f"a constraint needs fan_in >= 2, but {owner} of shape {tuple(weight.shape)} has fan_in={fan_in}, "
            "for which zero is the only zero-sum weight; leave this layer unconstrained."
        )
    return weight


def _accept_plain_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any, name: str) -> None:
    """Let a plain checkpoint load: its ``weight`` becomes the coordinates of the nearest zero-sum weight."""
    plain = state_dict.get(prefix + name)
    if plain is not None and parametrize.is_parametrized(module, name):
        zero_sum: Any = module.parametrizations[name][0]  # type: ignore[index]
        if plain.shape == zero_sum.weight_shape:
            del state_dict[prefix + name]
            state_dict[f"{prefix}parametrizations.{name}.original"] = zero_sum.right_inverse(plain)


def stop_accepting_plain_weights(module: nn.Module) -> None:
    """Take away the hooks by which plain checkpoints load into the constrained weights of ``module``."""
    hooks: dict[int, Any] = module._load_state_dict_pre_hooks
    for key, wrapped in list(hooks.items()):
        if getattr(wrapped.hook, "func", None) is _accept_plain_weight:
            del hooks[key]


def _forget_computed_weights_in_copies(module: nn.RNNBase) -> None:
    # A recurrent layer keeps the weights of its last forward pass, which deepcopy refuses: they are no leaves of the
    # graph. It computes them anew when they are gone. The class is the one that parametrize made for this module alone.
    kind: Any = type(module)
    deepcopy = kind.__deepcopy__

    def deepcopy_without_them(self: Any, memo: dict[int, Any]) -> Any:
        self._flat_weights = [None] * len(self._flat_weights_names)
        return deepcopy(self, memo)

    if deepcopy.__name__ != deepcopy_without_them.__name__:
        kind.__deepcopy__ = deepcopy_without_them
