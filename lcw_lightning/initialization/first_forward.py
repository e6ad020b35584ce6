"""The hooks that rescale each layer on the first input that it gets."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lcw_lightning.compat import is_transformed
from lcw_lightning.initialization.limits import UnscalableError, first_tensor, multiplied
from lcw_lightning.initialization.outcome import Outcome
from lcw_lightning.initialization.ranks import Meet
from lcw_lightning.initialization.rescaling import computes_as_torch, forget_used_weights, rescale_layer_, zeroed
from lcw_lightning.weights.copies import copy_layer_, equals
from lcw_lightning.weights.restoring import undisturbed
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["Rescaling"]


class Rescaling:
    """The layers that are not yet rescaled, and the hooks that rescale them.

    Args:
        waiting: The weights to rescale.
        outcome: Is told what becomes of each.
        target_std: Of the preactivations.
        by_unit: Whether each unit has its own factor.
        meet: Compares the ranks' places before a layer is rescaled.
        copies: By the name of each waiting copy, that of its original: whichever is called first rescales both.
    """

    def __init__(
        self,
        waiting: dict[str, WeightRef],
        outcome: Outcome,
        target_std: float,
        by_unit: bool,
        meet: Meet,
        copies: Mapping[str, str],
    ) -> None:
        self.waiting = waiting
        self.outcome = outcome
        self.target_std = target_std
        self.by_unit = by_unit
        self.meet = meet
        self.copies = copies
        self.equals = equals(copies)
        # Decided now, since a training step may freeze a network for a while, as in adversarial training.
        self.biases = {
            name: bias
            for name, ref in self.waiting.items()
            if isinstance(bias := getattr(ref.layer, "bias", None), Tensor)
            and self.waiting[copies.get(name, name)].layer.bias.requires_grad
        }
        self.handles: dict[str, list[RemovableHandle]] = {}
        self.calling: set[str] = set()  # layers whose own call has begun
        self.held: dict[str, Tensor] = {}  # biases that are zero during their layer's own call
        self.outputs: dict[str, Tensor | None] = {}  # of layers that were rescaled before their own call
        self.rescaled: dict[int, str] = {}  # the name under which each parameter was rescaled
        self.read: dict[str, Tensor] = {}  # parametrized weights as they were last read

    def arm(self, name: str) -> None:
        """Put the hooks on a layer."""
        ref = self.waiting[name]
        self.handles[name] = [
            ref.layer.register_forward_pre_hook(partial(self.before, name), with_kwargs=True),
            ref.layer.register_forward_hook(partial(self.after, name), prepend=True, with_kwargs=True),
        ]
        if parametrize.is_parametrized(ref.layer, ref.name):
            held: Any = ref.layer.parametrizations[ref.name]  # type: ignore[index]
            self.handles[name].append(held.register_forward_hook(lambda *call: self.read.update({name: call[-1]})))

    def disarm(self, name: str) -> None:
        """Remove the hooks from a layer, which waits no longer."""
        del self.waiting[name]
        self.read.pop(name, None)
        for handle in self.handles.pop(name, ()):
            handle.remove()

    def before(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Rescale a layer before its own call, unless the output of that call can be rescaled with the weight."""
        if is_transformed():  # by torch.func, where nothing can be written: the layer waits for another call
            return
        bias, is_trained = self.biases.get(name), torch.is_grad_enabled()

        def run() -> Tensor | None:
            with undisturbed(layer), zeroed(bias):  # the layer's own call gets the same random numbers and buffers
                return first_tensor(layer.forward(*args, **kwargs))

        with torch.no_grad():
            if not self.rescaled.keys().isdisjoint(self.parameters(name)):
                self.finish_tied(name)
                return
            self.calling.add(name)
            if is_trained or not self.is_linear(name):
                # Without gradients, since activation checkpointing counts the tensors that autograd saves.
                self.outputs[name] = self.rescale(name, run(), (args, kwargs), run)
            elif bias is not None:
                self.held.setdefault(name, bias.clone())
                bias.zero_()

    def after(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the rescaled output; None if the layer's own output stays."""
        if is_transformed():
            return None
        with torch.no_grad():
            if name in self.outputs:
                scaled = self.outputs.pop(name)
            else:
                if name in self.held:
                    self.biases[name].copy_(self.held.pop(name))
                scaled = self.rescale(name, output, (args, kwargs))
                scaled = layer.forward(*args, **kwargs) if scaled is None else scaled
        self.disarm(name)
        if scaled is None:
            return None
        scaled = scaled.to(output.dtype)
        return _ValueWithGradientOf.apply(output, scaled) if output.requires_grad else scaled

    def finish_tied(self, name: str) -> None:
        """Finish a layer whose weight is tied to one that is already rescaled."""
        if name in self.biases:
            self.biases[name].zero_()
        first = next(self.rescaled[key] for key in self.parameters(name) if key in self.rescaled)
        self.outcome.factors[name] = self.outcome.factors[first]
        self.repeat(name)
        self.disarm(name)

    def rescale(
        self, name: str, z: Tensor | None, given: Any, run: Callable[[], Tensor | None] | None = None
    ) -> Tensor | None:
        """Rescale a layer, and return its new output if it is linear in its weight; None if the layer must run."""
        self.meet(f"at {name!r}")
        ref, is_torchs = self.waiting[name], computes_as_torch(self.waiting[name])
        try:
            inputs, bias, again = multiplied(ref, given), self.biases.get(name), None if is_torchs else run
            with undisturbed(ref.layer):  # reading a parametrized weight may change its buffers
                done = rescale_layer_(ref, name, z, inputs, bias, self.target_std, self.by_unit, again)
        except UnscalableError as reason:
            self.outcome.leave(name, str(reason))
            self.repeat(name)
            return None
        finally:
            forget_used_weights()
        self.rescaled |= dict.fromkeys(self.parameters(name), name)
        self.outcome.add(name, done.factor, done.varies)
        self.repeat(name)
        return done.output(z, ref.channel_dim) if z is not None and self.is_linear(name) else None

    def repeat(self, name: str) -> None:
        """Do to the copies of a layer what was done to it."""
        for copy in [other for other in self.equals.get(name, ()) if other in self.waiting]:
            copy_layer_(self.waiting[name].layer, self.waiting[copy].layer)
            self.rescaled |= dict.fromkeys(self.parameters(copy), copy) if name in self.outcome.factors else {}
            self.outcome.repeat(name, copy)
            self.disarm(copy)

    def parameters(self, name: str) -> list[int]:
        """Return the ids of the parameters that hold a weight."""
        return [id(parameter) for parameter in self.waiting[name].parameters]

    def is_linear(self, name: str) -> bool:
        """Return whether, with zero bias, the output of a layer scales in proportion to its weight."""
        ref = self.waiting[name]
        return computes_as_torch(ref) and (getattr(ref.layer, "bias", None) is None or name in self.biases)


class _ValueWithGradientOf(Function):
    """The value of one tensor with the gradient of another, since tensors in a graph must not change in place."""

    @staticmethod
    @override
    def forward(ctx: Any, recorded: Tensor, value: Tensor) -> Tensor:
        return value.clone()  # a view could not be changed in place by later layers

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
