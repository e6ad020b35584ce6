"""The runs of tools.reproduce rnn, and its table."""

import json

import pytest

from tools.records import ROOT
from tools.reproduce import __main__ as reproduce
from tools.reproduce import digits, rnn

PLACE = "<!-- rnn: made by python -m tools.reproduce -->"


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
