import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """tools/reproduce.py as a module, with a small grid and a README and results of its own."""
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "tools" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "reproduce", module)
    spec.loader.exec_module(module)
    small = ["--model.network.depth=2", "--model.network.width=8", "--trainer.max_epochs=2"]
    methods = {method: flags + small for method, flags in module.GRIDS["digits"].methods.items()}
    module.GRIDS["small"] = module.Grid("configs/digits_mlp50.yaml", methods, seeds=range(1))
    return module


def test_a_grid_runs_once_and_reports_from_its_jsons(reproduce, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    monkeypatch.setattr(reproduce, "README", tmp_path / "README.md")
    reproduce.README.write_text("above\n<!-- small: made by tools/reproduce.py -->\nold\n<!-- /small -->\nbelow\n")

    reproduce.run_missing("small")
    runs = reproduce.load("small")
    assert [len(found) for found in runs.values()] == [1, 1]
    (lcw,) = runs["LCW"]
    assert len(lcw["epochs"]["val/accuracy"]) == 2
    assert [len(layers) for layers in lcw["at_start"].values()] == [3, 3]
    assert 0 < lcw["train_seconds"] < 30

    capsys.readouterr()
    reproduce.run_missing("small")
    assert capsys.readouterr().out.count("there already") == 2

    reproduce.write_between_markers("small", reproduce.table(runs))
    reproduce.picture("small", runs)
    text = reproduce.README.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert f"| LCW | 1 | {lcw['test_accuracy']:.3f}" in text
    assert (tmp_path / "small" / "small.png").stat().st_size > 10_000


def test_the_readmes_table_is_what_the_stored_jsons_say(reproduce):
    table = reproduce.table(reproduce.load("digits"))
    assert f"<!-- digits: made by tools/reproduce.py -->\n{table}\n<!-- /digits -->" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/digits/*.json")), ids=lambda path: path.stem)
def test_every_stored_run_says_what_made_it(path):
    run = json.loads(path.read_text())
    assert {"config", "method", "flags", "seed", "git", "versions", "hardware", "train_seconds"} <= set(run)
    assert len(run["epochs"]["val/accuracy"]) == 20
    assert run["test_accuracy"] >= 0.96 if run["method"] == "LCW" else run["test_accuracy"] <= 0.20
    assert run["train_seconds"] <= 30
