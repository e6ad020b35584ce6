"""Linearly constrained weights: a parametrization, and the function that registers it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lcw_lightning.constraints.registration import Constraint, register_constraint
from lcw_lightning.constraints.zero_sum_map import zero_sum_weight
from lcw_lightning.theory.zero_sum import BASIS_VERSION, zero_sum_coordinates

__all__ = ["ZeroSum", "linearly_constrained"]


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class ZeroSum(Constraint):
    r"""Parametrize a weight by its coordinates in the zero-sum subspace: ``weight = B original`` (paper, Section 3.1).

    ``original`` has shape ``(units, fan_in - 1)``; each unit of the weight, flattened, sums to zero. The basis comes
    from the shape alone, so there is no buffer to save, move or broadcast. The weight has the memory format of the one
    that it was made for, or that of a later ``.to(memory_format=...)``.
    """

    sums_to_zero = True
    _version = BASIS_VERSION  # torch saves it beside every state dict

    def __init__(self, weight: Tensor, transposed_groups: int = 0) -> None:
        super().__init__(weight, transposed_groups)
        self.memory_format = _memory_format(weight)

    @override
    def forward(self, original: Tensor) -> Tensor:
        """Return the weight for coordinates of shape ``(units, fan_in - 1)``."""
        units, groups = original.shape[0], self.transposed_groups
        if not groups:
            return zero_sum_weight(original, (units, *self.weight_shape[1:]), self.memory_format)
        by_unit = zero_sum_weight(original, (units, self.weight_shape[0] // groups, *self.weight_shape[2:]))
        return self.weight_layout(by_unit).contiguous(memory_format=self.memory_format)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the coordinates of the zero-sum weight nearest to ``weight``: an assigned weight is projected."""
        return zero_sum_coordinates(self.units_first(weight).flatten(start_dim=1)).contiguous()

    @override
    def __getstate__(self) -> dict[str, Any]:
        # torch.save cannot pickle a memory format.
        return vars(self) | {"memory_format": str(self.memory_format).removeprefix("torch.")}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"memory_format": getattr(torch, state["memory_format"])})  # type: ignore[no-untyped-call]

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ZeroSum":
        # The original is a matrix and has no memory format to change: a small weight shows which format fn gives.
        probe = torch.empty([2] * len(self.weight_shape)).to(memory_format=self.memory_format)
        self.memory_format = _memory_format(fn(probe))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

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
    into ``module.weight``, as those of ``torch.nn.init``, write into a computed tensor and change nothing: call them
    first.
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
    return register_constraint(module, name, ZeroSum)


def _memory_format(weight: Tensor) -> torch.memory_format:
    channels_last = CHANNELS_LAST.get(weight.dim(), torch.contiguous_format)
    if weight.is_contiguous():  # such as a 1 x 1 kernel, which has every format
        return torch.contiguous_format
    return channels_last if weight.is_contiguous(memory_format=channels_last) else torch.contiguous_format
