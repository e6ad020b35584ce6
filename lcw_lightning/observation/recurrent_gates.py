"""The recurrences of RNN, LSTM and GRU, step by step: what each gate gets from the inputs and from the states."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["GATES", "CellWeights", "Sweep", "sweep"]

GATES = {
    "LSTM": ("input", "forget", "cell", "output"),
    "GRU": ("reset", "update", "candidate"),
    "RNN_TANH": ("hidden",),
    "RNN_RELU": ("hidden",),
    "RNN_SIGMOID": ("hidden",),
}
"""Names of the gates of each mode, in the order of their rows in a weight."""


class CellWeights(NamedTuple):
    """The recurrent weights of one direction of one layer, and its biases of shape ``(gates * hidden,)``, or zero."""

    hh: Tensor
    hr: Tensor | None
    bias_ih: Tensor
    bias_hh: Tensor


State = tuple[Tensor, ...]
"""Of each sequence in a step: the hidden state, and the cell state of an LSTM."""


class Sweep(NamedTuple):
    """What one direction of one layer computes, one row per step of each sequence.

    Attributes:
        recurrent: What each gate gets from the state, without bias, shape ``(rows, gates * hidden)``:
            :math:`W_{hh} h_{t-1}`; for the candidate of a GRU :math:`r_t (W_{hn} h_{t-1})`.
        states: :math:`h_{t-1}`, shape ``(rows, outputs)``.
        outputs: :math:`h_t`, of the same shape.
        steps: :math:`h_t` of each step by itself, in the order in which they are computed.
        last: The last states of all sequences.
    """

    recurrent: Tensor
    states: Tensor
    outputs: Tensor
    steps: Sequence[Tensor]
    last: State


def sweep(
    mode: str, weights: CellWeights, inputs: Tensor, steps: Sequence[int], start: State, reverse: bool = False
) -> Sweep:
    r"""Run one direction of one layer over all steps.

    Args:
        mode: A key of :data:`GATES`.
        weights: Of the direction.
        inputs: :math:`W_{ih} x_t`, without bias, shape ``(rows, gates * hidden)``; rows in the order of a
            :class:`~torch.nn.utils.rnn.PackedSequence`.
        steps: Number of rows in each step: ``batch_sizes`` of a packed sequence.
        start: The first states, each of shape ``(batch, features)``.
        reverse: Whether steps run backwards.

    Example:
        >>> gru, x = torch.nn.GRU(3, 4), torch.rand(5, 2, 3)
        >>> weights = CellWeights(gru.weight_hh_l0, None, gru.bias_ih_l0, gru.bias_hh_l0)
        >>> ran = sweep("GRU", weights, x.flatten(0, 1) @ gru.weight_ih_l0.T, [2] * 5, (torch.zeros(2, 4),))
        >>> torch.allclose(ran.outputs, gru(x)[0].flatten(0, 1), atol=1e-6)
        True
    """
    cell, state, found = _CELLS[mode], start, []
    parts = torch.split(inputs, list(steps))
    for part in reversed(parts) if reverse else parts:
        # Sequences are sorted by length: forwards the short ones have ended, backwards they have not begun.
        size = len(part)
        before = tuple(each[:size] for each in state)
        recurrent, after = cell(part, before[0] @ weights.hh.T, weights, before)
        found.append((recurrent, before[0], after[0]))
        both = zip(after, state, strict=True)
        state = after if size == len(state[0]) else tuple(torch.cat((new, old[size:])) for new, old in both)
    hidden = [after for _, _, after in found]
    if reverse:
        found.reverse()
    recurrent, states, outputs = map(torch.cat, zip(*found, strict=True))
    return Sweep(recurrent, states, outputs, hidden, state)


def _rnn(activation: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, State]]:
    def cell(inputs: Tensor, recurrent: Tensor, weights: CellWeights, _: State) -> tuple[Tensor, State]:
        return recurrent, (activation(inputs + recurrent + weights.bias_ih + weights.bias_hh),)

    return cell


def _lstm(inputs: Tensor, recurrent: Tensor, weights: CellWeights, state: State) -> tuple[Tensor, State]:
    gates = (inputs + recurrent + weights.bias_ih + weights.bias_hh).chunk(4, dim=1)
    taken, kept, shown = (gates[number].sigmoid() for number in (0, 1, 3))
    cell = kept * state[1] + taken * gates[2].tanh()
    hidden = shown * cell.tanh()
    return recurrent, (hidden if weights.hr is None else hidden @ weights.hr.T, cell)


def _gru(inputs: Tensor, recurrent: Tensor, weights: CellWeights, state: State) -> tuple[Tensor, State]:
    width = recurrent.shape[1] // 3 * 2
    given, fed_back = inputs + weights.bias_ih, recurrent + weights.bias_hh
    reset, update = (given + fed_back)[:, :width].sigmoid().chunk(2, dim=1)
    candidate = (given[:, width:] + reset * fed_back[:, width:]).tanh()
    parts = torch.cat((recurrent[:, :width], reset * recurrent[:, width:]), dim=1)
    return parts, ((1 - update) * candidate + update * state[0],)


_CELLS: dict[str, Callable[[Tensor, Tensor, CellWeights, State], tuple[Tensor, State]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _rnn(torch.tanh),
    "RNN_RELU": _rnn(torch.relu),
    "RNN_SIGMOID": _rnn(torch.sigmoid),
}
