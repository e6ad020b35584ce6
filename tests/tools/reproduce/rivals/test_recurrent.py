"""tools.reproduce recurrent: its networks, its table, and the stored runs."""

import json
import math

import pytest
import torch
from torch import nn

from lcw_lightning.constraints.constrain import constrained_weights
from tools import readme
from tools.records import ROOT
from tools.reproduce import __main__ as reproduce
from tools.reproduce.rivals import choosing, recurrent, training
from tools.reproduce.rivals.recurrent import AXES, METHODS, WIDTH, LayerNormRNN

STORED = recurrent.load(ROOT / "results" / "recurrent")


@pytest.fixture(scope="module")
def sequences():
    return training.digits("pixels").train.images[:32]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.minibatch])
def test_the_gain_means_the_same_however_weights_are_drawn(name, sequences):
    torch.manual_seed(0)
    layer = METHODS[name].build({"gain": 2.0}, sequences).recurrent
    for gate in layer.weight_hh_l0.split(WIDTH):
        assert gate.square().mean().mul(WIDTH).sqrt().item() == pytest.approx(2.0, rel=0.03)
    assert layer.weight_ih_l0.std().item() == pytest.approx(recurrent.INPUT_STD, rel=0.2)


@pytest.mark.parametrize("gain", [0.5, 1.0])
def test_minibatch_initialization_gives_preactivations_the_gain(gain, sequences):
    torch.manual_seed(0)
    network = METHODS["sigmoid, LCW + init"].build({"gain": gain}, sequences)
    states, _ = network.recurrent(sequences)
    assert torch.logit(states).std().item() == pytest.approx(gain, rel=0.1)
    assert network(sequences).std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_lcw_is_on_the_recurrent_weight_and_the_output(name, sequences):
    network = METHODS[name].build({"gain": 1.0}, sequences)
    lcw = ["output.weight", "recurrent.weight_hh_l0"] if METHODS[name].lcw else []
    assert sorted(constrained_weights(network)) == lcw
    assert network(sequences).shape == (32, 10)


def test_identity_and_orthogonal_initialization_are_what_they_say():
    identity, orthogonal = torch.empty(8, 8), torch.empty(8, 8)
    recurrent.identity_(identity, 2.0)
    recurrent.orthogonal_(orthogonal, 2.0)
    assert torch.equal(identity, 2 * torch.eye(8))
    torch.testing.assert_close(orthogonal @ orthogonal.T, 4 * torch.eye(8))


def test_the_forget_gate_of_lstm_is_open(sequences):
    bias = METHODS["LSTM, plain"].build({"gain": 1.0}, sequences).recurrent.bias_ih_l0
    assert [gate.unique().item() for gate in bias.split(WIDTH)] == [0, 1, 0, 0]


def test_the_preactivations_of_the_normalized_cell_are_layernorms():
    torch.manual_seed(0)
    layer, inputs = LayerNormRNN(3, 8), torch.randn(2, 4, 3)
    nn.init.normal_(layer.norm.weight)
    nn.init.normal_(layer.norm.bias)
    states, last = layer(inputs)
    state = torch.zeros(2, 8)
    for step in range(4):
        z = inputs[:, step] @ layer.weight_ih_l0.T + layer.bias_ih_l0 + state @ layer.weight_hh_l0.T + layer.bias_hh_l0
        z = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True) * layer.norm.weight + layer.norm.bias
        state = torch.sigmoid(z)
        torch.testing.assert_close(states[:, step], state, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(last[0], states[:, -1])


def test_the_grid_runs_once_and_is_reported_from_its_jsons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recurrent, "WIDTH", 4)
    monkeypatch.setattr(recurrent, "RECIPE", recurrent.RECIPE._replace(images=128, choosing_images=64, looks=2))
    monkeypatch.setattr(recurrent, "METHODS", {name: METHODS[name] for name in ("sigmoid, LCW", "GRU, plain")})
    monkeypatch.setattr(recurrent, "AXES", tuple(axis._replace(number=2) for axis in AXES))
    monkeypatch.setattr(choosing, "BEYOND", 0)
    monkeypatch.setattr(training, "SEEDS", range(2))
    readme.README.touch()
    for share in ("1/2", "2/2"):
        reproduce.main(["recurrent", f"--output={tmp_path}", f"--shard={share}"])
    record = json.loads((tmp_path / "gru_plain.json").read_text())
    assert {"method", "device", "git", "versions", "hardware", "recipe", "tried", "chosen", "runs"} <= set(record)
    assert [len(run["held_out_accuracy"]) for run in record["runs"]] == [2, 2]
    said = capsys.readouterr().out
    chosen = record["chosen"]
    assert f"| GRU, plain | {len(record['tried'])} | {chosen['rate']:g} | {chosen['gain']:g} |" in said

    reproduce.main(["recurrent", f"--output={tmp_path}"])
    assert capsys.readouterr().out.count("there already") == 2
    reproduce.main(["recurrent", f"--output={tmp_path}", "--report"])
    assert (tmp_path / "recurrent.png").stat().st_size > 10_000


def test_without_runs_there_is_no_report(tmp_path):
    with pytest.raises(SystemExit, match="holds none of these runs"):
        reproduce.main(["recurrent", f"--output={tmp_path}", "--report"])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_was_tried_on_the_whole_grid_and_trained_with_five_seeds(name):
    record = STORED[name]
    settings = {(run["rate"], run["gain"]) for run in record["tried"]}
    assert {(rate, gain) for rate in AXES[0].values() for gain in AXES[1].values()} <= settings
    assert [run["seed"] for run in record["runs"]] == [0, 1, 2, 3, 4]
    assert not record["git"].endswith("dirty")
    assert all(math.isfinite(run["test_accuracy"]) for run in record["runs"])
