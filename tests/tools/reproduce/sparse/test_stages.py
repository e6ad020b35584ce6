"""tools.reproduce sparse: how it chooses learning rates, its table, and a run of it all."""

import json
import math
import re

import pytest
import torch
import yaml

from tools import readme
from tools.records import ROOT, write_json
from tools.reproduce import __main__ as reproduce
from tools.reproduce import runs
from tools.reproduce.sparse import stages
from tools.reproduce.sparse.grid import NETWORKS


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Let the grid have one small network, ``mlp``, on the digits; return the command, whose results go to ``out``."""
    config = yaml.safe_load((ROOT / "configs" / "sparse_mlp30_digits.yaml").read_text())
    config["model"]["init_args"]["network"]["init_args"] |= {"depth": 3, "width": 64}
    (tmp_path / "mlp_digits.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(runs, "CONFIGS", tmp_path)
    monkeypatch.setitem(NETWORKS, "mlp", "digits")
    return ["sparse", "--networks=mlp", f"--output={tmp_path / 'out'}"]


def finished(accuracy=0.9, loss=0.3, sparsity=0.7, diverged=False, epochs=2):
    """What a run's JSON holds, as far as reports read it."""
    last = {"train/loss": None if diverged else loss, "test/accuracy": accuracy, "test/sparsity": sparsity}
    last["train/accuracy"] = accuracy
    first = {"train/loss": 2.0, "train/accuracy": 0.5, "test/accuracy": 0.5, "test/sparsity": 0.5}
    return {
        "config": "configs/mlp_digits.yaml",
        "diverged": diverged,
        "epochs": {name: [first[name]] * (epochs - 1) + [value] for name, value in last.items()},
        "seconds": [1.0] * epochs,
        "device": "cpu",
        "hardware": {"machine": "x86_64", "cores": 2, "gpu": None},
        "versions": {"python": "3.11"},
    }


def write(tmp_path, run, record):
    write_json(tmp_path / "out" / f"{run.name}.json", record)


@pytest.mark.parametrize(
    ("ends", "best"),
    [
        ((0.5, 0.6, 0.4), 0.01),
        ((0.6, 0.6, 0.4), 0.001),
        ((0.5, 0.6, None), 0.01),
        ((None, None, 0.3), 0.1),
        ((None, None, None), 0.001),
    ],
    ids=["highest accuracy", "a tie", "one diverged", "two diverged", "all diverged"],
)
def test_the_rate_is_that_of_the_highest_training_accuracy_whatever_the_loss(tmp_path, ends, best):
    rates = [0.001, 0.01, 0.1]
    runs = [stages.at(("sparse_mlp100", "ST_0.5"), rate, 2, 0) for rate in rates]
    for run, accuracy, loss in zip(runs, ends, (0.3, 4e5, 0.2), strict=True):
        assert stages.best_rate(rates, runs, tmp_path / "out") is None  # until all runs are there
        write(tmp_path, run, finished(accuracy or 0.9, loss, diverged=accuracy is None))
    assert stages.best_rate(rates, runs, tmp_path / "out") == best


def test_the_report_says_what_the_jsons_say(digits, tmp_path, capsys):
    def store(method, accuracies, finals):
        rates = (0.001, 0.01, 0.1)
        for rate, accuracy in zip(rates, accuracies, strict=True):
            run = stages.at(("mlp", method), rate, 1, 0)
            write(tmp_path, run, finished(accuracy or 0.9, diverged=accuracy is None, epochs=1))
        for rate, seed, record in finals:
            write(tmp_path, stages.at(("mlp", method), rate, 2, seed), record)

    good = [(0.01, seed, finished(0.9 + seed / 50, 0.2 + seed / 10, 0.6 + seed / 20)) for seed in (0, 1, 2)]
    store("ReLU_tau_0.6+LCW", (0.5, 0.6, None), good)
    other_rate = (0.1, 0, finished(accuracy=0.123))
    nan, chance = finished(accuracy=0.098, diverged=True, sparsity=0.0, epochs=1), finished(accuracy=0.199, loss=4e5)
    store("ReLU_tau_0.6", (0.5, None, None), [(0.001, 0, nan), (0.001, 1, chance), other_rate])
    store("ReLU_tau_0.7", (None, None, None), [(0.001, 0, nan)])
    store("ReLU_tau_0.8", (0.5, 0.6, 0.7), [])  # chosen, but not trained yet
    marker = "<!-- sparse_2epochs: made by python -m tools.reproduce -->\n"
    readme.README.write_text(f"{marker}<!-- /sparse_2epochs -->\n")
    flags = ["--rates", "0.1", "0.001", "0.01", "--epochs=2"]

    reproduce.main([*digits, *flags, "--report"])
    said = capsys.readouterr().out
    starts = ("| ReLU_tau", "| mlp | ReLU_tau")
    lines, rates = ([line for line in said.splitlines() if line.startswith(start)] for start in starts)
    assert rates == [
        "| mlp | ReLU_tau | 0.6 | 1.00 | plain | 0.500 | 0.900* | 0.900* |",
        "| mlp | ReLU_tau | 0.6 | 0.72 | LCW | 0.500 | 0.600 | 0.900* |",
        "| mlp | ReLU_tau | 0.7 | 1.00 | plain | 0.900* | 0.900* | 0.900* |",
    ]
    assert [line.removeprefix("| ReLU_tau | ") for line in lines] == [
        "0.6 | 1.00 | plain | 0.001 | 2 | 1, 2 | 4e5 | 0.149 (0.098 to 0.199) | 0.350 | 1 of 2 | 1 of 2 | - | - |",
        "0.6 | 0.72 | LCW | 0.01 | 3 | 2 | 0.300 | 0.920 (0.900 to 0.940) | 0.650 | 0 of 3 | 0 of 3 | - | - |",
        "0.7 | 1.00 | plain | 0.001 | 1 | 1 | diverged | 0.098 (0.098 to 0.098) | 0.000 | 1 of 1 | 0 of 1 | - | - |",
    ]
    assert "Learning rates: of 0.001, 0.01, 0.1" in said
    assert "chosen in 1 epoch of seed 0" in said
    assert "For 2 of 3 methods it is the lowest or the highest of the grid." in said
    assert lines[1] in readme.README.read_text()

    with pytest.raises(SystemExit, match="holds none of these runs; run the grid first"):
        reproduce.main([*digits, *flags, "--report", "--epochs=3"])


def test_methods_are_chosen_by_globs_and_shares_are_whole_methods(tmp_path, capsys):
    chosen = stages.methods(["ReLU_tau_0.[67]*", "CST_0.8_0.7"])
    names = ["ReLU_tau_0.6", "ReLU_tau_0.6+LCW", "ReLU_tau_0.7", "ReLU_tau_0.7+LCW", "CST_0.8_0.7"]
    assert chosen == names
    with pytest.raises(SystemExit, match=r"--methods: ReLU_0.6 matches no method; there are ReLU_tau_0.5, "):
        stages.methods(["*+LCW", "ReLU_0.6"])

    for name in names:
        for epochs in (1, None):
            for seed in (0, 1, 2):
                run = stages.at(("sparse_mlp100", name), 0.1, epochs, seed)
                write(tmp_path, run, finished())
    shown = []
    for share in ("1/2", "2/2"):
        flags = ["--networks=sparse_mlp100", "--rates=0.1", f"--shard={share}", f"--output={tmp_path / 'out'}"]
        reproduce.main(["sparse", *flags, "--methods", *names])
        out = capsys.readouterr().out
        assert out.count("there already") == 4 * len(re.findall("^. ReLU|^. CST", out, re.MULTILINE))
        shown += re.findall(r"\] sparse_mlp100_mnist_(\S*)_lr0.1_1epochs_seed0", out)
    assert sorted(shown) == sorted(name.lower() for name in names)


def test_both_stages_run_once_and_a_run_that_diverges_ends(digits, tmp_path, capfd):
    flags = ["--methods=ReLU_tau_0.6+LCW", "--rates", "1e30", "0.03", "--epochs=2", "--seeds=0"]
    reproduce.main([*digits, *flags, "--device", "cpu", "cpu"])
    said = capfd.readouterr().out
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    name = "mlp_digits_relu_tau_0.6+lcw"
    good, bad = records[f"{name}_lr0.03_2epochs_seed0"], records[f"{name}_lr1e+30_1epochs_seed0"]
    assert len(records) == 3
    assert (good["diverged"], len(good["seconds"])) == (False, 2)
    assert (bad["diverged"], len(bad["seconds"])) == (True, 1)
    assert good["epochs"]["test/accuracy"][-1] > 0.5
    assert all(0.5 < fraction < 0.7 for fraction in good["epochs"]["test/sparsity"])
    assert "| ReLU_tau | 0.6 | 0.72 | LCW | 0.03 | 1 | 2 |" in said
    assert not any((tmp_path / "out" / "unfinished").iterdir())

    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}
    reproduce.main([*digits, *flags])
    assert capfd.readouterr().out.count("there already") == 3
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json")} == before


def test_a_diverged_run_is_recorded_but_not_trained_on(tmp_path):
    run = stages.at(("sparse_mlp100", "ST_0.5"), 0.1, 5, 0)
    last = {"train/loss": math.nan, "train/accuracy": 0.1, "val/loss": math.nan, "val/accuracy": 0.1, "seconds": 1.0}
    checkpoint = tmp_path / "last.ckpt"
    torch.save({"callbacks": {"EpochRecorder": {"epochs": [last | {"val/sparsity": 0.0}]}}}, checkpoint)
    before = checkpoint.read_bytes()
    # Training would fail: this is no whole checkpoint.
    record = runs.train(run, tmp_path, "cpu", None)
    assert record["diverged"]
    assert record["epochs"]["train/loss"] == [None]
    assert record["epochs"]["test/sparsity"] == [0.0]
    assert checkpoint.read_bytes() == before
