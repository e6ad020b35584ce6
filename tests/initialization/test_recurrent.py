"""Minibatch initialization of recurrent layers and cells, against recurrences written out step by step."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from lcw_lightning import constrain, minibatch_init_
from lcw_lightning.constraints.kinds import kind_of
from lcw_lightning.initialization.minibatch import new_outcome, rescale_on_first_forward
from lcw_lightning.weights.weight_ref import named_weights
from tests.kinds import KINDS
from tests.quick import quick

FEATURES, HIDDEN = 6, 5
SEQUENCES = list(torch.randn(12, 9, FEATURES, generator=torch.Generator().manual_seed(0)) + 0.5)
RAGGED = [sequence[: 3 + number % 7] for number, sequence in enumerate(SEQUENCES)]
BATCH = torch.stack(SEQUENCES, dim=1)
LAYERS = {
    "LSTM": partial(nn.LSTM, num_layers=2),
    "LSTM without biases": partial(nn.LSTM, bias=False),
    "LSTM, projected both ways": partial(nn.LSTM, num_layers=2, bidirectional=True, proj_size=3),
    "GRU": partial(nn.GRU, num_layers=2, bidirectional=True),
    "tanh": partial(nn.RNN, num_layers=2, bidirectional=True),
    "ReLU": partial(nn.RNN, num_layers=2, bidirectional=True, nonlinearity="relu"),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
kinds = pytest.mark.parametrize("kind", KINDS)
# oneDNN says that it has no projections.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


def lstm(inputs, products, biases, state, projection):
    i, f, g, o = (inputs + products + biases[0] + biases[1]).chunk(4)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    hidden = torch.sigmoid(o) * torch.tanh(cell)
    return products, (hidden if projection is None else projection @ hidden, cell)


def gru(inputs, products, biases, state, _):
    (xr, xz, xn), (hr, hz, hn), (br, bz, bn), (cr, cz, cn) = (v.chunk(3) for v in (inputs, products, *biases))
    r, z = torch.sigmoid(xr + hr + br + cr), torch.sigmoid(xz + hz + bz + cz)
    n = torch.tanh(xn + bn + r * (hn + cn))
    return torch.cat((hr, hz, r * hn)), ((1 - z) * n + z * state[0], None)


def elman(activation, inputs, products, biases, state, _):
    return products, (activation(inputs + products + biases[0] + biases[1]), None)


def cell_of(layer):
    if isinstance(layer, (nn.RNN, nn.RNNCell)):
        return partial(elman, getattr(torch, layer.nonlinearity)), 1
    return (lstm, 4) if isinstance(layer, (nn.LSTM, nn.LSTMCell)) else (gru, 3)


@torch.no_grad()
def run(layer, suffix, sequences, start=None):
    """One direction over sequences: for each gate the inputs' and the states' parts with biases, and the outputs."""
    cell, num_gates = cell_of(layer)
    held = [getattr(layer, name + suffix, None) for name in ("weight_ih", "weight_hh", "weight_hr")]
    w, u, p = (None if weight is None else weight.double() for weight in held)
    nothing = torch.zeros(len(w)).double()
    biases = [getattr(layer, f"{name}{suffix}", nothing).double() for name in ("bias_ih", "bias_hh")]
    rows, outputs = [], []
    for index, sequence in enumerate(sequences):
        state = torch.zeros(u.shape[1]).double() if start is None else start[0][index], torch.zeros(layer.hidden_size)
        state = state if start is None or len(start) == 1 else (state[0], start[1][index])
        steps, states = sequence.double(), []
        for x in steps.flip(0) if "reverse" in suffix else steps:
            products = u @ state[0]
            fed_back, state = cell(w @ x, products, biases, state, p)
            rows.append(torch.stack((w @ x, fed_back, biases[0] + 0 * products)))
            states.append(state[0])
        outputs.append(torch.stack(states[::-1] if "reverse" in suffix else states))
    parts = torch.stack(rows)  # steps of all sequences, parts, rows of all gates
    return dict(enumerate(parts.chunk(num_gates, dim=2))), outputs


def gates_of(layer, sequences, start=None, between=lambda outputs: outputs):
    """The parts of every gate of every layer and direction, and the outputs of projections."""
    found, ends = {}, ("", "_reverse") if layer.bidirectional else ("",)
    for number in range(layer.num_layers):
        ran = []
        for direction, end in enumerate(ends):
            own = None if start is None else [each[number * len(ends) + direction].double() for each in start]
            gates, outputs = run(layer, f"_l{number}{end}", sequences, own)
            found |= {(number, end, gate): parts for gate, parts in gates.items()}
            if getattr(layer, "proj_size", 0):
                found[number, end, "projection"] = torch.cat(outputs)
            ran.append(outputs)
        sequences = between([torch.cat(both, dim=1) for both in zip(*ran, strict=True)])
    return found


def std(values, by_unit=False):
    return values.std(0, correction=0) if by_unit else values.std(correction=0)


def largest_miss(found, by_unit=False, target=1.0):
    """How far the std of a gate or a projection is from the target at most."""
    z = [parts if key[2] == "projection" else parts[:, 0] + parts[:, 1] for key, parts in found.items()]
    return max((std(each, by_unit) / target - 1).abs().max().item() for each in z)


def shares(found):
    """The part of the states in each gate's variance."""
    squares = [(std(p[:, 0]) ** 2, std(p[:, 1]) ** 2) for key, p in found.items() if key[2] != "projection"]
    return torch.stack([fed_back / (fed_back + given) for given, fed_back in squares])


@layers
@pytest.mark.parametrize(
    ("kind", "granularity"), [*((kind, "layer") for kind in KINDS), ("none", "unit"), ("lcw", "unit")]
)
def test_every_gate_has_the_std_and_the_recurrent_part_its_share(make, kind, granularity):
    layer = make(FEATURES, HIDDEN)
    KINDS[kind](layer)
    before = gates_of(layer, SEQUENCES)
    has_gains = kind in ("wn", "cwn")
    by_unit = granularity == "unit" or has_gains
    minibatch_init_(layer, BATCH, granularity=granularity)
    found = gates_of(layer, SEQUENCES)
    print(f"std of gates off 1 by {largest_miss(found, by_unit):.1e}, {largest_miss(before):.1e} before")
    assert largest_miss(found, by_unit) < 1e-3
    if not by_unit:
        assert (shares(found) - 0.5).abs().max() < 1e-2
    assert largest_miss(before) > 0.2  # controls
    assert (shares(before) - 0.5).abs().max() > 0.1
    biases = {name: value for name, value in layer.named_parameters() if "bias" in name}
    if has_gains and layer.bias:
        means = [parts.sum(1).mean(0) for key, parts in found.items() if key[2] != "projection"]
        assert torch.stack(means).abs().max() < 1e-3
    assert all(bias.any() == (has_gains and "bias_ih" in name) for name, bias in biases.items())


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_std_and_share_are_those_that_are_asked_for(make, share):
    layer = make(FEATURES, HIDDEN)
    minibatch_init_(layer, BATCH, target_std=0.7, recurrent_share=share)
    found = gates_of(layer, SEQUENCES)
    assert largest_miss(found, target=0.7) < 1e-3
    assert (shares(found) - share).abs().max() < 1e-2


def given_as(how):
    layout = {"batch_first": True} if how == "batch first" else {}
    sequences = {"packed": RAGGED, "alone": SEQUENCES[:1]}.get(how, SEQUENCES)
    if how == "packed":
        return layout, sequences, pack_sequence(sequences, enforce_sorted=False)
    return layout, sequences, {"alone": SEQUENCES[0], "batch first": torch.stack(SEQUENCES)}[how]


@pytest.mark.parametrize("how", ["batch first", "packed", "alone"])
@pytest.mark.parametrize("with_start", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_steps_of_sequences_count_however_they_are_given(how, with_start, kind):
    layout, sequences, given = given_as(how)
    layer = kind(FEATURES, HIDDEN, num_layers=2, bidirectional=True, **layout)
    start = torch.randn(2 if kind is nn.LSTM else 1, 4, len(sequences), HIDDEN)
    states = tuple(start.squeeze(2)) if how == "alone" else tuple(start)
    extra = ((states if kind is nn.LSTM else states[0]),) if with_start else ()
    minibatch_init_(layer, given, *extra)
    found = gates_of(layer, sequences, start if with_start else None)
    assert largest_miss(found) < 1e-3
    assert (shares(found) - 0.5).abs().max() < 1e-2
    other = gates_of(layer, [sequence[:2] for sequence in sequences], None if with_start else start)
    assert largest_miss(other) > 0.01  # control: other steps or another state have another std


def test_upper_layers_see_what_dropout_leaves():
    torch.manual_seed(1)
    layer = nn.LSTM(FEATURES, HIDDEN, num_layers=2, dropout=0.5)
    stream = torch.get_rng_state()
    minibatch_init_(layer, BATCH)
    assert torch.equal(torch.get_rng_state(), stream)

    def drop(outputs):
        torch.set_rng_state(stream)
        return list(functional.dropout(torch.stack(outputs, dim=1), 0.5).unbind(1))

    assert largest_miss(gates_of(layer, SEQUENCES, between=drop)) < 1e-3
    assert largest_miss(gates_of(layer, SEQUENCES)) > 1e-2  # control: without dropout
    torch.set_rng_state(stream)
    upper = drop(run(layer, "_l0", SEQUENCES)[1])
    torch.set_rng_state(stream)
    expected = torch.stack(run(layer, "_l1", upper)[1], dim=1)
    torch.testing.assert_close(layer(BATCH)[0].double(), expected, atol=1e-5, rtol=0)  # these are the layer's masks


@pytest.mark.parametrize("kind", quick(["none", "lcw"], list(KINDS)))
@pytest.mark.parametrize("make", [LAYERS["LSTM, projected both ways"], LAYERS["GRU"]], ids=["LSTM", "GRU"])
def test_in_training_the_same_forward_computes_with_the_new_weights(make, kind):
    layer = make(FEATURES, HIDDEN)
    KINDS[kind](layer)
    plain, hooks = copy.deepcopy(layer), list(layer._forward_pre_hooks)
    with rescale_on_first_forward(layer) as waiting:
        output, _ = layer(BATCH)
        assert not waiting
        again, _ = layer(BATCH)
    assert torch.equal(output, again)
    assert list(layer._forward_pre_hooks) == hooks
    output.sum().backward()
    assert all(parameter.grad.any() for ref in named_weights(layer).values() for parameter in ref.parameters)
    minibatch_init_(plain, BATCH)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in layer.state_dict().items())


def test_activation_checkpointing_runs_the_layer_again_with_the_new_weights():
    layer, plain, steps = nn.LSTM(FEATURES, HIDDEN), nn.LSTM(FEATURES, HIDDEN), BATCH.clone().requires_grad_()
    plain.load_state_dict(layer.state_dict())
    with rescale_on_first_forward(layer):
        checkpoint(layer, steps, use_reentrant=False)[0].sum().backward()
    minibatch_init_(plain, BATCH)
    plain(BATCH)[0].sum().backward()
    torch.testing.assert_close(layer.weight_hh_l0.grad, plain.weight_hh_l0.grad)


CELLS = {
    "LSTM": nn.LSTMCell,
    "GRU": nn.GRUCell,
    "tanh": nn.RNNCell,
    "ReLU": partial(nn.RNNCell, nonlinearity="relu"),
}
cells = pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)


class Loop(nn.Module):
    """A cell that is called for each step."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, steps, state=None):
        for x in steps:
            state = self.cell(x, state)
        return state


@cells
@kinds
def test_of_a_cell_that_starts_from_zero_the_first_step_counts_and_its_recurrent_weights_stay(make, kind):
    loop = Loop(make(FEATURES, HIDDEN))
    KINDS[kind](loop)
    before = loop.cell.weight_hh.clone()
    with pytest.warns(UserWarning, match=r"left as they are: 'cell\.weight_hh' \(zero states\)$"):
        minibatch_init_(loop, BATCH)
    found, _ = run(loop.cell, "", [sequence[:1] for sequence in SEQUENCES])
    assert largest_miss({(0, "", gate): parts for gate, parts in found.items()}, kind in ("wn", "cwn")) < 1e-3
    assert torch.equal(loop.cell.weight_hh, before)


@cells
def test_a_cell_that_is_given_a_state_is_rescaled_whole(make):
    loop, start = Loop(make(FEATURES, HIDDEN)), torch.randn(2, len(SEQUENCES), HIDDEN)
    is_lstm = isinstance(loop.cell, nn.LSTMCell)
    minibatch_init_(loop, BATCH, tuple(start) if is_lstm else start[0])
    found, _ = run(loop.cell, "", [sequence[:1] for sequence in SEQUENCES], start.double())
    found = {(0, "", gate): parts for gate, parts in found.items()}
    assert largest_miss(found) < 1e-3
    assert (shares(found) - 0.5).abs().max() < 1e-2


def test_one_step_shows_no_recurrent_part():
    layer = nn.GRU(FEATURES, HIDDEN)
    before = layer.weight_hh_l0.clone()
    with pytest.warns(UserWarning, match=r"'weight_hh_l0' \(zero states\)$"):
        minibatch_init_(layer, BATCH[:1])
    assert largest_miss(gates_of(layer, [sequence[:1] for sequence in SEQUENCES])) < 1e-3
    assert torch.equal(layer.weight_hh_l0, before)


def test_states_that_a_dead_relu_leaves_zero_show_no_recurrent_part():
    layer = nn.RNN(FEATURES, HIDDEN, nonlinearity="relu")
    with torch.no_grad():
        layer.weight_ih_l0.abs_()
    before = layer.weight_hh_l0.clone()
    with pytest.warns(UserWarning, match=r"'weight_hh_l0' \(zero states\)$"):
        minibatch_init_(layer, -BATCH.abs())
    assert largest_miss(gates_of(layer, [-sequence.abs() for sequence in SEQUENCES])) < 1e-3
    assert torch.equal(layer.weight_hh_l0, before)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [({"exclude": ["*hh*"]}, "weight_ih_l0"), ({"include": ["*hh*"]}, "weight_hh_l0")],
    ids=["input", "recurrent"],
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_where_one_matrix_alone_is_rescaled_it_gives_the_gates_their_std(kind, settings, changed):
    layer = kind(FEATURES, HIDDEN)
    with torch.no_grad():
        layer.weight_ih_l0.mul_(0.5)
    before = {name: ref.value.clone() for name, ref in named_weights(layer).items()}
    minibatch_init_(layer, BATCH, **settings)
    assert largest_miss(gates_of(layer, SEQUENCES)) < 1e-3
    assert [name for name, value in before.items() if not torch.equal(getattr(layer, name), value)] == [changed]


def test_spectral_normalization_of_recurrent_weights_leaves_the_std_to_the_input_weights():
    layer = nn.LSTM(FEATURES, HIDDEN)
    constrain(layer, "sn", include=["*hh*"])
    before = copy.deepcopy(layer.state_dict())
    with pytest.warns(UserWarning, match=r"'weight_hh_l0' \(under sn its norm is always 1\)$"):
        minibatch_init_(layer, BATCH)
    assert largest_miss(gates_of(layer, SEQUENCES)) < 1e-3
    assert all(
        torch.equal(value, before[key])
        for key, value in layer.state_dict().items()
        if "hh" in key and "bias" not in key
    )


def test_a_frozen_bias_stays_and_counts_in_the_states():
    layer = nn.LSTM(FEATURES, HIDDEN)
    with torch.no_grad():
        layer.bias_hh_l0.zero_()[HIDDEN : 2 * HIDDEN] = 1.0  # of the forget gate
    layer.bias_hh_l0.requires_grad_(False)
    minibatch_init_(layer, BATCH)
    found = gates_of(layer, SEQUENCES)
    assert layer.bias_hh_l0.sum() == HIDDEN
    assert not layer.bias_ih_l0.any()
    assert largest_miss(found) < 1e-3
    with torch.no_grad():
        layer.bias_hh_l0.zero_()
    assert largest_miss(gates_of(layer, SEQUENCES)) > 1e-2  # control


def unchanged(layer, before):
    return all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_what_cannot_settle_is_an_error_that_names_layer_and_gate_and_changes_nothing():
    network = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.LSTM(FEATURES, HIDDEN))
    with torch.no_grad():
        network[1].weight_ih_l0[2 * HIDDEN : 3 * HIDDEN].mul_(20)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"none for the cell gate of '1\.weight_hh_l0'; take a larger batch, a"):
        minibatch_init_(network, BATCH, exclude=["*ih*"])
    assert unchanged(network, before)


@pytest.mark.parametrize("spoiled", ["inputs", "weights"])
def test_zeros_are_an_error_that_changes_nothing(spoiled):
    layer = nn.GRU(FEATURES, HIDDEN)
    if spoiled == "weights":
        nn.init.zeros_(layer.weight_ih_l0)
        nn.init.zeros_(layer.weight_hh_l0)
    else:
        nn.init.zeros_(layer.bias_ih_l0)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(
        ValueError, match=re.escape(f"'weight_ih_l0' (zero {spoiled})") if spoiled == "inputs" else "zero"
    ):
        minibatch_init_(layer, BATCH * (spoiled == "weights"))
    assert unchanged(layer, before)


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_numbers_that_are_not_finite_are_an_error_that_changes_nothing(number):
    layer, batch = nn.LSTM(FEATURES, HIDDEN), BATCH.clone()
    before = copy.deepcopy(layer.state_dict())
    batch[3, 2, 1] = number
    with pytest.raises(ValueError, match=r"those of 'weight_ih_l0' are NaN or infinite"):
        minibatch_init_(layer, batch)
    assert unchanged(layer, before)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match=rf"needs 0 < recurrent_share < 1, got {share}"):
        minibatch_init_(nn.GRU(FEATURES, HIDDEN), BATCH, recurrent_share=share)


class Own(nn.GRU):
    """Has a forward of its own."""

    def forward(self, steps):
        return super().forward(steps.cos())


def test_a_class_with_its_own_forward_is_left():
    network, outcome = nn.Sequential(nn.Linear(FEATURES, FEATURES), Own(FEATURES, HIDDEN)), new_outcome()
    before = copy.deepcopy(network[1].state_dict())
    with rescale_on_first_forward(network, outcome=outcome):
        network(BATCH)
    assert outcome.left == dict.fromkeys(["1.weight_ih_l0", "1.weight_hh_l0"], "hooks do not see its preactivations")
    assert unchanged(network[1], before)


def test_a_layer_that_shares_all_its_weights_is_rescaled_with_the_first():
    first, second = nn.LSTM(FEATURES, FEATURES), nn.LSTM(FEATURES, FEATURES)
    second.weight_ih_l0, second.weight_hh_l0 = first.weight_ih_l0, first.weight_hh_l0
    network = nn.ModuleList([first, second])
    network.forward = lambda x: second(first(x)[0])
    minibatch_init_(network, BATCH)
    assert largest_miss(gates_of(first, SEQUENCES)) < 1e-3
    assert not second.bias_ih_l0.any()


def test_a_stack_that_uses_one_matrix_twice_rescales_it_once():
    layer = nn.GRU(HIDDEN, HIDDEN, num_layers=2)
    layer.weight_hh_l1 = layer.weight_hh_l0
    minibatch_init_(layer, BATCH[..., :HIDDEN])
    found = gates_of(layer, [sequence[:, :HIDDEN] for sequence in SEQUENCES])
    assert largest_miss(found) < 1e-3
    assert (shares(found)[:3] - 0.5).abs().max() < 1e-2


def test_under_spectral_normalization_all_weights_and_biases_stay():
    layer = nn.LSTM(FEATURES, HIDDEN)
    constrain(layer, "sn")
    before = copy.deepcopy(layer.state_dict())
    with pytest.warns(UserWarning, match=r"0 of 2 layers rescaled; left as they are: .*under sn its norm is always 1"):
        minibatch_init_(layer, BATCH)
    assert unchanged(layer, before)


@pytest.mark.parametrize("first", ["student", "teacher"])
def test_a_momentum_teacher_stays_a_copy_whichever_is_called_first(first):
    network = nn.ModuleDict({"student": nn.Module()})
    network.student.gru, network.student.attention = nn.GRU(FEATURES, 4), nn.MultiheadAttention(4, 2)
    network["teacher"] = copy.deepcopy(network.student).requires_grad_(False)
    nn.init.ones_(network.student.gru.bias_hh_l0)
    nn.init.ones_(network.teacher.gru.bias_hh_l0)
    names = [first, *({"student", "teacher"} - {first})]

    def forward(x):
        for name in names:
            states, _ = network[name].gru(x)
            network[name].attention(states, states, states)

    network.forward = forward
    with pytest.warns(UserWarning, match="frozen, but changed as copies of trained ones"):
        minibatch_init_(network, BATCH)
    assert largest_miss(gates_of(network.student.gru, SEQUENCES)) < 1e-3
    assert not network.student.gru.bias_hh_l0.any()
    for key, value in network.student.state_dict().items():
        assert torch.equal(value, network.teacher.state_dict()[key]), key


@kinds
def test_constrained_weights_stay_constrained(kind):
    layer = nn.LSTM(FEATURES, HIDDEN, proj_size=3)
    KINDS[kind](layer)
    held = {name: kind_of(ref) for name, ref in named_weights(layer).items()}
    minibatch_init_(layer, BATCH)
    assert {name: kind_of(ref) for name, ref in named_weights(layer).items()} == held
    if kind in ("lcw", "project", "cwn"):
        for ref in named_weights(layer).values():
            assert ref.value.sum(1).abs().max() < 1e-5 * ref.value.norm(dim=1).max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions_have_the_std_up_to_their_rounding(dtype):
    layer = nn.GRU(FEATURES, HIDDEN).to(dtype)
    minibatch_init_(layer, BATCH.to(dtype))
    rounded = [sequence.to(dtype) for sequence in SEQUENCES]
    assert largest_miss(gates_of(layer, rounded)) < (1e-3 if dtype == torch.float64 else 2e-2)
