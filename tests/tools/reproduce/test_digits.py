"""The runs of tools.reproduce digits, and its table."""

import json

import pytest

from tools import readme
from tools.records import ROOT
from tools.reproduce import __main__ as reproduce
from tools.reproduce import digits


@pytest.mark.slow
def test_the_digits_run_once_and_report_from_their_jsons(tmp_path, monkeypatch, capsys):
    small = ["--model.network.depth=2", "--model.network.width=8", "--trainer.max_epochs=2"]
    methods = {method: flags + small for method, flags in digits.METHODS.items()}
    monkeypatch.setattr(digits, "METHODS", methods)
    monkeypatch.setattr(digits, "SEEDS", range(1))
    readme.README.write_text(
        "above\n<!-- digits: made by python -m tools.reproduce -->\nold\n<!-- /digits -->\nbelow\n"
    )
    command = ["digits", f"--output={tmp_path}"]

    reproduce.main(command)
    lcw = json.loads((tmp_path / "lcw_seed0.json").read_text())
    assert len(lcw["epochs"]["val/accuracy"]) == 2
    assert [len(layers) for layers in lcw["at_start"].values()] == [3, 3]
    assert 0 < lcw["train_seconds"] < 30

    capsys.readouterr()
    reproduce.main(command)
    assert capsys.readouterr().out.count("there already") == 2

    reproduce.main([*command, "--report"])
    text = readme.README.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert f"| LCW | 1 | {lcw['test_accuracy']:.3f}" in text
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_the_readmes_table_is_what_the_stored_jsons_say():
    table = digits.table(digits.load(ROOT / "results" / "digits"))
    begin, end = "<!-- digits: made by python -m tools.reproduce -->", "<!-- /digits -->"
    assert f"{begin}\n{table}\n{end}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/digits/*.json")), ids=lambda path: path.stem)
def test_every_stored_run_says_what_made_it(path):
    run = json.loads(path.read_text())
    assert {"config", "method", "flags", "seed", "git", "versions", "hardware", "train_seconds"} <= set(run)
    assert len(run["epochs"]["val/accuracy"]) == 20
    assert run["test_accuracy"] >= 0.96 if run["method"] == "LCW" else run["test_accuracy"] <= 0.20
    assert run["train_seconds"] <= 30
