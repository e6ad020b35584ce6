import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lcw_lightning import RecurrentClassifier, analyze, constrain, convert_, fold, minibatch_init_
from lcw_lightning.constraints.kinds import kind_of
from lcw_lightning.models.recurrent import SigmoidRNN
from lcw_lightning.theory.variance_maps import phi_bw, phi_fw
from lcw_lightning.weights.weight_ref import named_weights

CELLS = ("sigmoid", "tanh", "relu", "lstm", "gru")
each_cell = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture
def sequences():
    return torch.randn(16, 7, 3, generator=torch.Generator().manual_seed(0)) + 0.5


def by_hand(layer, sequence):
    """All states of the top layer for one sequence, unit by unit, and the last ones of all layers."""
    last = []
    for number in range(layer.num_layers):
        w, u, b, c = (
            getattr(layer, f"{name}_l{number}").detach().double()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        state, states = torch.zeros(len(w)).double(), []
        for x in sequence.double():
            state = 1 / (1 + torch.exp(-(w @ x + u @ state + b + c)))
            states.append(state)
        sequence = torch.stack(states)
        last.append(state)
    return sequence, torch.stack(last)


def test_a_sigmoid_rnn_computes_elmans_network(sequences):
    layer = SigmoidRNN(3, 5, num_layers=2)
    outputs, last = layer(sequences)
    for number, sequence in enumerate(sequences):
        states, ends = by_hand(layer, sequence)
        torch.testing.assert_close(outputs[number].double(), states, atol=1e-6, rtol=0)
        torch.testing.assert_close(last[:, number].double(), ends, atol=1e-6, rtol=0)


def test_a_sigmoid_rnn_goes_on_from_given_states(sequences):
    layer = SigmoidRNN(3, 5, num_layers=2)
    whole, end = layer(sequences)
    _, middle = layer(sequences[:, :4])
    rest, rest_end = layer(sequences[:, 4:], middle)
    torch.testing.assert_close(rest, whole[:, 4:])
    torch.testing.assert_close(rest_end, end)


def test_a_sigmoid_rnn_has_torchs_parameters():
    own, torchs = (dict(kind(3, 5, num_layers=2).named_parameters()) for kind in (SigmoidRNN, nn.RNN))
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in torchs.items()}


@each_cell
def test_the_last_state_of_the_top_layer_gives_the_logits(cell, sequences):
    network = RecurrentClassifier(3, 10, cell=cell, layers=2, width=8)
    logits = network(sequences)
    assert logits.shape == (16, 10)
    last = network.recurrent(sequences)[1]
    torch.testing.assert_close(logits, network.output((last[0] if cell == "lstm" else last)[-1]))


@each_cell
def test_the_cell_is_the_one_asked_for(cell):
    layer = RecurrentClassifier(3, 10, cell=cell, layers=2, width=8).recurrent
    kind = {"sigmoid": SigmoidRNN, "lstm": nn.LSTM, "gru": nn.GRU}.get(cell, nn.RNN)
    assert type(layer) is kind
    assert getattr(layer, "nonlinearity", cell) == cell
    assert (layer.input_size, layer.hidden_size, layer.num_layers) == (3, 8, 2)


@each_cell
def test_recurrent_and_input_weights_are_constrained_train_and_fold(cell, sequences, residual):
    network = RecurrentClassifier(3, 10, cell=cell, layers=2, width=8)
    names = constrain(network)
    assert names == [f"recurrent.weight_{part}_l{number}" for number in (0, 1) for part in ("ih", "hh")] + [
        "output.weight"
    ]
    before = {name: ref.value.detach().clone() for name, ref in named_weights(network).items()}
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    functional.cross_entropy(network(sequences), torch.arange(16) % 10).backward()
    sgd.step()
    assert residual(network) < 1e-5
    assert not any(torch.equal(ref.value, before[name]) for name, ref in named_weights(network).items())
    torch.testing.assert_close(fold(network)(sequences), network(sequences))


def test_pixels_leave_the_input_weight_plain():
    with pytest.warns(UserWarning, match="fan_in 1"):
        names = constrain(RecurrentClassifier(1, 10, width=8))
    assert names == ["recurrent.weight_hh_l0", "output.weight"]


def parts_of(layer, sequences):
    """What the units get from the inputs and from the states, at all steps."""
    states = layer(sequences)[0].detach()
    before = torch.cat((torch.zeros_like(states[:, :1]), states[:, :-1]), dim=1)
    return sequences @ layer.weight_ih_l0.detach().T, before @ layer.weight_hh_l0.detach().T


@pytest.mark.parametrize("kind", ["none", "lcw", "cwn"])
def test_minibatch_initialization_gives_sigmoids_their_std_and_their_share(kind, sequences):
    network = RecurrentClassifier(3, 10, width=8)
    constrain(network, kind)
    parts = parts_of(network.recurrent, sequences)
    assert sum(parts).std(correction=0).item() != pytest.approx(1.5, rel=0.1)
    minibatch_init_(network, sequences, target_std=1.5, recurrent_share=0.8)
    assert not network.recurrent.bias_hh_l0.any()
    fed, fed_back = parts_of(network.recurrent, sequences)
    total = fed + fed_back + network.recurrent.bias_ih_l0.detach()
    axes = (0, 1) if kind == "cwn" else (0, 1, 2)
    assert total.std(axes, correction=0).flatten().tolist() == pytest.approx(
        8 * [1.5] if kind == "cwn" else [1.5], 2e-3
    )
    if kind != "cwn":
        shares = fed_back.var(correction=0) / (fed_back.var(correction=0) + fed.var(correction=0))
        assert shares.item() == pytest.approx(0.8, abs=0.02)


def test_a_trained_network_of_sigmoids_is_converted_and_keeps_its_mean_preactivations(sequences):
    network = RecurrentClassifier(3, 10, width=8)
    with torch.no_grad():
        network.recurrent.weight_hh_l0.add_(0.3)  # a row mean, which projection takes
    trained = copy.deepcopy(network)
    convert_(network, sequences)
    assert kind_of(named_weights(network)["recurrent.weight_hh_l0"]) == "lcw"
    converted, original = (
        sum(parts_of(net.recurrent, sequences)).mean((0, 1)) + net.recurrent.bias_ih_l0 + net.recurrent.bias_hh_l0
        for net in (network, trained)
    )
    torch.testing.assert_close(converted, original, atol=0.02, rtol=0)


def test_analyze_sees_the_states(sequences):
    network = RecurrentClassifier(3, 10, width=8)
    report = analyze(network, (sequences, torch.arange(16) % 10), loss=functional.cross_entropy)
    assert list(report.statistics) == ["recurrent", "output"]
    assert report.statistics["recurrent"]["constraint_residual"] > 0.01


@pytest.mark.parametrize("setting", [{"cell": "elman"}, {"width": 0}, {"layers": 1.5}], ids=str)
def test_settings_that_make_no_network_are_refused(setting):
    with pytest.raises(ValueError, match=r"RecurrentClassifier (supports the cells|needs a)"):
        RecurrentClassifier(3, 10, **setting)


@pytest.mark.parametrize("kind", ["none", "lcw"])
def test_gradients_pass_a_step_as_the_theory_says(kind):
    """Of a sigmoid at q = 1, whose recurrent part has the share 0.9."""
    network = RecurrentClassifier(8, 10, width=400)
    constrain(network, kind)
    sequences = torch.randn(64, 20, 8)
    minibatch_init_(network, sequences, recurrent_share=0.9)
    layer, state, states = network.recurrent, torch.zeros(1, 64, 400), []
    for step in sequences.split(1, dim=1):
        state = layer(step, state)[1]
        state.retain_grad()
        states.append(state)
    functional.cross_entropy(network.output(state[0]), torch.arange(64) % 10).backward()
    one_step = (states[-9].grad.norm() / states[-1].grad.norm()).item() ** (2 / 8)
    amplified = phi_bw(torch.sigmoid, 1.0)
    recurrent_part = phi_fw(torch.sigmoid, 1.0) + (0.25 if kind == "none" else 0)  # mean square or variance, at q = 1
    assert one_step == pytest.approx(0.9 * amplified / recurrent_part, rel=0.1)
