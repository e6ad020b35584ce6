"""tools.reproduce sparse_digits: its networks, and its table of rates."""

import pytest
import torch

from lcw_lightning.constraints.constrain import constrained_weights
from tools.reproduce.rivals import sparse_digits
from tools.reproduce.rivals.choosing import Axis
from tools.reproduce.rivals.training import Recipe, digits

ENVIRONMENT = {"device": "cpu", "hardware": {"gpu": None, "cores": 2, "machine": "x86_64"}, "versions": {"torch": "2"}}


def at(rate, *accuracies, diverged=()):
    """What three seeds at a rate leave; held-out accuracies are 0.01 lower than those of the test."""
    runs = [
        {"test_accuracy": accuracy, "held_out_accuracy": [accuracy - 0.01], "diverged": number in diverged}
        for number, accuracy in enumerate(accuracies)
    ]
    return {"rate": rate, "runs": runs}


def test_the_table_shows_both_methods_at_every_rate_and_the_gain_at_the_best_ones():
    plain = [at(0.02, 0.96, 0.95, 0.94), at(0.01, 0.90, 0.90, 0.90), at(0.04, 0.9, 0.1, 0.5, diverged=[2])]
    lcw = [at(0.04, 0.98, 0.97, 0.99), at(0.02, 0.97, 0.97, 0.97)]
    records = {"plain": {"tried": plain, **ENVIRONMENT}, "LCW": {"tried": lcw, **ENVIRONMENT}}
    lines = sparse_digits.table(records).splitlines()
    assert lines[2] == "| 0.01 | 0.890 (0.890 to 0.890) | 0.900 (0.900 to 0.900) | - | - | - |"
    assert lines[3].endswith("| 0.950 (0.940 to 0.960) | 0.960 (0.960 to 0.960) | 0.970 (0.970 to 0.970) | +0.020 |")
    assert "| 0.500 (0.100 to 0.900; 1 not finite; 1 near chance) |" in lines[4]
    assert lines[6].startswith(
        "The best rates on held-out images are plain 0.02 and LCW 0.04; "
        "at these the test accuracy with LCW differs by +0.030."
    )


@pytest.mark.parametrize("name", ["plain", "LCW"])
def test_a_network_starts_with_the_sparsity_and_the_constraint_that_are_stated(name):
    torch.manual_seed(0)
    images = digits().train.images[:128]
    network = sparse_digits.build(name, {}, images)
    assert len(constrained_weights(network)) == (31 if name == "LCW" else 0)
    x = images.flatten(1)
    for layer in list(network.hidden)[:3]:
        x = layer(x)
        assert (x == 0).float().mean().item() == pytest.approx(0.7, abs=0.05)


def test_a_second_call_reads_the_rates_that_are_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(sparse_digits, "DEPTH", 2)
    monkeypatch.setattr(sparse_digits, "WIDTH", 16)
    monkeypatch.setattr(sparse_digits, "RATES", Axis("rate", 0.02, 2.0, number=1))
    monkeypatch.setattr(sparse_digits, "RECIPE", Recipe(64, images=640, choosing_images=0, clip=1.0))
    first = sparse_digits.run("LCW", tmp_path, "cpu")
    assert len(first["tried"]) >= 2
    assert all([run["seed"] for run in attempt["runs"]] == [0, 1, 2] for attempt in first["tried"])
    monkeypatch.setattr(sparse_digits, "train", None)
    assert sparse_digits.run("LCW", tmp_path, "cpu")["tried"] == first["tried"]
