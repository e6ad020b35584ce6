"""A call of a recurrent layer or cell: the steps of its sequences, its first states, and what runs over them."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from lcw_lightning.models.recurrent import SigmoidRNN
from lcw_lightning.observation.recurrent_gates import GATES, CellWeights, State, Sweep, sweep

__all__ = [
    "WEIGHT",
    "Recurrent",
    "RecurrentCall",
    "gate_names",
    "is_known_recurrence",
    "mode_of",
    "recurrent_input",
    "rows_of",
    "suffixes",
]

WEIGHT = re.compile(r"weight_(?P<of>ih|hh)_l(?P<number>\d+)(?P<reverse>_reverse)?")
"""Names of the weights with a bias; that of a projection has none."""

Recurrent = nn.RNNBase | nn.RNNCellBase

_FORWARDS = (
    *(nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward, SigmoidRNN.forward),
    *(nn.RNNCell.forward, nn.LSTMCell.forward, nn.GRUCell.forward),
)


class RecurrentCall(NamedTuple):
    """What one layer of a stack runs over, in float32 at least.

    Attributes:
        layer: The whole stack, or a cell.
        number: Of the layer within the stack.
        rows: Inputs of all steps, shape ``(rows, features)``, in the order of a packed sequence.
        steps: Number of rows in each step.
        start: First states of all layers and directions, each of shape ``(layers * directions, batch, features)``.
        order: By which a packed sequence sorts the sequences of a batch; None where it does not.
    """

    layer: Recurrent
    number: int
    rows: Tensor
    steps: Sequence[int]
    start: State
    order: Tensor | None = None

    @classmethod
    def of(cls, layer: Recurrent, given: Any, state: Any = None) -> "RecurrentCall":
        """Return the call of the lowest layer for the arguments that the module was given."""
        rows, steps = _steps(layer, given)
        rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        call = cls(layer, 0, rows, steps, (), given.sorted_indices if isinstance(given, PackedSequence) else None)
        return call._replace(start=call._zeros() if state is None else call.states_of(state))

    def states_of(self, given: Tensor | State) -> State:
        """Return states as the module takes and returns them, or their gradients, in the shape of ``start``."""
        directions = sum(map(len, suffixes(self.layer)))
        states = given if isinstance(given, tuple) else (given,)
        states = tuple(each.detach().to(self.rows).reshape(directions, self.steps[0], -1) for each in states)
        return states if self.order is None else tuple(each[:, self.order] for each in states)

    def _zeros(self) -> State:
        directions = sum(map(len, suffixes(self.layer)))
        size = self.layer.hidden_size
        hidden = self.rows.new_zeros(directions, self.steps[0], getattr(self.layer, "proj_size", 0) or size)
        cells = self.rows.new_zeros(directions, self.steps[0], size)
        return (hidden, cells) if mode_of(self.layer) == "LSTM" else (hidden,)

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

    def above(self, ran: Sequence[Sweep] = ()) -> "RecurrentCall":
        """Return the call of the next layer of the stack, whose inputs are this layer's outputs after dropout.

        On a CPU dropout draws the masks that the stack draws. The directions run unless it is given what they computed.
        """
        assert isinstance(self.layer, nn.RNNBase)
        ran = ran or [self.sweep(suffix) for suffix in suffixes(self.layer)[self.number]]
        outputs = torch.cat([each.outputs for each in ran], dim=1)
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


def is_known_recurrence(layer: nn.Module) -> bool:
    """Return whether a layer is recurrent and computes as torch's own do.

    Example:
        >>> is_known_recurrence(nn.GRUCell(3, 2)), is_known_recurrence(nn.Linear(3, 2))
        (True, False)
    """
    return type(layer).forward in _FORWARDS and "forward" not in vars(layer)


def gate_names(layer: Recurrent) -> list[str]:
    """Return the names of all gates, each with the end that the names of its weights have.

    Example:
        >>> gate_names(nn.GRU(3, 4))
        ['reset_gate_l0', 'update_gate_l0', 'candidate_gate_l0']
    """
    return [f"{gate}_gate{end}" for ends in suffixes(layer) for end in ends for gate in GATES[mode_of(layer)]]


def rows_of(layer: Recurrent, values: Any) -> Tensor:
    """Return the inputs of a layer, or what has the layout of its outputs, in the order of a packed sequence's rows."""
    return _steps(layer, values)[0]


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
