"""The hooks that rescale layers with several weights inside one call: recurrent layers, their cells, and attention."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from lcw_lightning.compat import is_transformed
from lcw_lightning.initialization.attention_rescaling import PROJECTIONS, projected_values, rescale_projections_
from lcw_lightning.initialization.first_forward import Rescaling
from lcw_lightning.initialization.limits import UnscalableError
from lcw_lightning.initialization.recurrent_rescaling import WEIGHTS, Scaled, Target, rescale_direction_
from lcw_lightning.initialization.rescaling import forget_used_weights, rescale_layer_, zeroed
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.recurrent_inputs import Recurrent, RecurrentCall, is_known_recurrence, suffixes
from lcw_lightning.weights.restoring import undisturbed, unless_it_fails
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["InnerRescaling", "inner_layers"]

_OUTPUT = "out_proj.weight"
_BIASES = ("bias_ih", "bias_hh", "in_proj_bias")


def inner_layers(model: nn.Module) -> dict[nn.Module, dict[str, WeightRef]]:
    """Return the layers of these types that compute as torch's own do, and their weights by their names within them.

    Example:
        >>> {type(layer).__name__: list(weights) for layer, weights in inner_layers(
        ...     nn.Sequential(nn.Linear(4, 3), nn.GRUCell(3, 2), nn.MultiheadAttention(4, 2))).items()}
        {'GRUCell': ['weight_ih', 'weight_hh'], 'MultiheadAttention': ['in_proj_weight', 'out_proj.weight']}
    """
    layers = observed_layers(model).values()
    return {
        observed.layer: observed.weights
        for observed in layers
        if is_known_recurrence(observed.layer) or _is_known_attention(observed.layer)
    }


def _is_known_attention(layer: nn.Module) -> bool:
    return type(layer).forward is nn.MultiheadAttention.forward and "forward" not in vars(layer)


class InnerRescaling:
    """The hook that rescales such a layer before its first call, which then computes with the new weights.

    Args:
        rescaling: The layers that are not yet rescaled.
        layer: The layer.
        names: The names of its weights, by their names within it.
        recurrent_share: Of the recurrent part in the variance of a gate.
    """

    def __init__(
        self, rescaling: Rescaling, layer: nn.Module, names: Mapping[str, str], recurrent_share: float
    ) -> None:
        self.rescaling = rescaling
        self.layer = layer
        self.names = dict(names)
        self.target = Target(rescaling.target_std, rescaling.by_unit, recurrent_share)
        # Decided now, as for other layers; of a copy, by its original, which is trained.
        trained = {name for name, parameter in self._original().named_parameters() if parameter.requires_grad}
        self.biases = {
            name: parameter
            for name, parameter in layer.named_parameters()
            if name.startswith(_BIASES) and name in trained
        }

    def arm(self) -> None:
        """Put the hook on the layer."""
        handle = self.layer.register_forward_pre_hook(self.before, with_kwargs=True)
        self.rescaling.handles |= {name: [handle] for name in self.names.values()}

    @torch.no_grad()
    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Rescale the layer, unless torch.func transforms it: then it waits for another call."""
        if is_transformed():
            return
        with undisturbed(layer):  # the layer's own call gets the same random numbers and buffers
            if isinstance(layer, nn.MultiheadAttention):
                self._attention(layer, args, kwargs)
            else:
                with _full_precision(layer):
                    self._recurrent(cast(Recurrent, layer), args, kwargs)
        for name in self.names.values():
            self.rescaling.repeat(name)
            self.rescaling.disarm(name)

    def _original(self) -> nn.Module:
        """Return the layer that this one is a copy of, in a momentum teacher; else itself."""
        copies = self.rescaling.copies
        own, original = next(((o, copies[name]) for o, name in self.names.items() if name in copies), ("", ""))
        if own == _OUTPUT:  # which is held by a part of attention
            return self.layer
        return self.rescaling.waiting[original].layer if original else self.layer

    def _recurrent(self, layer: Recurrent, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature(layer.forward).bind(*args, **kwargs).arguments
        call = RecurrentCall.of(layer, given["input"], given.get("hx"))
        for number, ends in enumerate(suffixes(layer)):
            call = call.above() if number else call
            for suffix in ends:
                if owns := self._untied(*(f"{weight}{suffix}" for weight in WEIGHTS)):
                    self._attempt(owns, partial(self._direction, call, suffix, owns))

    def _direction(self, call: RecurrentCall, suffix: str, owns: list[str]) -> dict[str, Scaled | str]:
        refs = {own.removesuffix(suffix): self._ref(own) for own in owns}
        biases = [name for name in ("bias_ih", "bias_hh") if f"{name}{suffix}" in self.biases]
        done = rescale_direction_(call, suffix, refs, biases, self.target, self.names[owns[0]])
        return {f"{weight}{suffix}": what for weight, what in done.items()}

    def _attention(self, layer: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature(layer.forward).bind(*args, **kwargs).arguments
        inputs = [given[name] for name in ("query", "key", "value")]
        for own in self._untied(*PROJECTIONS):
            self._attempt([own], partial(self._projections, own, inputs))
        for own in self._untied(_OUTPUT):
            self._attempt([own], partial(self._output, layer, args, kwargs, inputs[2]))

    def _projections(self, own: str, inputs: list[Tensor]) -> dict[str, Scaled | str]:
        bias, (std, by_unit, _) = self.biases.get("in_proj_bias"), self.target
        if any(each.is_nested for each in inputs):
            raise UnscalableError("nested inputs")
        with _full_precision(self.layer):
            return {own: rescale_projections_(self._ref(own), inputs, bias, std, by_unit, self.names[own])}

    def _output(
        self, layer: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
    ) -> dict[str, Scaled | str]:
        name, (std, by_unit, _) = self.names[_OUTPUT], self.target
        bias = self.rescaling.biases.get(name)
        with zeroed(layer.out_proj.bias):
            z = layer.forward(*args, **kwargs)[0]
        if z.is_nested:
            raise UnscalableError("nested inputs")
        done = rescale_layer_(self._ref(_OUTPUT), name, z, projected_values(layer, value), bias, std, by_unit)
        return {_OUTPUT: Scaled(done.factor, done.varies)}

    def _untied(self, *owns: str) -> list[str]:
        """Return those that wait, and finish those among them that are tied to a rescaled weight."""
        waiting = [own for own in owns if own in self.names]
        for own in list(waiting):
            if not self.rescaling.rescaled.keys().isdisjoint(self.rescaling.parameters(self.names[own])):
                self.rescaling.finish_tied(self.names.pop(own))
                waiting.remove(own)
                if (bias := self.biases.get(own.replace("weight", "bias"))) is not None:
                    bias.zero_()
        return waiting

    def _ref(self, own: str) -> WeightRef:
        return self.rescaling.waiting[self.names[own]]

    def _attempt(self, owns: list[str], rescale: Callable[[], Mapping[str, Scaled | str]]) -> None:
        """Rescale some of the weights, or leave them all as they were, and record it."""
        self.rescaling.meet(f"at {self.names[owns[0]]!r}")
        done: Mapping[str, Scaled | str] = {}
        try:
            with unless_it_fails(self.layer):
                done = rescale()
        except UnscalableError as reason:
            done = dict.fromkeys(owns, str(reason))
        finally:
            forget_used_weights()
        for own, what in done.items():
            name = self.names[own]
            if isinstance(what, str):
                self.rescaling.outcome.leave(name, what)
            else:
                self.rescaling.rescaled |= dict.fromkeys(self.rescaling.parameters(name), name)
                self.rescaling.outcome.add(name, what.factor, what.varies)


def _full_precision(layer: nn.Module) -> torch.autocast:
    return torch.autocast(next(layer.parameters()).device.type, enabled=False)
