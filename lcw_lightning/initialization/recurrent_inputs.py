"""A call of a recurrent layer or cell: the steps of its sequences, its first states, and what runs over them."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from lcw_lightning.initialization.recurrent_gates import CellWeights, State, Sweep, sweep

__all__ = ["WEIGHT", "RecurrentCall", "Recurrent", "mode_of", "recurrent_input", "suffixes"]

WEIGHT = re.compile(r"weight_(?P<of>ih|hh)_l(?P<number>\d+)(?P<reverse>_reverse)?")
"""Names of the weights with a bias; that of a projection has none."""

Recurrent = nn.RNNBase | nn.RNNCellBase


class RecurrentCall(NamedTuple):
    """What one layer of a stack runs over, in float32 at least.

    Attributes:
        layer: The whole stack, or a cell.
        number: Of the layer within the stack.
        rows: Inputs of all steps, shape ``(rows, features)``, in the order of a packed sequence.
        steps: Number of rows in each step.
        start: First states of all layers and directions, each of shape ``(layers * directions, batch, features)``.
    """

    layer: Recurrent
    number: int
    rows: Tensor
    steps: Sequence[int]
    start: State

    @classmethod
    def of(cls, layer: Recurrent, given: Any, state: Any = None) -> "RecurrentCall":
        """Return the call of the lowest layer for the arguments that the module was given."""
        rows, steps = _steps(layer, given)
        rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        return cls(layer, 0, rows, steps, _start(layer, given, state, rows, steps))

    def weights(self, suffix: str) -> CellWeights:
        """Return recurrent weights and biases of a direction as they are now; zero for biases that are not there."""

        def held(name: str) -> Tensor | None:
            value = getattr(self.layer, f"{name}{suffix}", None)
            return None if value is None else value.detach().to(self.rows)

        zero = self.rows.new_zeros(())
        bias_ih, bias_hh = (zero if (bias := held(name)) is None else bias for name in ("bias_ih", "bias_hh"))
        return CellWeights(cast(Tensor, held("weight_hh")), held("weight_hr"), bias_ih, bias_hh)

    def inputs(self, suffix: str) -> Tensor:
        """Return the input part of a direction's gates, without bias."""
        weight: Tensor = getattr(self.layer, f"weight_ih{suffix}")
        return self.rows @ weight.detach().to(self.rows).T

    def sweep(self, suffix: str, inputs: Tensor | None = None, weights: CellWeights | None = None) -> Sweep:
        """Run a direction over all steps, by other weights if they are given."""
        number = len(suffixes(self.layer)[0]) * self.number + suffix.endswith("_reverse")
        start = tuple(states[number] for states in self.start)
        inputs = self.inputs(suffix) if inputs is None else inputs
        weights = self.weights(suffix) if weights is None else weights
        return sweep(mode_of(self.layer), weights, inputs, self.steps, start, suffix.endswith("_reverse"))

    def above(self) -> "RecurrentCall":
        """Return the call of the next layer of the stack, whose inputs are this layer's outputs after dropout.

        On a CPU dropout draws the masks that the stack draws.
        """
        assert isinstance(self.layer, nn.RNNBase)
        outputs = torch.cat([self.sweep(suffix).outputs for suffix in suffixes(self.layer)[self.number]], dim=1)
        rows = functional.dropout(outputs, self.layer.dropout, self.layer.training) if self.layer.dropout else outputs
        return self._replace(number=self.number + 1, rows=rows)


def recurrent_input(layer: nn.RNNBase, name: str, given: Any, state: Any) -> Tensor:
    """Return what a weight of a recurrent layer multiplies in a call, shape ``(rows, features)``.

    Args:
        layer: The layer.
        name: Such as ``weight_hh_l1_reverse``.
        given: The layer's input.
        state: The layer's first state; None for zeros.

    Example:
        >>> layer, x = nn.RNN(3, 4, num_layers=2), torch.rand(5, 2, 3)
        >>> recurrent_input(layer, "weight_hh_l1", x, None).allclose(
        ...     torch.cat([torch.zeros(1, 2, 4), layer(x)[0][:-1]]).flatten(0, 1), atol=1e-6)
        True
    """
    match = WEIGHT.fullmatch(name)
    assert match is not None
    call = RecurrentCall.of(layer, given, state)
    for _ in range(int(match["number"])):
        call = call.above()
    return call.rows if match["of"] == "ih" else call.sweep(name.removeprefix("weight_hh")).states


def mode_of(layer: Recurrent) -> str:
    """Return which recurrence a layer or cell computes.

    Example:
        >>> mode_of(nn.GRUCell(3, 4)), mode_of(nn.RNN(3, 4, nonlinearity="relu"))
        ('GRU', 'RNN_RELU')
    """
    if isinstance(layer, nn.RNNBase):
        return layer.mode
    if isinstance(layer, nn.RNNCell):
        return f"RNN_{layer.nonlinearity.upper()}"
    return "LSTM" if isinstance(layer, nn.LSTMCell) else "GRU"


def suffixes(layer: Recurrent) -> list[list[str]]:
    """Return by which ends of their names the weights of each layer of a stack, and of each direction, are told apart.

    Example:
        >>> suffixes(nn.LSTM(3, 4, bidirectional=True)), suffixes(nn.LSTMCell(3, 4))
        ([['_l0', '_l0_reverse']], [['']])
    """
    if not isinstance(layer, nn.RNNBase):
        return [[""]]
    ends = ("", "_reverse") if layer.bidirectional else ("",)
    return [[f"_l{number}{end}" for end in ends] for number in range(layer.num_layers)]


def _steps(layer: Recurrent, given: Any) -> tuple[Tensor, list[int]]:
    if isinstance(given, PackedSequence):
        return given.data, given.batch_sizes.tolist()
    if not isinstance(layer, nn.RNNBase):
        rows: Tensor = given if given.dim() == 2 else given.unsqueeze(0)
        return rows, [len(rows)]
    if given.dim() == 2:
        return given, [1] * len(given)
    steps: Tensor = given.transpose(0, 1) if layer.batch_first else given
    return steps.flatten(0, 1), [steps.shape[1]] * len(steps)


def _start(layer: Recurrent, given: Any, state: Any, rows: Tensor, steps: Sequence[int]) -> State:
    """Return the first states, zero by default, in the order of the steps' rows."""
    directions = sum(map(len, suffixes(layer)))
    if state is None:
        hidden = rows.new_zeros(directions, steps[0], getattr(layer, "proj_size", 0) or layer.hidden_size)
        cells = rows.new_zeros(directions, steps[0], layer.hidden_size)
        return (hidden, cells) if mode_of(layer) == "LSTM" else (hidden,)
    states: State = state if isinstance(state, tuple) else (state,)
    states = tuple(each.detach().to(rows).reshape(directions, steps[0], -1) for each in states)
    order = given.sorted_indices if isinstance(given, PackedSequence) else None
    return states if order is None else tuple(each[:, order] for each in states)
