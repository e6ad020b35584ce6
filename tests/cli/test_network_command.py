"""``lcw analyze --network``: a report on any network, without a config or a LightningModule."""

import json

import pytest

from lcw_lightning.cli import main

MLP = ["--network=lcw_lightning.MLP", "--network_args={in_features: 8, num_classes: 3, depth: 20, width: 16}"]
SHAPE = ["--input_shape", "8"]


def run(tmp_path, *flags):
    main(["analyze", *flags, f"--output={tmp_path / 'report'}"])
    return json.loads((tmp_path / "report" / "analysis.json").read_text())


def test_a_network_of_torchvision_is_judged_as_it_is_built(tmp_path, capsys):
    report = run(tmp_path, "--network=torchvision.models.resnet18", "--input_shape", "3", "32", "32", "--batch_size=4")
    assert report["judged"]["constraints"] == {"unconstrained": 21}
    assert report["judged"]["samples"] == 4
    assert "of 21 weights unconstrained, not rescaled, in training mode, on 4 samples" in capsys.readouterr().out


def test_kinds_are_compared_on_the_same_weights(tmp_path, capsys):
    reports = run(tmp_path, *MLP, *SHAPE, "--compare", "as_built", "none", "lcw")
    assert [reports[kind]["judged"]["initialized"] for kind in ("as_built", "none", "lcw")] == [
        "not rescaled",
        *2 * ["rescaled on this batch"],
    ]
    assert any("Gradients vanish" in finding["says"] for finding in reports["as_built"]["verdict"])
    assert reports["lcw"]["verdict"] == []
    assert reports["lcw"]["judged"]["constraints"] == {"under lcw": 21}


def test_the_seed_decides_the_weights(tmp_path):
    first, again, other = (run(tmp_path, *MLP, *SHAPE, f"--seed={seed}")["loss"] for seed in (1, 1, 2))
    assert first == again != other


def test_a_function_of_the_users_is_found_in_the_working_directory(tmp_path, monkeypatch):
    layers = "nn.Linear(8, width), nn.Linear(width, 3)"
    code = f"from torch import nn\n\ndef build(width):\n    return nn.Sequential({layers})\n"
    (tmp_path / "mine_of_network_command.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    report = run(tmp_path, "--network=mine_of_network_command.build", "--network_args={width: 5}", *SHAPE)
    assert list(report["layers"]) == ["0", "1"]


MISTAKES = {
    "no such function": (["--network=torchvision.models.resnet51"], "names no function or class"),
    "no such module": (["--network=nosuch.net"], "No module named 'nosuch'"),
    "no dot": (["--network=resnet"], "write package.module.name"),
    "another argument": (["--network=lcw_lightning.MLP", "--network_args={deep: 3}"], "does not take --network_args"),
    "another shape": ([*MLP, "--input_shape", "9"], "does not take inputs of shape (32, 9)"),
    "no network": (["--network=torch.manual_seed", "--network_args={seed: 1}"], "returns Generator, and no torch"),
    "no classifier": (
        ["--network=torch.nn.Identity", "--input_shape", "3", "4"],
        "takes classifiers, whose output has one",
    ),
    "near function": (["--network=torchvision.models.resnt50"], "near it is torchvision.models.resnet50"),
    "abbreviation": ([*MLP, *SHAPE, "--batch=3"], "unrecognized arguments: --batch=3"),
    "misspelt flag": ([*MLP, *SHAPE, "--bacth_size=3"], "near it is --batch_size"),
    "limit": ([*MLP, *SHAPE, "--batch_size=0"], "--batch_size: expected a number >0; got '0'"),
    "no such kind": ([*MLP, *SHAPE, "--compare", "LCW"], "LCW"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_one_message(case, tmp_path, capsys):
    flags, message = MISTAKES[case]
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *flags)
    said = f"{end.value}{capsys.readouterr().err}"
    assert message in said
    assert not any(raw in said for raw in ("Traceback", "usage:", "Parser key"))


def test_lightning_is_not_imported(run_fresh, tmp_path):
    code = f"""
import sys
from lcw_lightning.cli import main
main(["analyze", *{MLP!r}, *{SHAPE!r}, "--output={tmp_path}/fresh"])
print("lightning" in sys.modules)
"""
    assert run_fresh(code).rstrip().endswith("False")
