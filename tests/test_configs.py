"""Every YAML in configs/ runs, and the digits do what its first lines promise."""

import csv
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lcw_lightning
from lcw_lightning import ImageClassifier
from lcw_lightning.cli import main

CONFIGS = sorted((Path(lcw_lightning.__file__).parents[1] / "configs").glob("*.yaml"))
DIGITS = next(path for path in CONFIGS if path.stem == "digits_mlp50")
LAYERS = [f"network.hidden.{index}.linear" for index in range(50)] + ["network.output"]


def fit(config, folder, *flags):
    main(
        ["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
        + list(flags)
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs(config, tmp_path):
    fit(config, tmp_path, "--trainer.fast_dev_run=true")


@pytest.fixture(scope="module", params=["lcw", "none"])
def digits_run(request, tmp_path_factory):
    """A whole run of the digits config under each kind: (kind, its folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    fit(DIGITS, folder, f"--constraint.kind={request.param}")
    return request.param, folder / "lightning_logs" / "version_0"


@pytest.fixture
def scalars(digits_run):
    """The run's kind and its logged scalars: tag -> {step: value}."""
    kind, folder = digits_run
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return kind, {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_constrained_digits_train_and_plain_ones_stay_at_chance(scalars):
    kind, logged = scalars
    (accuracy,) = logged["test/accuracy"].values()
    assert accuracy >= 0.96 if kind == "lcw" else accuracy <= 0.20


def test_every_statistic_is_logged_for_all_51_layers(scalars):
    _, logged = scalars
    names = {tag.split("/")[0] for tag in logged if tag.endswith("/network.output")}
    assert len(names) == 11
    for name in names:
        for layer in LAYERS:
            assert list(logged[f"{name}/{layer}"]) == [0, 50, 100, 150, 200]


def test_the_gradient_vanishes_without_the_constraint_alone(scalars):
    kind, logged = scalars
    first, last = (logged[f"gradient_std/network.hidden.{index}.linear"][0] for index in (0, 49))
    assert 0.1 <= first / last <= 10 if kind == "lcw" else first / last < 1e-6


def median_shift_ratio(kind, folder):
    fit(DIGITS, folder, f"--constraint.kind={kind}", "--trainer.max_steps=1", "--trainer.logger=CSVLogger")
    with next(folder.glob("**/metrics.csv")).open() as file:
        row = next(csv.DictReader(file))
    return torch.tensor([float(row[f"shift_ratio/{layer}"]) for layer in LAYERS[:-1]]).median()


def test_the_constraint_takes_the_activation_shift_away_at_the_start(tmp_path):
    assert median_shift_ratio("lcw", tmp_path / "lcw") <= 0.1 * median_shift_ratio("none", tmp_path / "none")


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_stopped_and_resumed_run_ends_bit_identical(tmp_path):
    fit(DIGITS, tmp_path / "whole", "--trainer.max_epochs=4")
    fit(DIGITS, tmp_path / "stopped", "--trainer.max_epochs=2")
    (checkpoint,) = (tmp_path / "stopped").glob("**/*.ckpt")
    fit(DIGITS, tmp_path / "resumed", "--trainer.max_epochs=4", f"--ckpt_path={checkpoint}")
    (whole,), (resumed,) = ((tmp_path / name).glob("**/*.ckpt") for name in ("whole", "resumed"))
    states = [ImageClassifier.load_from_checkpoint(path).state_dict() for path in (whole, resumed)]
    assert len(states[0]) == 102
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key
