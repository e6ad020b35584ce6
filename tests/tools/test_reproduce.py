import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_digits_run_once_and_report_from_their_jsons(tools, tmp_path, monkeypatch, capsys):
    small = ["--model.network.depth=2", "--model.network.width=8", "--trainer.max_epochs=2"]
    methods = {method: flags + small for method, flags in tools.digits_grid.METHODS.items()}
    monkeypatch.setattr(tools.digits_grid, "METHODS", methods)
    monkeypatch.setattr(tools.digits_grid, "SEEDS", range(1))
    tools.reproduce.README.write_text(
        "above\n<!-- digits: made by tools/reproduce.py -->\nold\n<!-- /digits -->\nbelow\n"
    )
    command = ["digits", f"--output={tmp_path}"]

    tools.reproduce.main(command)
    lcw = json.loads((tmp_path / "lcw_seed0.json").read_text())
    assert len(lcw["epochs"]["val/accuracy"]) == 2
    assert [len(layers) for layers in lcw["at_start"].values()] == [3, 3]
    assert 0 < lcw["train_seconds"] < 30

    capsys.readouterr()
    tools.reproduce.main(command)
    assert capsys.readouterr().out.count("there already") == 2

    tools.reproduce.main([*command, "--report"])
    text = tools.reproduce.README.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert f"| LCW | 1 | {lcw['test_accuracy']:.3f}" in text
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_the_readmes_table_is_what_the_stored_jsons_say(tools):
    table = tools.digits_grid.table(tools.digits_grid.load(ROOT / "results" / "digits"))
    assert f"<!-- digits: made by tools/reproduce.py -->\n{table}\n<!-- /digits -->" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/digits/*.json")), ids=lambda path: path.stem)
def test_every_stored_run_says_what_made_it(path):
    run = json.loads(path.read_text())
    assert {"config", "method", "flags", "seed", "git", "versions", "hardware", "train_seconds"} <= set(run)
    assert len(run["epochs"]["val/accuracy"]) == 20
    assert run["test_accuracy"] >= 0.96 if run["method"] == "LCW" else run["test_accuracy"] <= 0.20
    assert run["train_seconds"] <= 30


def test_a_grid_runs_once_and_reports_from_its_jsons(tools, tmp_path, capfd):
    tools.reproduce.README.write_text("<!-- small_2epochs: made by tools/reproduce.py -->\n<!-- /small_2epochs -->\n")
    command = ["small", "--networks=mlp", "--epochs=2", f"--output={tmp_path / 'out'}"]

    tools.reproduce.main([*command, "--device", "cpu", "cpu"])
    said = capfd.readouterr().out
    assert "mlp_digits_lcw_2epochs_seed0: epoch 2 of 2" in said
    paths = sorted((tmp_path / "out").glob("*"))
    assert [path.name for path in paths if path.is_file()] == [
        "mlp_digits_lcw_2epochs_seed0.json",
        "mlp_digits_plain_2epochs_seed0.json",
    ]
    assert not any((tmp_path / "out" / "unfinished").iterdir())
    record = json.loads(paths[0].read_text())
    assert record["flags"] == ["--constraint.kind=lcw", "--trainer.max_epochs=2"]
    assert {"config", "seed", "git", "versions", "hardware"} <= set(record)
    assert {name: len(values) for name, values in record["epochs"].items()} == dict.fromkeys(tools.reports.PANELS, 2)
    assert len(record["seconds"]) == 2
    assert not record["diverged"]
    assert str(tmp_path) not in paths[0].read_text()

    before = paths[0].read_bytes()
    tools.reproduce.main(command)
    assert capfd.readouterr().out.count("there already") == 2
    assert paths[0].read_bytes() == before

    tools.reproduce.main([*command, "--report"])
    loss = math.fsum(record["epochs"]["test/loss"]) / 2
    assert f"| {loss:.3f} |" in capfd.readouterr().out
    assert f"| {loss:.3f} |" in tools.reproduce.README.read_text()
    assert (tmp_path / "out" / "mlp_digits_2epochs.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_fails_leaves_the_others_alone(tools, tmp_path, capfd):
    config = tmp_path / "vgg_digits.yaml"
    config.write_text(config.read_text().replace("VGG19", "VGG18"))
    tools.runs.write_json(tmp_path / "mlp_digits_plain_1epochs_seed0.json", {})
    command = ["small", "--methods=plain", "--epochs=1", f"--output={tmp_path}", "--networks", "vgg", "mlp"]
    with pytest.raises(SystemExit, match="failed: vgg_digits_plain_1epochs_seed0; what they said"):
        tools.reproduce.main(command)
    assert not (tmp_path / "vgg_digits_plain_1epochs_seed0.json").exists()
    said = capfd.readouterr()
    assert "[2/2] mlp_digits_plain_1epochs_seed0: there already" in said.out
    assert "VGG18" in said.err


def names(tools, *flags):
    return [run.name for run in tools.reproduce.wanted(tools.reproduce.parse(list(flags)))[0]]


@pytest.mark.parametrize("shards", [1, 3, 7, 50])
def test_shards_share_all_runs(tools, shards):
    whole = names(tools, "table1", "--seeds", "0", "1")
    parts = [names(tools, "table1", "--seeds", "0", "1", f"--shard={i}/{shards}") for i in range(1, shards + 1)]
    assert len(whole) == len(set(whole)) == 40
    assert sorted(name for part in parts for name in part) == sorted(whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3"])
def test_a_wrong_shard_is_one_message(tools, text, capsys):
    with pytest.raises(SystemExit):
        tools.reproduce.parse(["fig5", f"--shard={text}"])
    assert f"{text} is not i/n with i from 1 to n" in capsys.readouterr().err


def test_runs_of_other_lengths_and_precisions_have_other_names(tools):
    common = ("fig5", "--data=cifar10", "--methods=BN+LCW")
    assert names(tools, *common) == ["mlp50_cifar10_bn+lcw_seed0"]
    flags = ("--epochs=6", "--precision=bf16-mixed", "--seeds=4")
    assert names(tools, *common, *flags) == ["mlp50_cifar10_bn+lcw_6epochs_bf16-mixed_seed4"]


def test_the_grids_are_the_papers(tools):
    fig5, table1 = tools.grids.GRIDS["fig5"], tools.grids.GRIDS["table1"]
    assert len(names(tools, "fig5")) == 22
    pairs = [(n, d, m) for n in table1.networks for d in table1.data for m in table1.methods]
    assert sorted(pairs) == sorted(tools.grids.PAPER_TABLE_1)
    assert {"BN+LCW", "BN+WN", "BN+CWN", "BN+SN", "LCW", "BN", "SL", "WN", "CWN", "SN"} <= set(fig5.methods)
    assert table1.methods.items() <= dict(fig5.methods).items()
    for grid in (fig5, table1):
        for network in grid.networks:
            assert all((ROOT / "configs" / f"{network}_{data}.yaml").exists() for data in grid.data)


def test_a_diverged_run_is_a_result(tools, tmp_path):
    logged = [dict.fromkeys(tools.runs.QUANTITIES.values(), value) for value in (1.0, math.inf, math.nan)]
    epochs = [{**values, "seconds": 1.0} for values in logged]
    run = tools.runs.Run("vgg19", "cifar10", "plain", 0, [])
    record = tools.runs.record(run, "cpu", epochs)
    tools.runs.write_json(tmp_path / f"{run.name}.json", record)  # which takes no nan
    groups = tools.reports.load([run], tmp_path)
    assert groups["vgg19", "cifar10", "plain"][0]["epochs"]["test/loss"] == [1.0, None, None]
    assert record["diverged"]
    grid = tools.grids.GRIDS["table1"]
    table = tools.reports.tables("table1", grid, groups)
    assert "| plain | 1 | 3 | diverged | 0.936 | diverged | 0.354 | 1.0 |" in table
    (path,) = tools.reports.draw(grid, groups, tmp_path, "")
    assert path.name == "vgg19_cifar10.png"


def test_tables_hold_the_mean_of_last_epochs_and_the_spread_over_seeds(tools):
    runs = [{"epochs": {"test/loss": [9.0] * 5 + [start + i for i in range(10)]}} for start in (0.0, 2.0)]
    assert tools.reports.spread(runs[:1], "test/loss", 10) == "4.500"
    assert tools.reports.spread(runs, "test/loss", 10) == "5.500 ± 1.414"
    assert tools.reports.spread(runs, "test/loss", 1) == "10.000 ± 1.414"


def test_a_report_without_runs_is_one_message(tools, tmp_path):
    with pytest.raises(SystemExit, match="holds none of these runs; run the grid first"):
        tools.reproduce.main(["fig5", "--report", f"--output={tmp_path}"])


@pytest.mark.slow
def test_a_killed_run_ends_like_an_unbroken_one(tools, small, tmp_path):
    small.run("unbroken", "--networks=vgg", "--methods=LCW")
    process = small.start("killed", "--networks=vgg", "--methods=LCW")
    while "epoch 1 of 3" not in process.stdout.readline():
        assert process.poll() is None
    said = small.kill(process)
    assert small.results("killed") == {}
    # The checkpoint comes after the words, so the kill may have come between them.
    epochs = [len(small.epochs(path)) for path in (tmp_path / "killed").glob("unfinished/*/last.ckpt")]
    assert max(epochs, default=0) in (said.count("of 3: "), said.count("of 3: ") + 1)
    small.run("killed", "--networks=vgg", "--methods=LCW")
    assert small.results("killed") == small.results("unbroken")
    assert len(small.results("killed")) == 1
