"""Every YAML in configs/ runs, and the digits do what its first lines promise."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcw_lightning import ImageClassifier
from lcw_lightning.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
DIGITS = next(path for path in CONFIGS if path.stem == "digits_mlp50")
LAYERS = [f"network.hidden.{index}.linear" for index in range(50)] + ["network.output"]


def fit(config, folder, *flags):
    quiet = "--trainer.enable_progress_bar=false"
    main(["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", quiet, *flags])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs(config, tmp_path):
    fit(config, tmp_path, "--trainer.fast_dev_run=true")
    assert not list(tmp_path.iterdir())  # a run that only tries writes nothing


@pytest.fixture(scope="module")
def scalars(tmp_path_factory):
    """What a whole run of the digits config logs, by kind of constraint: tag -> {step: value}."""

    def logged(kind):
        folder = tmp_path_factory.mktemp(kind)
        fit(DIGITS, folder, f"--constraint.kind={kind}")
        events = EventAccumulator(str(folder / "lightning_logs" / "version_0"), size_guidance={"scalars": 0})
        events.Reload()
        return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}

    return {kind: logged(kind) for kind in ("lcw", "none")}


def at_start(logged, statistic):
    """The statistic of each of the 50 hidden layers at step 0."""
    return torch.tensor([logged[f"{statistic}/{layer}"][0] for layer in LAYERS[:-1]])


def test_constrained_digits_train_and_plain_ones_stay_at_chance(scalars):
    accuracies = {kind: next(iter(logged["test/accuracy"].values())) for kind, logged in scalars.items()}
    assert accuracies["lcw"] >= 0.96
    assert accuracies["none"] <= 0.20


@pytest.mark.parametrize("kind", ["lcw", "none"])
def test_every_statistic_is_logged_for_all_51_layers(kind, scalars):
    logged = scalars[kind]
    names = {tag.split("/")[0] for tag in logged if tag.endswith("/network.output")}
    assert len(names) == 11
    for name in names:
        for layer in LAYERS:
            assert list(logged[f"{name}/{layer}"]) == [0, 50, 100, 150, 200]


def test_the_constraint_takes_the_activation_shift_away_at_the_start(scalars):
    lcw, plain = (at_start(scalars[kind], "shift_ratio").median() for kind in ("lcw", "none"))
    assert lcw <= 0.1 * plain


def test_the_gradient_vanishes_without_the_constraint_alone(scalars):
    lcw, plain = (at_start(scalars[kind], "gradient_std") for kind in ("lcw", "none"))
    assert 0.1 <= lcw[0] / lcw[-1] <= 10
    assert plain[0] / plain[-1] < 1e-6


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
