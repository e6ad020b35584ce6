"""Every YAML in configs/ runs, under every method, and the digits do what its first lines promise."""

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcw_lightning import ImageClassifier
from lcw_lightning.cli import main
from lcw_lightning.constraints.kinds import kind_of
from lcw_lightning.data import vision
from lcw_lightning.weights.weight_ref import named_weights
from tools.reproduce.paper.grids import GRIDS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
DIGITS = next(path for path in CONFIGS if path.stem == "digits_mlp50")
RNN = next(path for path in CONFIGS if path.stem == "rnn_digits")
MLP50 = next(path for path in CONFIGS if path.stem == "mlp50_cifar10")
NO_FIGURES = "--shift_monitor.figures=false"  # which take longer than the training
LAYERS = [f"network.hidden.{index}.linear" for index in range(50)] + ["network.output"]

# Sections 6.1 and 6.2: weight decay, epochs, and epochs from one decay of the learning rate to the next.
RECIPE = {
    ("mlp50", "cifar10"): (1e-4, 100, 1),
    ("mlp50", "cifar100"): (1e-4, 100, 1),
    ("vgg19", "cifar10"): (5e-4, 300, 3),
    ("vgg19", "cifar100"): (5e-4, 500, 5),
    ("resnet18", "cifar10"): (5e-4, 300, 3),
    ("resnet18", "cifar100"): (5e-4, 500, 5),
}


KIND_OF_METHOD = {"plain": "none", "LCW": "lcw", "WN": "wn", "CWN": "cwn", "SN": "sn"}
AFTER_LINEAR = {
    "": [torch.nn.Sigmoid],
    "BN": [torch.nn.BatchNorm1d, torch.nn.Sigmoid],
    "SL": [torch.nn.Sigmoid, torch.nn.BatchNorm1d],
    "BN+SL": [torch.nn.BatchNorm1d, torch.nn.Sigmoid, torch.nn.BatchNorm1d],
}


METHODS = GRIDS["fig5"].methods


def by_stem(path):
    return path.stem


def fit(config, folder, *flags):
    quiet = "--trainer.enable_progress_bar=false"
    main(["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", quiet, *flags])


@pytest.fixture
def _tiny_data(monkeypatch):
    """Eight random images in place of a data set's files: nothing is downloaded."""

    def read(name, folder, train):
        data = getattr(vision, name)
        return torch.randint(256, (8, *data.image_shape), dtype=torch.uint8), torch.randint(data.num_classes, (8,))

    monkeypatch.setattr(vision, "prepare", lambda *_: None)
    monkeypatch.setattr(vision, "read", read)


def try_small(config, folder, *flags):
    """Train, validate and test one batch with the config's network, but narrow and on the CPU."""
    network = yaml.safe_load(config.read_text())["model"]["init_args"]["network"]["init_args"]
    small = {"width": 4, "hidden_width": 4, "depth": 3}
    sizes = [f"--model.network.{size}={number}" for size, number in small.items() if size in network]
    fit(config, folder, "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", *sizes, *flags)


@pytest.mark.usefixtures("_tiny_data")
@pytest.mark.parametrize("config", CONFIGS, ids=by_stem)
def test_every_config_runs(config, tmp_path):
    try_small(config, tmp_path)
    assert not list(tmp_path.iterdir())  # a run that only tries writes nothing


@pytest.fixture
def trained(monkeypatch):
    """The networks that runs end with, in their order."""
    networks = []
    monkeypatch.setattr(ImageClassifier, "on_train_end", lambda self: networks.append(self.network), raising=False)
    return networks


@pytest.mark.usefixtures("_tiny_data")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_paper_trains_its_kind_of_weights_and_norm(method, trained, tmp_path):
    try_small(MLP50, tmp_path, *METHODS[method])
    (network,) = trained
    norm, _, name = method.removesuffix("+init").rpartition("+")
    kind, norm = (KIND_OF_METHOD[name], norm) if name in KIND_OF_METHOD else ("none", f"{norm}+{name}".lstrip("+"))
    weights = [f"hidden.{index}.linear.weight" for index in range(3)] + ["output.weight"]
    assert {name: kind_of(ref) for name, ref in named_weights(network).items()} == dict.fromkeys(weights, kind)
    for layer in network.hidden:
        assert [type(module) for module in layer if not isinstance(module, torch.nn.Linear)] == AFTER_LINEAR[norm]


@pytest.mark.parametrize("config", [path for path in CONFIGS if tuple(path.stem.split("_")) in RECIPE], ids=by_stem)
def test_the_recipe_is_the_papers(config):
    network, _, data = config.stem.partition("_")
    settings = yaml.safe_load(config.read_text())
    model, data_settings = settings["model"]["init_args"], settings["data"]["init_args"]
    weight_decay, epochs, every_n_epochs = RECIPE[network, data]
    expected = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay}
    assert model["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": expected}
    assert model["lr_scheduler"]["init_args"] == {"factor": 0.95, "every_n_epochs": every_n_epochs, "floor": 0.001}
    assert settings["trainer"]["max_epochs"] == epochs
    assert settings["data"]["class_path"].endswith(data.upper())
    assert (data_settings["batch_size"], data_settings["val_size"], data_settings["augment"]) == (128, 0, True)
    assert model["network"]["init_args"]["num_classes"] == int(data.removeprefix("cifar"))
    norms = {key: value for key, value in model["network"]["init_args"].items() if key.endswith("norm")}
    assert (
        norms
        == {
            "mlp50": {"norm": "none"},
            "vgg19": {"norm": "batch", "hidden_norm": "batch"},
            "resnet18": {"norm": "batch"},
        }[network]
    )
    assert settings["constraint"] == {"kind": "lcw"}
    assert settings["minibatch_init"] == {"granularity": "layer"}


@pytest.fixture(scope="module")
def scalars(once):
    """Return a function of a kind of constraint: what a whole run of the digits config logs, tag -> {step: value}."""

    @cache
    def logged(kind):
        folder = once(f"digits_{kind}", lambda folder: fit(DIGITS, folder, f"--constraint.kind={kind}", NO_FIGURES))
        events = EventAccumulator(str(folder / "lightning_logs" / "version_0"), size_guidance={"scalars": 0})
        events.Reload()
        return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}

    return logged


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "lowest", "highest"), [("lcw", 0.93, 1), ("none", 0, 0.8)], ids=["lcw", "plain"])
def test_a_recurrent_network_learns_in_time_with_the_constraint_alone(kind, lowest, highest, tmp_path):
    fit(RNN, tmp_path, f"--constraint.kind={kind}", NO_FIGURES)
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"))
    events.Reload()
    assert lowest < events.Scalars("test/accuracy")[0].value < highest


def at_start(logged, statistic):
    """The statistic of each of the 50 hidden layers at step 0."""
    return torch.tensor([logged[f"{statistic}/{layer}"][0] for layer in LAYERS[:-1]])


def test_constrained_digits_train_and_plain_ones_stay_at_chance(scalars):
    lcw, plain = (next(iter(scalars(kind)["test/accuracy"].values())) for kind in ("lcw", "none"))
    assert lcw >= 0.96
    assert plain <= 0.20


@pytest.mark.parametrize("kind", ["lcw", "none"])
def test_every_statistic_is_logged_for_all_51_layers(kind, scalars):
    logged = scalars(kind)
    names = {tag.split("/")[0] for tag in logged if tag.endswith("/network.output")} - {"test_sparsity"}
    assert len(names) == 11
    for name in names:
        for layer in LAYERS:
            assert list(logged[f"{name}/{layer}"]) == [0, 50, 100, 150, 200]


def test_the_constraint_takes_the_activation_shift_away_at_the_start(scalars):
    lcw, plain = (at_start(scalars(kind), "shift_ratio").median() for kind in ("lcw", "none"))
    assert lcw <= 0.1 * plain


def test_the_gradient_vanishes_without_the_constraint_alone(scalars):
    lcw, plain = (at_start(scalars(kind), "gradient_std") for kind in ("lcw", "none"))
    assert 0.1 <= lcw[0] / lcw[-1] <= 10
    assert plain[0] / plain[-1] < 1e-6


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_stopped_and_resumed_run_ends_bit_identical(tmp_path):
    fit(DIGITS, tmp_path / "whole", "--trainer.max_epochs=4", NO_FIGURES)
    fit(DIGITS, tmp_path / "stopped", "--trainer.max_epochs=2", NO_FIGURES)
    (checkpoint,) = (tmp_path / "stopped").glob("**/last.ckpt")
    fit(DIGITS, tmp_path / "resumed", "--trainer.max_epochs=4", f"--ckpt_path={checkpoint}", NO_FIGURES)
    (whole,), (resumed,) = ((tmp_path / name).glob("**/last.ckpt") for name in ("whole", "resumed"))
    states = [ImageClassifier.load_from_checkpoint(path).state_dict() for path in (whole, resumed)]
    assert len(states[0]) == 102
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key


def test_the_digits_run_keeps_its_best_checkpoint_beside_its_last(tmp_path):
    fit(DIGITS, tmp_path, "--trainer.max_epochs=3", "--model.network.depth=2", NO_FIGURES)
    paths = {path.name: torch.load(path) for path in tmp_path.glob("**/*.ckpt")}
    assert set(paths) == {"best.ckpt", "last.ckpt"}
    assert paths["last.ckpt"]["epoch"] == 2
    (kept,) = (state for name, state in paths["last.ckpt"]["callbacks"].items() if "'val/accuracy'" in name)
    assert kept["best_model_path"].endswith("best.ckpt")
    assert paths["best.ckpt"]["epoch"] <= 2
