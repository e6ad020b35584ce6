"""The runs of tools.reproduce convert, and its table."""

import json
import statistics

import pytest

from tools import readme
from tools.records import ROOT
from tools.reproduce import __main__ as reproduce
from tools.reproduce import convert

STORED = sorted(ROOT.glob("results/convert/*.json"))


def test_the_runs_are_made_once_and_report_from_their_jsons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convert, "SEEDS", range(1))
    readme.README.write_text("a\n<!-- convert: made by python -m tools.reproduce -->\nold\n<!-- /convert -->\nb\n")
    command = ["convert", "--networks", "mlp", "cnn", f"--output={tmp_path}"]
    monkeypatch.setattr(convert, "EXPERIMENTS", {n: e._replace(epochs=4) for n, e in convert.EXPERIMENTS.items()})

    reproduce.main(command)
    record = json.loads((tmp_path / "cnn_seed0.json").read_text())
    accuracies = record["test_accuracy"]
    assert list(accuracies) == list(convert.STATES)
    assert accuracies["trained"] > 0.9
    assert accuracies["converted"] > accuracies["projected"]
    assert {"network", "seed", "epochs", "training_images", "git", "versions", "hardware", "seconds"} <= set(record)

    capsys.readouterr()
    reproduce.main(command)
    assert capsys.readouterr().out.count("there already") == 2

    reproduce.main([*command, "--report"])
    assert f"| digits, CNN with one BatchNorm | 1 | {accuracies['trained']:.3f} |" in readme.README.read_text()
    assert "old" not in readme.README.read_text()


def test_two_runs_with_one_seed_are_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "EXPERIMENTS", {"mlp": convert.EXPERIMENTS["mlp"]._replace(epochs=1)})
    first, second = (convert.run("mlp", 3, tmp_path / "unfinished", "cpu", None)["test_accuracy"] for _ in range(2))
    assert first == second


def test_without_runs_there_is_no_report(tmp_path):
    with pytest.raises(SystemExit, match="holds none of these runs"):
        reproduce.main(["convert", f"--output={tmp_path}", "--report"])


def stored(name):
    return [record["test_accuracy"] for path in STORED if (record := json.loads(path.read_text()))["network"] == name]


def test_the_table_is_what_the_stored_jsons_say():
    names = {name: [f"{name}_seed{seed}" for seed in convert.SEEDS] for name in convert.EXPERIMENTS}
    records = {name: convert.finished(names[name], ROOT / "results" / "convert") for name in names}
    begin, end = "<!-- convert: made by python -m tools.reproduce -->", "<!-- /convert -->"
    assert f"{begin}\n{convert.table(records)}\n{end}" in (ROOT / "docs" / "convert.md").read_text()


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_conversion_loses_at_most_a_point_on_the_digits_where_projection_loses_more(name):
    accuracies = stored(name)
    means = {state: statistics.mean(each[state] for each in accuracies) for state in convert.STATES}
    assert len(accuracies) == 5
    assert means["trained"] - means["converted"] <= 0.01
    assert means["trained"] - means["projected"] > 0.05  # control


@pytest.mark.parametrize("name", list(convert.EXPERIMENTS))
def test_conversion_keeps_more_than_projection_in_every_stored_run(name):
    assert len(stored(name)) == 5
    assert all(each["converted"] > each["projected"] for each in stored(name))
