"""Restore the mean preactivations of a network whose weights have changed, layer after layer in one forward pass."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lcw_lightning.compat import is_transformed
from lcw_lightning.initialization.anderson import find_root
from lcw_lightning.initialization.mean_preactivations import NormInput, Preactivation, norm_inputs, preactivations
from lcw_lightning.initialization.rescaling import forget_used_weights
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["MeanRestoration", "exchanged"]


class _Recorded(NamedTuple):
    """A mean of the untouched network, and how far the constraint alone moves it, both summed over calls."""

    calls: int
    mean: Tensor
    moved: Tensor


class MeanRestoration:
    """The means of the untouched network, and the changes that restore them.

    Args:
        model: The network.
        weights: The weights to constrain, by name.
        values: The values that the new ones among them will have.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, WeightRef], values: Mapping[WeightRef, Tensor]) -> None:
        self.values = values
        self.shown: dict[nn.Module, list[Preactivation | NormInput]] = {}
        self.recorded: dict[Preactivation | NormInput, _Recorded] = {}
        self.changes: list[tuple[Tensor, Tensor]] = []
        self.done: set[nn.Module] = set()
        self.unrestored_outputs: MutableMapping[Tensor, tuple[Preactivation | NormInput, int]]
        self.unrestored_outputs = WeakTensorKeyDictionary()
        self.obstacles = dict.fromkeys(_altered(weights, values), "hidden in its layer")
        """Why the means of an altered weight are not restored, by its name; empty if they are."""
        seen: list[Preactivation | NormInput] = [*preactivations(model, weights), *norm_inputs(model)]
        for one in seen:
            self.shown.setdefault(one.layer, []).append(one)
            self._note(one, "not seen in a call of its layer")

    @property
    def unrestored(self) -> dict[str, str]:
        """Why the means of the other altered weights are not restored, by name."""
        return {name: obstacle for name, obstacle in self.obstacles.items() if obstacle}

    @torch.no_grad()
    def apply_changes(self) -> None:
        """Write the biases and running means that restore the means."""
        for tensor, value in self.changes:
            tensor.copy_(value)
        forget_used_weights()

    def record(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before each call of a layer of the untouched network."""
        for one in () if is_transformed() else self.shown[layer]:
            if (mean := one.mean(args, kwargs)) is None:
                continue
            with exchanged({ref: self.values[ref] for ref in one.refs if ref in self.values}):
                moved = cast(Tensor, one.mean(args, kwargs)) - mean  # for layers that are called several times
            calls, *sums = self.recorded.get(one, (0, torch.zeros_like(mean), torch.zeros_like(mean)))
            self.recorded[one] = _Recorded(calls + 1, sums[0] + mean, sums[1] + moved)

    def restore(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before each call of a layer of the constrained network; before the first it restores the means."""
        if is_transformed() or layer in self.done:
            return
        self.done.add(layer)
        for one in self.shown[layer]:
            if (now := one.mean(args, kwargs)) is None or one not in self.recorded:
                continue
            calls, mean, moved = self.recorded[one]
            if isinstance(one, Preactivation) and one.feeds_back and calls == 1:
                self._settle(one, mean, args, kwargs)
            else:
                self._shift(one, now - mean if calls == 1 else moved / calls, now, args, kwargs)
            if isinstance(one, NormInput) and calls == 1:
                self._note_norm(one.given(args, kwargs))

    def note_output(self, layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Hook after each call of a layer: keep the outputs whose mean only a BatchNorm can restore."""
        for one in self.shown[layer]:
            if isinstance(output, Tensor) and self.obstacles.get(one.name) and not one.argument:
                self.unrestored_outputs[output] = one, output._version

    def _shift(
        self,
        one: Preactivation | NormInput,
        moved: Tensor,
        now: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._note(one, one.obstacle)
        if (change := one.shift_(moved)) is None:
            return
        forget_used_weights()
        # A foreign layer may do anything with its bias.
        missed = (cast(Tensor, one.mean(args, kwargs)) - now + moved).norm() if one.is_foreign else torch.tensor(0.0)
        if missed > 0.5 * moved.norm() + 1e-5 * now.norm():
            one.shift_(-moved)
            forget_used_weights()
            self._note(one, "a bias that does not add to the output")
        else:
            self.changes.append(change)

    def _settle(self, one: Preactivation, mean: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Restore the mean of recurrent weights times states, which the bias moves too."""
        self._note(one, one.obstacle)
        if one.bias is None:
            return
        start = one.bias.double().clone()

        def missed(shift: Tensor) -> Tensor:
            cast(Tensor, one.bias).copy_(start + shift)
            return cast(Tensor, one.mean(args, kwargs)) - mean + shift

        tolerance = torch.finfo(one.bias.dtype).eps ** 0.75 * (1 + mean.abs().max().item())
        if (shift := find_root(missed, torch.zeros_like(mean), tolerance)) is None:
            one.bias.copy_(start)
            self._note(one, "a recurrence that does not settle")
        else:
            self.changes.append((one.bias, (start + shift).to(one.bias.dtype)))

    def _note(self, one: Preactivation | NormInput, obstacle: str) -> None:
        if one.name in self.obstacles and one.refs:
            self.obstacles[one.name] = obstacle

    def _note_norm(self, given: Tensor | None) -> None:
        one, version = (None, 0) if given is None else self.unrestored_outputs.get(given, (None, 0))
        # Changed in place since, by a ReLU for one, it is no longer the layer's output.
        if one is not None and given is not None and given._version == version:
            self._note(one, "")


def _altered(weights: Mapping[str, WeightRef], values: Mapping[WeightRef, Tensor]) -> list[str]:
    """Return the names of the weights that the constraint changes by more than rounding."""
    changed = {ref for ref, value in values.items() if (value - ref.value).norm() > 1e-5 * ref.value.norm()}
    return [name for name, ref in weights.items() if ref in changed]


@contextmanager
def exchanged(values: Mapping[WeightRef, Tensor]) -> Iterator[None]:
    """Let weights have these values within the block."""
    own = {ref: ref.value.clone() for ref in values}
    try:
        for ref, value in values.items():
            ref.value.copy_(value)
        forget_used_weights()
        yield
    finally:
        for ref, value in own.items():
            ref.value.copy_(value)
        forget_used_weights()
