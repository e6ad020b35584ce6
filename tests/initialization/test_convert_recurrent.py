"""What conversion does to recurrent layers and cells, against gates computed step by step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lcw_lightning import constrain, convert_
from lcw_lightning.initialization.anderson import find_root

CELLS = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
SEQUENCES = [torch.rand(length, 3, dtype=torch.float64) + 0.5 for length in (7, 5, 5, 2)]
SETTINGS = [
    *((nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"})),
    *(
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (nn.GRU, {"num_layers": 3}),
        (nn.RNN, {"bidirectional": True}),
    ),
]
settings = pytest.mark.parametrize(
    ("kind", "settings"), SETTINGS, ids=lambda value: getattr(value, "__name__", str(value))
)


def trained(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    return module


@torch.no_grad()
def gate_means(layer, sequences, start=None):
    """The mean over steps of all sequences of W_ih x + b_ih and of W_hh h + b_hh, by layer and direction."""
    directions, means = 1 + layer.bidirectional, {}
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            end = f"l{number}" + "_reverse" * direction
            w_ih, w_hh, b_ih, b_hh = (
                getattr(layer, f"{name}_{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            more = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
            cell = CELLS[next(kind for kind in CELLS if isinstance(layer, kind))](
                w_ih.shape[1], layer.hidden_size, **more
            ).double()
            cell.load_state_dict({"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh})
            ih, hh, ran = [], [], []
            for index, sequence in enumerate(sequences):
                state = (
                    torch.zeros(1, layer.hidden_size).double()
                    if start is None
                    else start[number * directions + direction, index][None]
                )
                carried, states = (state, torch.zeros_like(state)) if isinstance(layer, nn.LSTM) else state, []
                for x in sequence.flip(0) if direction else sequence:
                    hidden = carried[0] if isinstance(carried, tuple) else carried
                    ih.append(w_ih @ x + b_ih)
                    hh.append(w_hh @ hidden[0] + b_hh)
                    carried = cell(x[None], carried)
                    states.append((carried[0] if isinstance(carried, tuple) else carried)[0])
                ran.append(torch.stack(states).flip(0) if direction else torch.stack(states))
            means[f"ih_{end}"], means[f"hh_{end}"] = torch.stack(ih).mean(0), torch.stack(hh).mean(0)
            outputs.append(ran)
        sequences = [torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)]
    return means


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@settings
def test_every_gate_keeps_its_mean_over_the_steps_of_packed_sequences(kind, settings):
    layer = trained(kind(3, 4, **settings))
    before, projected = gate_means(layer, SEQUENCES), copy.deepcopy(layer)
    constrain(projected)
    convert_(layer, pack_sequence(SEQUENCES))
    assert largest_difference(gate_means(layer, SEQUENCES), before) < 1e-10
    assert largest_difference(gate_means(projected, SEQUENCES), before) > 0.05  # control


@settings
def test_the_state_that_is_given_counts(kind, settings):
    layer, batch = trained(kind(3, 4, batch_first=True, **settings)), torch.stack([SEQUENCES[1], SEQUENCES[2]])
    start = torch.rand((1 + layer.bidirectional) * layer.num_layers, 2, 4).double()
    before, projected = gate_means(layer, list(batch), start), copy.deepcopy(layer)
    constrain(projected)
    convert_(layer, batch, (start, torch.zeros_like(start)) if kind is nn.LSTM else start)
    assert largest_difference(gate_means(layer, list(batch), start), before) < 1e-10
    assert largest_difference(gate_means(projected, list(batch), start), before) > 0.05


def test_the_projection_of_an_lstm_is_named():
    layer = trained(nn.LSTM(3, 4, proj_size=2))
    with pytest.warns(UserWarning, match=r"not restored of 'weight_hr_l0' \(hidden in its layer\)\.$"):
        convert_(layer, torch.rand(5, 2, 3).double())


def test_a_layer_without_biases_is_named():
    with pytest.warns(UserWarning, match=r"of 'weight_ih_l0', 'weight_hh_l0' \(no bias\)\.$"):
        convert_(trained(nn.GRU(3, 4, bias=False)), torch.rand(5, 2, 3).double())


class Loop(nn.Module):
    """A cell that is called for each step."""

    def __init__(self, kind):
        super().__init__()
        self.cell = kind(3, 4)

    def forward(self, steps):
        state, states = None, []
        for x in steps:
            states.append(state)
            state = self.cell(x, state)
        self.states = [each[0] if isinstance(each, tuple) else each for each in states[1:]]
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", CELLS.values())
def test_a_cell_gets_the_mean_over_its_calls_of_what_the_projection_takes(kind):
    model, steps = trained(Loop(kind)), torch.rand(6, 10, 3).double() + 0.5
    plain = copy.deepcopy(model.cell)
    model(steps)
    states = torch.stack([torch.zeros(10, 4).double(), *model.states]).mean((0, 1))  # the first state is zero
    convert_(model, steps)
    cell = model.cell
    torch.testing.assert_close(cell.bias_ih, plain.bias_ih + (plain.weight_ih - cell.weight_ih) @ steps.mean((0, 1)))
    torch.testing.assert_close(cell.bias_hh, plain.bias_hh + (plain.weight_hh - cell.weight_hh) @ states)
    assert (cell.bias_hh - plain.bias_hh).abs().max() > 0.01  # control: the first call alone gives it nothing


def test_a_root_is_found_where_the_plain_iteration_diverges_and_none_where_there_is_none():
    matrix = torch.tensor([[3.0, 1.0], [-2.0, 4.0]], dtype=torch.float64)
    x = find_root(lambda x: matrix @ x + torch.tanh(x) - 1, torch.zeros(2, dtype=torch.float64), 1e-12)
    assert (matrix @ x + torch.tanh(x) - 1).abs().max() <= 1e-12
    plain = torch.zeros(2, dtype=torch.float64)
    for _ in range(100):
        plain = plain - (matrix @ plain + torch.tanh(plain) - 1)
    assert plain.norm() > 1e6
    assert find_root(lambda x: 1 + x.square(), torch.zeros(2, dtype=torch.float64), 1e-12) is None
