"""The modules given to :mod:`torch.nn.utils.parametrize`, and one verb for each."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from typing_extensions import override

from lcw_lightning.theory.zero_sum import embed_zero_sum, zero_sum_coordinates

__all__ = ["ZeroSum", "constrainable_parameter", "linearly_constrained"]


class ZeroSum(nn.Module):
    r"""Parametrize a weight by its coordinates in the zero-sum subspace: ``weight = B original`` (paper, Section 3.1).

    ``original`` has shape ``(units, fan_in - 1)``; each unit of the weight, flattened, sums to zero. The basis comes
    from the shape alone, so there is no buffer to save, move or broadcast.

    Args:
        weight_shape: Shape of the weight, output units along dimension 0.
    """

    def __init__(self, weight_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight_shape = tuple(weight_shape)

    def forward(self, original: Tensor) -> Tensor:
        """Return the weight for coordinates of shape ``(units, fan_in - 1)``."""
        return embed_zero_sum(original).view(self.weight_shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the coordinates of the zero-sum weight nearest to ``weight``: an assigned weight is projected."""
        return zero_sum_coordinates(weight.flatten(start_dim=1))

    @override
    def extra_repr(self) -> str:
        return f"weight_shape={self.weight_shape}"


def linearly_constrained(module: nn.Module, name: str = "weight") -> nn.Module:
    r"""Constrain each output unit's weights to sum to zero (LCW; Kutsuna, Definition 3).

    .. math:: w_i = B v_i, \qquad \sum_j w_{ij} = 0

    A unit is a row of a Linear weight, or the flattened kernel of one output channel of a convolution, grouped or
    not. The trained parameter becomes ``module.parametrizations.weight.original``, the coordinates
    :math:`v` of shape ``(units, fan_in - 1)`` in an orthonormal basis: :math:`\|v_i\| = \|w_i\|`, so weight decay
    keeps its meaning, and SGD walks the path of the plain weight with its gradient centred per unit. Adam's path
    depends on the basis.

    **Initial value:** the zero-sum weight nearest to the present one, ``w - w.mean()`` per unit. The Parameter object
    stays the same one, so an optimizer made earlier, but not yet stepped, trains it. Later assignments
    ``module.weight = w`` are projected likewise, and a state dict with a plain ``weight`` loads.

    Args:
        module: Owner of the weight: Linear or Conv1d to Conv3d.
        name: Attribute name of the weight.

    Returns:
        The module itself.

    Raises:
        ValueError: No such parameter, it is lazy or parametrized already, or its fan_in is below 2.

    Example:
        >>> layer = linearly_constrained(nn.Linear(64, 3))
        >>> bool(layer.weight.sum(dim=1).abs().max() < 1e-6)
        True
        >>> layer.parametrizations.weight.original.shape
        torch.Size([3, 63])
    """
    weight = constrainable_parameter(module, name)
    weight.grad = None  # it has the shape of the weight, not of the coordinates
    parametrize.register_parametrization(module, name, ZeroSum(tuple(weight.shape)))
    module.register_load_state_dict_pre_hook(partial(_accept_plain_weight, name=name))  # type: ignore[no-untyped-call]
    return module


def constrainable_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """Return the plain parameter ``module.name``, if it can be constrained.

    Raises:
        ValueError: No such parameter, it is lazy or parametrized already, or its fan_in is below 2.
    """
    owner = f"{type(module).__name__}.{name}"
    if parametrize.is_parametrized(module, name):
        raise ValueError(f"a constraint needs a plain parameter, but {owner} is parametrized already; leave it out.")
    weight = module._parameters.get(name)
    if weight is None:
        raise ValueError(f"a constraint needs a parameter, but {owner} is none; name the module that owns the weight.")
    if is_lazy(weight):
        raise ValueError(f"a constraint needs the shape of {owner}, which is lazy; run one forward first.")
    fan_in = weight[0].numel() if weight.dim() > 1 else 1
    if fan_in < 2:
        raise ValueError(
            f"a constraint needs fan_in >= 2, but {owner} of shape {tuple(weight.shape)} has fan_in={fan_in}, "
            "for which zero is the only zero-sum weight; leave this layer unconstrained."
        )
    return weight


def _accept_plain_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any, name: str) -> None:
    """Let a plain checkpoint load: its ``weight`` becomes the coordinates of the nearest zero-sum weight."""
    plain = state_dict.get(prefix + name)
    if plain is not None and parametrize.is_parametrized(module, name) and plain.shape == getattr(module, name).shape:
        del state_dict[prefix + name]
        coordinates = zero_sum_coordinates(plain.flatten(start_dim=1))
        state_dict[f"{prefix}parametrizations.{name}.original"] = coordinates
