"""A weight of a layer: where its output units and input channels lie, and how it is written."""

import math
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lcw_lightning.weights.layer_types import LayerType, layer_type_of

__all__ = ["WeightRef", "named_weights", "units_first"]


class WeightRef(NamedTuple):
    """A weight, given by its layer and attribute name.

    A unit is a row of a weight matrix (of a Linear, of a gate, of a query), a slice of a Bilinear weight, or the
    kernel of one output channel over the input channels of its group (paper, Section 3.2): ``fan_in`` numbers.

    Example:
        >>> ref = WeightRef(nn.Conv2d(8, 6, kernel_size=3, groups=2), "weight")
        >>> ref.num_channels, ref.num_units, ref.fan_in, ref.channel_dim
        (8, 6, 36, -3)
    """

    layer: nn.Module
    name: str

    @property
    def layer_type(self) -> LayerType:
        """What is known of the layer's type."""
        known = layer_type_of(self.layer)
        assert known is not None
        return known

    @property
    def is_observable(self) -> bool:
        """Whether the layer is called to map one input by this weight, so that hooks on it see both sides.

        True for Linear, convolutions and registered types, not for recurrent layers, attention and Bilinear.
        """
        return self.layer_type.spatial_dims is not None

    @property
    def transposed_groups(self) -> int:
        """Groups of a weight whose units lie along dimension 1, as in transposed convolutions; 0 for other layers."""
        return getattr(self.layer, "groups", 1) if self.layer_type.unit_dim else 0

    @property
    def value(self) -> Tensor:
        """The weight as the layer uses it now; a parametrization is evaluated anew."""
        weight: Tensor = getattr(self.layer, self.name)
        return weight

    @property
    def units(self) -> Tensor:
        """The weight as a matrix with one row per unit, shape ``(num_units, fan_in)``."""
        return self.units_of(self.value)

    def units_of(self, value: Tensor) -> Tensor:
        """Return a value of this weight as a matrix with one row per unit, as :attr:`units` is of the present one."""
        groups = self.transposed_groups
        return (units_first(value, groups) if groups else value).flatten(1)

    @property
    def num_units(self) -> int:
        """Rows of :attr:`units`, such as the output channels of a convolution."""
        return self.units.shape[0]

    @property
    def fan_in(self) -> int:
        """Weights per unit; 0 while the layer is lazy."""
        return 0 if is_lazy(self.value) else self.units.shape[1]

    @property
    def num_channels(self) -> int:
        """Input features of a Linear, input channels of a convolution."""
        named: int | None = getattr(self.layer, "in_channels" if self.channel_dim < -1 else "in_features", None)
        return self.fan_in if named is None else named

    @property
    def channel_dim(self) -> int:
        """Dimension of channels in inputs and outputs of an observable layer, counted from the end, batched or not."""
        return -1 - (self.layer_type.spatial_dims or 0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimizer trains: the weight itself, or the originals of its parametrization."""
        originals = f"parametrizations.{self.name}."
        named = self.layer.named_parameters(remove_duplicate=False)  # a layer may hold one parameter under two names
        return [parameter for name, parameter in named if name == self.name or name.startswith(originals)]

    @property
    def is_complex(self) -> bool:
        """Whether its numbers are complex; the papers know real weights alone."""
        return any(parameter.dtype.is_complex for parameter in self.parameters)

    @torch.no_grad()
    def assign_(self, value: Tensor) -> None:
        """Write the weight in place, through the right inverse of its parametrization where it has one.

        Torch's own ``layer.weight = value`` replaces the storage of the original, after which DDP waits forever for its
        gradient.

        Raises:
            ValueError: A parametrization that has no right inverse.
        """
        if not parametrize.is_parametrized(self.layer, self.name):
            self.value.copy_(value)
            return
        held: Any = self.layer.parametrizations[self.name]  # type: ignore[index]
        originals = value
        for parametrization in reversed(held):
            if not hasattr(parametrization, "right_inverse"):
                raise ValueError(
                    f"{type(parametrization).__name__} has no right_inverse, so no weight can be assigned."
                )
            originals = parametrization.right_inverse(originals)
        if held.is_tensor:
            held.original.copy_(originals)
        else:
            for number, original in enumerate(originals):
                getattr(held, f"original{number}").copy_(original)

    def expand_to_fan_in(self, per_channel: Tensor) -> Tensor:
        """Repeat a value of each input channel over the kernel, for every unit that sees the channel.

        Args:
            per_channel: One value per input channel of an observable layer, shape ``(num_channels,)``.

        Returns:
            Shape ``(num_units, fan_in)``, or ``(1, fan_in)`` without groups: broadcasts against :attr:`units`.
        """
        kernel_area = math.prod(getattr(self.layer, "kernel_size", ()))
        groups = per_channel.view(getattr(self.layer, "groups", 1), -1).repeat_interleave(kernel_area, dim=1)
        return groups if len(groups) == 1 else groups.repeat_interleave(self.num_units // len(groups), dim=0)

    def expand_to_weight(self, per_unit: Tensor) -> Tensor:
        """Reshape one value per unit, or one for all units, to broadcast against :attr:`value`."""
        column, groups = per_unit.view(-1, *[1] * (self.value.dim() - 1)), self.transposed_groups
        if not groups or len(per_unit) == 1:
            return column
        by_unit = column.expand(-1, len(self.value) // groups, *column.shape[2:])
        return units_first(by_unit, groups)  # which is its own inverse


def units_first(weight: Tensor, groups: int) -> Tensor:
    """Return a weight whose units lie along dimension 1 in the layout of a convolution, with units along dimension 0.

    Args:
        weight: Shape ``(in_channels, out_channels // groups, *kernel)``, as in transposed convolutions.
        groups: Of the convolution; 1 for other layers.

    Returns:
        Shape ``(out_channels, in_channels // groups, *kernel)``. The function is its own inverse.

    Example:
        >>> units_first(torch.zeros(6, 4, 3, 3), groups=2).shape
        torch.Size([8, 3, 3, 3])
    """
    by_group = weight.view(groups, len(weight) // groups, *weight.shape[1:])
    return by_group.transpose(1, 2).flatten(0, 1)


def named_weights(model: nn.Module, remove_duplicate: bool = True) -> dict[str, WeightRef]:
    """Return every constrainable weight by its name ``layer.weight``, in the order of ``model.named_modules()``.

    These are the weights of Linear, Bilinear, convolutions and transposed convolutions (grouped and depthwise too),
    the input and recurrent weights of RNN, LSTM, GRU and their cells, the projections of MultiheadAttention, and the
    weights of :func:`registered <lcw_lightning.register_layer_type>` types. Embeddings and norms are left out. A module
    in several places has its first name, or all with ``remove_duplicate=False``.

    Example:
        >>> list(named_weights(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GRUCell(3, 2))))
        ['0.weight', '2.weight_ih', '2.weight_hh']
    """
    return {
        f"{prefix}.{name}" if prefix else name: WeightRef(module, name)
        for prefix, module in model.named_modules(remove_duplicate=remove_duplicate)
        for name in _weight_names(module)
    }


def _weight_names(module: nn.Module) -> list[str]:
    known = layer_type_of(module)
    if known is None:
        return []
    held = [name for name, parameter in module._parameters.items() if parameter is not None]
    # Hooks such as the old weight_norm compute a weight from parameters with such suffixes.
    suffixes = ("_orig", "_g", "_v")
    computed = [name.rpartition("_")[0] if name.endswith(suffixes) else name for name in held]
    names = dict.fromkeys([*computed, *getattr(module, "parametrizations", {})])
    return [name for name in names if fnmatchcase(name, known.weights)]
