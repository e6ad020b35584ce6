"""The recurrences, against torch's own layers."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lcw_lightning.observation.recurrent_gates import GATES
from lcw_lightning.observation.recurrent_inputs import RecurrentCall, mode_of, suffixes

KINDS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN_TANH": nn.RNN,
    "RNN_RELU": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}
RAGGED = [torch.randn(length, 3, dtype=torch.float64) for length in (2, 7, 4)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mode", KINDS)
def test_a_stack_computes_what_torch_computes(mode, packed, bias):
    layer = KINDS[mode](3, 4, num_layers=3, bidirectional=True, bias=bias).double()
    given = pack_sequence(RAGGED, enforce_sorted=False) if packed else torch.randn(5, 3, 3).double()
    start = torch.randn(2 if mode == "LSTM" else 1, 6, 3, 4).double()
    state = tuple(start) if mode == "LSTM" else start[0]
    expected, _ = layer(given, state)
    call = RecurrentCall.of(layer, given, state)
    for _ in suffixes(layer):
        call = call.above()
    torch.testing.assert_close(call.rows, expected.data if packed else expected.flatten(0, 1))
    assert mode_of(layer) == mode
    assert len(layer.weight_ih_l0) == 4 * len(GATES[mode])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
def test_a_projection_is_the_state():
    layer, steps = nn.LSTM(3, 4, proj_size=2).double(), torch.randn(5, 3, 3).double()
    ran = RecurrentCall.of(layer, steps).sweep("_l0")
    torch.testing.assert_close(ran.outputs, layer(steps)[0].flatten(0, 1))
    torch.testing.assert_close(ran.states[3:], ran.outputs[:-3])
    torch.testing.assert_close(ran.recurrent, ran.states @ layer.weight_hh_l0.T)


@pytest.mark.parametrize("shape", [(3,), (6, 3)], ids=["one sample", "a batch"])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_takes_one_step(kind, shape):
    cell, x = kind(3, 4).double(), torch.randn(shape).double()
    state = torch.randn(2 if kind is nn.LSTMCell else 1, *shape[:-1], 4).double()
    given = tuple(state) if kind is nn.LSTMCell else state[0]
    expected = cell(x, given)
    ran = RecurrentCall.of(cell, x, given).sweep("")
    torch.testing.assert_close(ran.outputs, (expected[0] if kind is nn.LSTMCell else expected).view(-1, 4))
