"""The runs of tools.reproduce rnn and rnn_mnist, and their tables."""

import json

import pytest
import torch

from tools.records import ROOT
from tools.reproduce import __main__ as reproduce
from tools.reproduce import digits, rnn, rnn_mnist

PLACE = "<!-- rnn: made by python -m tools.reproduce -->"


@pytest.mark.slow
def test_a_recurrent_network_runs_and_is_reported_from_its_jsons(tmp_path, monkeypatch, capsys):
    small = ["--model.network.width=4", "--trainer.max_epochs=1"]
    for module in (digits, rnn):
        monkeypatch.setattr(module, "METHODS", {method: flags + small for method, flags in digits.METHODS.items()})
        monkeypatch.setattr(module, "SEEDS", range(1))
    reproduce.main(["rnn", f"--output={tmp_path}"])
    run = json.loads((tmp_path / "lcw_seed0.json").read_text())
    assert run["config"] == rnn.CONFIG
    assert f"| LCW | {run['test_accuracy']:.3f} |" in capsys.readouterr().out


def test_the_pages_table_is_what_the_stored_jsons_say():
    table = rnn.table(digits.load(ROOT / "results" / "rnn"))
    assert f"{PLACE}\n{table}\n<!-- /rnn -->" in (ROOT / "docs" / "recurrent.md").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/rnn/*.json")), ids=lambda path: path.stem)
def test_every_stored_run_does_what_the_config_promises(path):
    run = json.loads(path.read_text())
    assert {"config", "method", "flags", "seed", "git", "versions", "hardware", "train_seconds"} <= set(run)
    assert run["test_accuracy"] > 0.93 if run["method"] == "LCW" else run["test_accuracy"] < 0.8
    assert run["train_seconds"] <= 120


def write_idx(path, numbers):
    """Write numbers as the files of MNIST hold them."""
    sizes = b"".join(size.to_bytes(4, "big") for size in numbers.shape)
    path.write_bytes(bytes([0, 0, 8, numbers.dim()]) + sizes + bytes(numbers.flatten().tolist()))


@pytest.fixture
def mnist(tmp_path):
    """Return a folder with 130 images to train and 10 to test."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, number in (("train", 130), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", torch.randint(256, (number, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", torch.arange(number) % 10)
    return tmp_path / "data"


@pytest.mark.slow
def test_rows_and_pixels_of_mnist_run_and_are_reported_from_their_jsons(mnist, tmp_path, monkeypatch, capsys):
    small = ["--model.network.width=4", "--shift_monitor.every_n_steps=0", "--trainer.log_every_n_steps=1"]
    monkeypatch.setattr(digits, "METHODS", {method: flags + small for method, flags in digits.METHODS.items()})
    monkeypatch.setattr(
        rnn_mnist, "SEQUENCES", {key: read._replace(epochs=1) for key, read in rnn_mnist.SEQUENCES.items()}
    )
    reproduce.main(["rnn_mnist", f"--output={tmp_path / 'out'}", f"--data-dir={mnist}"])
    run = json.loads((tmp_path / "out" / "mnist_pixels_lcw_seed0.json").read_text())
    assert "--data.sequence=pixels" in run["flags"]
    assert str(mnist) not in json.dumps(run)
    out = capsys.readouterr().out
    for sequence, steps in (("rows", 28), ("pixels", 784)):
        paths = [tmp_path / "out" / f"mnist_{sequence}_{method}_seed0.json" for method in ("plain", "lcw")]
        plain, lcw = (f"{json.loads(path.read_text())['test_accuracy']:.3f}" for path in paths)
        assert f"| {sequence} | {steps} | 1 | {plain} | {lcw} |" in out
