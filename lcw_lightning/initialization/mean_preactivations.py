"""Mean preactivations that calls of layers show, and the biases and running means that can shift them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from lcw_lightning.initialization.limits import first_tensor
from lcw_lightning.initialization.rescaling import computes_as_torch, preactivation_moments
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.recurrent_inputs import WEIGHT, recurrent_input
from lcw_lightning.weights.restoring import undisturbed
from lcw_lightning.weights.ties import Places, parameter_places
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["NormInput", "Preactivation", "norm_inputs", "preactivations"]

_MULTIPLIED = {
    "weight_ih": [("input", "bias_ih", 0)],
    "weight_hh": [("hx", "bias_hh", 0)],
    "in_proj_weight": [("query", "in_proj_bias", 0), ("key", "in_proj_bias", 1), ("value", "in_proj_bias", 2)],
    "q_proj_weight": [("query", "in_proj_bias", 0)],
    "k_proj_weight": [("key", "in_proj_bias", 1)],
    "v_proj_weight": [("value", "in_proj_bias", 2)],
}
"""By weight of a recurrent cell or of attention: the argument that it multiplies, the bias, and which third of it."""


@dataclass(frozen=True, eq=False)
class Preactivation:
    """The preactivation of a weight, as a call of a layer shows it.

    Attributes:
        name: Of the weight.
        ref: The weight.
        layer: The module that is called: the owner of the weight, or attention for its output projection.
        argument: Name of the argument that the weight multiplies; empty if the output of the layer is shown.
        third: Which third of the units of attention's weight for query, key and value.
        bias: A view of the parameter, one number per unit; None if it must not change.
        obstacle: Why not.
    """

    name: str
    ref: WeightRef
    layer: nn.Module
    argument: str
    third: int
    bias: Tensor | None
    obstacle: str

    @property
    def refs(self) -> list[WeightRef]:
        """The weights that the preactivation is of."""
        return [self.ref]

    @property
    def is_foreign(self) -> bool:
        """Whether the layer's forward is not torch's, so that its bias may do anything."""
        return self.ref.is_observable and not computes_as_torch(self.ref)

    @property
    def feeds_back(self) -> bool:
        """Whether the bias moves what the weight multiplies: the states of a recurrent layer."""
        return isinstance(self.layer, nn.RNNBase) and "_hh_" in self.ref.name

    def mean(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the mean of each unit in a call, shape ``(units,)``; None if the call has no tensor to show it.

        Where an argument is shown, the mean is that of the weight times the argument.

        Raises:
            ValueError: It is not finite.
        """
        if not self.argument:
            with undisturbed(self.layer):
                output = self.layer.forward(*args, **kwargs)
            return _mean(output, self.ref.channel_dim if self.ref.is_observable else -1, self.name)
        units, given = self.ref.units.double(), _given(self.layer, self.argument, args, kwargs)
        if isinstance(self.layer, nn.RNNBase) and given is not None:
            given = recurrent_input(self.layer, self.ref.name, given, _given(self.layer, "hx", args, kwargs))
        rows = units.chunk(3)[self.third] if self.ref.name == "in_proj_weight" else units
        if given is None and self.argument == "hx":  # the state of a recurrent cell starts at zero
            return rows.new_zeros(len(rows))
        mean = _mean(given, -1, self.name)
        return None if mean is None else rows @ mean

    def shift_(self, moved: Tensor) -> tuple[Tensor, Tensor] | None:
        """Make up for a mean that has moved; return the tensor that is changed, and its new value."""
        if self.bias is None:
            return None
        self.bias.copy_(self.bias.double() - moved)
        return self.bias, self.bias.clone()


@dataclass(frozen=True, eq=False)
class NormInput:
    """The input of a BatchNorm, which subtracts a running mean from it in evaluation."""

    name: str
    layer: _BatchNorm
    refs: Sequence[WeightRef] = ()
    is_foreign: bool = False
    argument: str = ""
    obstacle: str = ""

    def mean(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the mean of each channel in a call.

        Raises:
            ValueError: It is not finite.
        """
        given = self.given(args, kwargs)
        return None if given is None else _mean(given, 1 - given.dim(), self.name)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the input in a call; subclasses name it otherwise."""
        return first_tensor((args, kwargs))

    def shift_(self, moved: Tensor) -> tuple[Tensor, Tensor] | None:
        """Make up for a mean that has moved by more than rounding; return the changed tensor, and its new value."""
        mean, variance = self.layer.running_mean, self.layer.running_var
        assert mean is not None
        assert variance is not None
        rounding = 8 * torch.finfo(mean.dtype).eps * (variance.double() + self.layer.eps).sqrt()
        moved = moved.where(moved.abs() > rounding, 0.0)
        mean.copy_(mean.double() + moved)
        return (mean, mean.clone()) if moved.any() else None


def preactivations(model: nn.Module, weights: Mapping[str, WeightRef]) -> list[Preactivation]:
    """Return what calls of layers show of these weights, in the order of the modules."""
    names, places = {ref: name for name, ref in weights.items()}, parameter_places(model)
    shown = []
    for observed in observed_layers(model).values():
        for own_name, ref in observed.weights.items():
            if ref not in names:
                continue
            for argument, bias_name, third in _views(ref, own_name):
                bias = ref.layer._parameters.get(bias_name)
                obstacle = _obstacle(bias, places)
                view = None if bias is None or obstacle else bias.detach()
                if view is not None and bias_name == "in_proj_bias":
                    view = view.chunk(3)[third]
                shown.append(Preactivation(names[ref], ref, observed.layer, argument, third, view, obstacle))
    return shown


def _views(ref: WeightRef, own_name: str) -> list[tuple[str, str, int]]:
    """Return for each preactivation of a weight: the argument that shows it, the bias, and which third of it."""
    if ref.is_observable or isinstance(ref.layer, nn.Bilinear) or own_name == "out_proj.weight":
        return [("", "bias", 0)]
    if isinstance(ref.layer, nn.RNNBase) and WEIGHT.fullmatch(own_name):
        return [("input", own_name.replace("weight", "bias"), 0)]
    return _MULTIPLIED.get(own_name, [])


def norm_inputs(model: nn.Module) -> list[NormInput]:
    """Return the inputs of every BatchNorm with running statistics that is not frozen."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return [
        NormInput(name, norm)
        for name, norm in norms
        if norm.running_mean is not None and (norm.weight is None or norm.weight.requires_grad)
    ]


def _given(layer: nn.Module, argument: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return signature(layer.forward).bind(*args, **kwargs).arguments.get(argument)


def _mean(values: Any, channel_dim: int, name: str) -> Tensor | None:
    """Return the mean of each channel over samples, positions and ranks, in float64."""
    if isinstance(values, tuple):  # of a recurrent layer's state or of attention, or the data of a packed sequence
        values = values.data if isinstance(values, PackedSequence) else values[0]
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.is_nested:
        return None
    mean = preactivation_moments(values, channel_dim, by_unit=True).mean
    if not mean.isfinite().all():
        raise ValueError(
            f"convert_() needs finite preactivations, but those of {name!r} are NaN or infinite on this minibatch; "
            "look for NaN or infinite values in the inputs and in the weights."
        )
    return mean


def _obstacle(bias: nn.Parameter | None, places: Places) -> str:
    if bias is None:
        return "no bias"
    if not bias.requires_grad:
        return "frozen bias"
    return "tied bias" if len(places[id(bias)]) > 1 else ""
