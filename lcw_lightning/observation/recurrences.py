"""What calls of recurrent layers hide: the preactivations of gates, and the gradient of the state at each step."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.utils.rnn import PackedSequence

from lcw_lightning.compat import is_transformed
from lcw_lightning.observation.recurrent_gates import Sweep
from lcw_lightning.observation.recurrent_inputs import (
    Recurrent,
    RecurrentCall,
    gate_names,
    is_known_recurrence,
    rows_of,
    suffixes,
)
from lcw_lightning.weights.restoring import at_rest

__all__ = ["Recurrence", "Recurrences"]

UNKNOWN = "it does not compute as torch's own recurrent layers do"
DROPPED = "dropout has drawn unknown masks between its layers"


class Recurrence(NamedTuple):
    """What recurrent layers show inside their calls.

    Attributes:
        gates: By layer and gate, such as ``input_gate_l0``: ``preactivation_mean``, ``preactivation_std`` and
            ``shift_ratio`` of :math:`W_{ih} x_t + W_{hh} h_{t-1}`, bias left out, over samples and steps. The recurrent
            part of the candidate of a GRU is :math:`r_t (W_{hn} h_{t-1})`.
        gradients: By layer and state, such as ``h_l0``: the norm of dL/dh_t over the batch at each step, in the order
            in which the steps are computed. The derivative is the total one, through all later steps.
        left: By layer, why something of it is not seen.
    """

    gates: Mapping[str, Mapping[str, Mapping[str, float]]] = {}
    gradients: Mapping[str, Mapping[str, Sequence[float]]] = {}
    left: Mapping[str, str] = {}


class Recurrences:
    """Repeats the calls of recurrent layers step by step, from their inputs, first states and weights.

    The repetition changes no random numbers, states or gradients of the network. On a CPU dropout between stacked
    layers has the masks of the call. On other devices these are unknown, so of a stack in training with dropout only
    the gates of the lowest layer are seen. Each call of a cell is a step.

    Args:
        layers: By name; those that are not recurrent are passed over.
        observer: Called with the name of a layer and the preactivations of all its gates, shape ``(rows, channels)``,
            NaN where they are unknown.
        with_gradients: Also find the gradient of the state at each step. This keeps the graph of the repeated calls.

    Attributes:
        left: By layer, why something of it is not seen.

    Example:
        >>> layer, seen = nn.RNN(3, 4, bias=False), []
        >>> recurrences = Recurrences({"rnn": layer}, lambda name, z: seen.append(z), with_gradients=True)
        >>> with recurrences.watching():
        ...     outputs, _ = layer(torch.rand(5, 2, 3))
        ...     outputs[-1].sum().backward()
        >>> torch.allclose(seen[0].tanh(), outputs.flatten(0, 1), atol=1e-6)
        True
        >>> len(recurrences.gradients()["rnn"]["h_l0"])
        5
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], observer: Callable[[str, Tensor], None], with_gradients: bool = False
    ) -> None:
        recurrent = {name: layer for name, layer in layers.items() if isinstance(layer, Recurrent)}
        self.layers = {name: layer for name, layer in recurrent.items() if is_known_recurrence(layer)}
        self.left = dict.fromkeys(recurrent.keys() - self.layers, UNKNOWN)
        self._observer = observer
        self._with_gradients = with_gradients
        self._hooks = ExitStack()
        self._random: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._squares: dict[tuple[str, str], dict[int, Tensor]] = {}
        self._is_read: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the layers within the block; outside it there are no hooks."""
        with self._hooks:
            for name, layer in self.layers.items():
                self._hooks.callback(layer.register_forward_pre_hook(partial(self._before, name)).remove)
                self._hooks.callback(layer.register_forward_hook(partial(self._after, name), with_kwargs=True).remove)
            yield

    def gradients(self, scale: float = 1.0) -> dict[str, dict[str, list[float]]]:
        """Return the norms of dL/dh_t as in :class:`Recurrence`, divided by ``scale``.

        The squares of several calls of a layer are added up step by step.
        """
        found: dict[str, dict[str, list[float]]] = {}
        for (name, state), squares in self._squares.items():
            zero = torch.zeros_like(next(iter(squares.values())))
            steps = torch.stack([squares.get(step, zero) for step in range(max(squares) + 1)])
            found.setdefault(name, {})[state] = (steps.sqrt() / scale).tolist()
        return found

    def read(self) -> list[str]:
        """Return the layers of which the loss reads an output or a last state, so that a gradient reaches it."""
        return [name for name, is_read in self._is_read.items() if is_read]

    def _before(self, name: str, layer: Recurrent, _: tuple[Any, ...]) -> None:
        self._random.pop(name, None)
        if isinstance(layer, nn.RNNBase) and layer.dropout and layer.training and layer.num_layers > 1:
            self._random[name] = torch.get_rng_state()

    def _after(self, name: str, layer: Recurrent, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        outputs = _tensors(returned)
        if is_transformed() or not outputs[0].numel():  # as where an expert gets no sample
            return
        given = signature(layer.forward).bind(*args, **kwargs).arguments
        if name in self._random and outputs[0].device.type != "cpu":
            self.left[name] = DROPPED
        is_stack = isinstance(layer, nn.RNNBase)
        for output in (output for output in outputs if output.requires_grad):
            see = partial(self._see_gradient, name)
            self._hooks.callback(output.register_hook(see).remove)  # type: ignore[no-untyped-call]
        with_gradients = self._with_gradients and torch.is_grad_enabled() and outputs[0].requires_grad
        with self._as_in_call(name, layer), torch.set_grad_enabled(with_gradients and is_stack):
            call = RecurrentCall.of(layer, given["input"], given.get("hx"))
            call.start[0].requires_grad_(torch.is_grad_enabled())  # on which all states depend
            ran = self._repeat(name, call)
        if with_gradients and is_stack and name not in self.left:
            show = partial(self._add_stack, name, call, ran, given["input"])
            self._hooks.callback(register_multi_grad_hook(outputs, show).remove)
        elif with_gradients and not is_stack:
            show_step = partial(self._add, name, "h", self._calls[name])
            self._calls[name] += 1
            self._hooks.callback(outputs[0].register_hook(show_step).remove)  # type: ignore[no-untyped-call]

    def _see_gradient(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None:  # as it is for an output that the loss does not read
            self._is_read[name] = gradient.detach().any() | self._is_read.get(name, False)

    @contextmanager
    def _as_in_call(self, name: str, layer: Recurrent) -> Iterator[None]:
        """Have the random numbers of the call, and full precision; nothing of it stays."""
        device = next(layer.parameters()).device.type
        with torch.random.fork_rng(devices=()), torch.autocast(device, enabled=False), at_rest([layer]):
            if name in self._random:
                torch.set_rng_state(self._random[name])
            yield

    def _repeat(self, name: str, call: RecurrentCall) -> list[list[Sweep]]:
        """Run all layers of a stack, each in its directions, and show the preactivations of their gates."""
        shown: list[Tensor] = []
        stack: list[list[Sweep]] = []
        for number, ends in enumerate(suffixes(call.layer)):
            if number and name in self.left:
                unknown = len(gate_names(call.layer)) * call.layer.hidden_size - sum(z.shape[1] for z in shown)
                shown.append(shown[0].new_full((len(shown[0]), unknown), torch.nan))
                break
            call = call.above(stack[-1]) if number else call
            inputs = [call.inputs(suffix) for suffix in ends]
            stack.append([call.sweep(suffix, part) for suffix, part in zip(ends, inputs, strict=True)])
            shown += [(part + ran.recurrent).detach() for part, ran in zip(inputs, stack[-1], strict=True)]
        self._observer(name, torch.cat(shown, dim=1))
        return stack

    def _add_stack(
        self,
        name: str,
        call: RecurrentCall,
        stack: Sequence[Sequence[Sweep]],
        given: Any,
        gradients: Sequence[Tensor | None],
    ) -> None:
        of_data, *states = gradients
        packed = isinstance(given, PackedSequence) and of_data is not None
        outputs = given._replace(data=of_data) if packed else of_data
        ends = [suffix for ends in suffixes(call.layer) for suffix in ends]
        for suffix, steps in zip(ends, state_gradients(call, stack, outputs, states), strict=True):
            for step, gradient in enumerate(steps):
                self._add(name, f"h{suffix}", step, gradient)

    def _add(self, name: str, state: str, step: int, gradient: Tensor) -> None:
        squares = self._squares.setdefault((name, state), {})
        squares[step] = squares.get(step, 0) + torch.linalg.vector_norm(gradient.detach(), dtype=torch.float64).square()


def state_gradients(
    call: RecurrentCall,
    stack: Sequence[Sequence[Sweep]],
    of_outputs: Tensor | PackedSequence | None,
    of_last: Sequence[Tensor | None],
) -> list[list[Tensor]]:
    """Return the total derivative of the loss by the state at each step, by direction of each layer.

    Args:
        call: Of the lowest layer.
        stack: What the directions of each layer have computed, with a graph.
        of_outputs: The gradient of the module's outputs; None if the loss does not read them.
        of_last: Those of its last hidden states, and of the last cell states of an LSTM.
    """
    every = [ran for layer in stack for ran in layer]
    states = [state for ran in every for state in ran.steps]
    roots, gradients = [], []
    with torch.enable_grad():
        if of_outputs is not None:
            roots.append(torch.cat([ran.outputs for ran in stack[-1]], dim=1))
            gradients.append(rows_of(call.layer, of_outputs).to(roots[0]))
        for number, gradient in enumerate(of_last):
            if gradient is not None:
                roots.append(torch.stack([ran.last[number] for ran in every]))
                gradients += call.states_of(gradient)
    # Another backward pass through the same call may follow.
    found = torch.autograd.grad(roots, states, gradients, retain_graph=True, allow_unused=True)
    known = iter(torch.zeros_like(s) if g is None else g for s, g in zip(states, found, strict=True))
    return [list(islice(known, len(ran.steps))) for ran in every]


def _tensors(output: Any) -> tuple[Tensor, ...]:
    """Return what a layer or cell returns without the grouping of the states."""
    if isinstance(output, Tensor):
        return (output,)
    if isinstance(output, PackedSequence):
        return (output.data,)
    return tuple(tensor for part in output for tensor in _tensors(part))
