"""tools.reproduce tiny_batches: its networks, its tables, and the stored runs."""

import json

import pytest
import torch
from torch import nn

from lcw_lightning.constraints.constrain import constrained_weights
from tools import readme
from tools.records import ROOT
from tools.reproduce import __main__ as reproduce
from tools.reproduce.rivals import choosing, tiny_batches, training
from tools.reproduce.rivals.tiny_batches import CASES, METHODS, NETWORKS, build

STORED = tiny_batches.load(ROOT / "results" / "tiny_batches")
IMAGES = {"mlp": (128, 1, 8, 8), "convnet": (128, 3, 32, 32)}


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return {network: torch.randn(shape, generator=generator) for network, shape in IMAGES.items()}


def layers(network):
    return [module for module in network if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_its_constraint_its_norms_and_its_initialization(name, method, images):
    torch.manual_seed(0)
    network, how = build(name, method, {}, images[name]), METHODS[method]
    assert set(constrained_weights(network).values()) == ({how.kind} if how.kind != "none" else set())
    kinds = [
        type(module).__name__ for module in network if type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d"))
    ]
    norms = {"BN": "BatchNorm1d" if name == "mlp" else "BatchNorm2d", "LN": "GroupNorm", "GN": "GroupNorm"}
    expected = norms.get(method.partition(" ")[0])
    assert kinds == ([expected] * (len(layers(network)) - 1) if expected else [])
    stds = []
    for layer in layers(network):
        layer.register_forward_hook(lambda _, __, output: stds.append(output.std().item()))
    network(images[name])
    assert (stds == pytest.approx([1] * len(stds), rel=0.1)) == how.minibatch


@pytest.mark.parametrize(("method", "groups"), [("LN", 1), ("GN", 8)])
def test_layer_norm_has_one_group_and_group_norm_eight(method, groups):
    assert METHODS[method].norm(16, True).num_groups == groups


@pytest.mark.parametrize(("batch", "able"), [(1, False), (2, True)])
def test_only_one_image_is_too_few_for_batch_norm(batch, able, images):
    network = build("mlp", "BN", {}, images["mlp"])
    if able:
        network(images["mlp"][:batch])
    else:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network(images["mlp"][:batch])


def test_rates_are_proportional_to_the_batch():
    values = {batch: NETWORKS["mlp"].axis(batch).values() for batch in (1, 32)}
    assert values[32] == pytest.approx([0.0125, 0.05, 0.2])
    assert [32 * rate for rate in values[1]] == pytest.approx(values[32])


def test_the_grid_runs_once_and_is_reported_from_its_jsons(tmp_path, monkeypatch, capsys):
    small = NETWORKS["mlp"]._replace(images=32, choosing_images=8, batches=(1, 8))
    monkeypatch.setitem(NETWORKS, "mlp", small)
    cases = [("mlp", batch, method) for batch in (1, 8) for method in ("LCW", "BN")]
    monkeypatch.setattr(tiny_batches, "CASES", cases)
    monkeypatch.setattr(choosing, "BEYOND", 0)
    monkeypatch.setattr(training, "SEEDS", range(1))
    readme.README.touch()
    reproduce.main(["tiny_batches", f"--output={tmp_path}"])
    record = json.loads((tmp_path / "mlp_batch8_lcw.json").read_text())
    assert {"network", "batch", "method", "git", "versions", "recipe", "tried", "chosen", "runs"} <= set(record)
    accuracy = f"{record['runs'][0]['test_accuracy']:.3f}"
    said = capsys.readouterr().out
    assert f" | {accuracy} ({accuracy} to {accuracy}) |\n| BN | cannot | " in said
    assert "Cannot: Expected more than 1 value per channel when training, got input size torch.Size([1, 64])." in said

    reproduce.main(["tiny_batches", f"--output={tmp_path}", "--report"])
    assert (tmp_path / "tiny_batches.png").stat().st_size > 10_000
    reproduce.main(["tiny_batches", f"--output={tmp_path}"])
    assert capsys.readouterr().out.count("there already") == 4


def test_every_stored_case_was_tried_on_the_whole_grid_and_trained_with_five_seeds_unless_it_cannot():
    records = {(network, *case): found for network, mine in STORED.items() for case, found in mine.items()}
    assert [case for case in CASES if case[0] == "mlp"] == [case for case in records if case[0] == "mlp"]
    for (network, batch, method), record in records.items():
        assert {run["rate"] for run in record["tried"]} >= set(NETWORKS[network].axis(batch).values())
        able = not (method.startswith("BN") and batch == 1)
        assert [run["seed"] for run in record["runs"]] == ([0, 1, 2, 3, 4] if able else [])
        assert not record["git"].endswith("dirty")
