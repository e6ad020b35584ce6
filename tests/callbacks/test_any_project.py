"""The three callbacks in projects that use the rest of Lightning."""

import copy
import csv
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parametrize

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, ShiftMonitor, constrain, load_from_checkpoint
from lcw_lightning.constraints import constrained_weights
from lcw_lightning.layers import named_weights


def residual(module):
    """The largest sum of a unit's weights, over their norm, of all weights."""
    units = [ref.units.detach().double() for ref in named_weights(module).values()]
    return max((rows.sum(1).abs() / rows.norm(dim=1)).max().item() for rows in units)


@pytest.fixture
def ours(tmp_path):
    """Return a function that makes the three callbacks anew, and a logger for the monitor."""
    return lambda: [ConstraintCallback(), MinibatchInitCallback(), ShiftMonitor(every_n_steps=2)]


@pytest.fixture
def logged(tmp_path):
    return {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1}


SETTINGS = {
    "accumulated-gradients": {"accumulate_grad_batches": 3},
    "clipped-norm": {"gradient_clip_val": 0.1},
    "clipped-values": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    "overfit-batches": {"overfit_batches": 1},
    "fast-dev-run": {"fast_dev_run": True},
    "limit-batches": {"limit_train_batches": 2},
    "detect-anomaly": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore:.*overfit_batches", "ignore:You are overfitting")
def test_training_moves_zero_sum_weights_under_every_setting(
    settings, ours, logged, make_project, make_trainer, loader
):
    project, plain = make_project(), make_project()
    make_trainer(*ours(), **(logged | settings)).fit(project, loader)
    assert residual(project) < 1e-6
    assert (project.head.weight - plain.head.weight).abs().max() > 1e-3


class Copying(Callback):
    """Copies the trainer with all its callbacks, as jsonargparse's optimizer does whenever a module is copied."""

    def setup(self, trainer, pl_module, stage):
        self.twin = copy.deepcopy({"callbacks": trainer.callbacks[:3], "module": pl_module})["module"]


def test_callbacks_can_be_copied_with_the_module_while_they_are_at_work(ours, make_project, make_trainer, loader):
    project, copying = make_project(), Copying()
    make_trainer(*ours(), copying).fit(project, loader)
    assert residual(copying.twin) < 1e-6
    assert not torch.equal(copying.twin.head.weight, project.head.weight)


AVERAGES = {
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1),
}
averages = pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)


@averages
@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_averaged_weights_are_zero_sum_and_trained(average, build_in, ours, make_project, make_trainer, loader):
    project = make_project(build_in)
    if build_in != "__init__":
        project.build()  # overrides the hook, but has its layers before
    constrained = make_project()
    constrain(constrained)
    make_trainer(*ours(), average(), max_epochs=3).fit(project, loader)
    assert residual(project) < 1e-6
    assert len(constrained_weights(project)) == 3
    assert (project.head.weight - constrained.head.weight).abs().max() > 1e-2


@averages
def test_an_average_that_copies_the_module_too_early_is_named(average, make_project, make_trainer, loader):
    with pytest.raises(ValueError, match=r"Averaging copies the module in its setup.*list ConstraintCallback first"):
        make_trainer(average(), ConstraintCallback()).fit(make_project(), loader)


@pytest.mark.parametrize(
    ("average", "build_in"), [("swa", "setup"), ("swa", "configure_model"), ("ema", "setup")], ids="-".join
)
def test_an_average_of_layers_that_do_not_exist_yet_is_refused(average, build_in, make_project, make_trainer, loader):
    average = AVERAGES[average]()
    with pytest.raises(ValueError, match=r"before its setup\(\) or configure_model\(\) builds the layers"):
        make_trainer(ConstraintCallback(), average).fit(make_project(build_in), loader)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_a_layer_that_comes_after_the_average_is_named(hook, make_project, make_trainer, loader):
    project = make_project()
    setattr(project, hook, lambda **stage: setattr(project, "head", nn.Linear(16, 3)))
    with pytest.raises(ValueError, match=r"'head\.weight' came after the module was constrained"):
        make_trainer(ConstraintCallback(), AVERAGES["ema"]()).fit(project, loader)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_ema_of_layers_built_in_configure_model_resumes_bit_exactly(make_project, make_trainer, loader, tmp_path):
    def callbacks(*more):
        return [ConstraintCallback(), EMAWeightAveraging(decay=0.5), *more]

    whole, resumed = make_project("configure_model"), make_project("configure_model")
    make_trainer(*callbacks(), max_epochs=3).fit(whole, loader)
    first = make_trainer(*callbacks(ModelCheckpoint(tmp_path / "run")), enable_checkpointing=True)
    first.fit(make_project("configure_model"), loader)
    path = first.checkpoint_callback.best_model_path
    make_trainer(*callbacks(), max_epochs=3).fit(resumed, loader, ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_the_learning_rate_finder_says_what_it_tries_and_finds_a_rate(make_project, make_trainer, loader):
    project = make_project()
    project.lr = 1e-3
    finder = LearningRateFinder(num_training_steps=5)
    with pytest.warns(UserWarning, match="LearningRateFinder tries its rates before the first batch initializes"):
        make_trainer(ConstraintCallback(), MinibatchInitCallback(), finder, enable_checkpointing=True).fit(
            project, loader
        )
    assert residual(project) < 1e-6
    assert not torch.equal(project.head.bias, make_project().head.bias)


class Adversaries(LightningModule):
    """A GAN: two networks, two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Sigmoid(), nn.Linear(16, 8))
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            self.toggle_optimizer(optimizer)
            fake = self.critic(self.generator(torch.randn(len(batch[0]), 4))).mean()
            self.manual_backward(sign * (self.critic(batch[0]).mean() - fake))
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.Adam(network.parameters(), lr=0.01) for network in (self.generator, self.critic)]


def test_adversaries_with_two_optimizers_stepped_by_hand(ours, logged, make_trainer, loader):
    torch.manual_seed(1)
    module = Adversaries()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    make_trainer(*ours(), **logged).fit(module, loader)
    assert residual(module) < 1e-6
    assert set(constrained_weights(module)) == set(named_weights(module))
    assert all(
        module.state_dict()[key].shape != value.shape or not torch.equal(module.state_dict()[key], value)
        for key, value in before.items()
        if key in module.state_dict()
    )


def test_a_frozen_networks_biases_stay_while_a_toggled_ones_become_zero(make_trainer, loader):
    module, seen = Adversaries(), {}
    module.on_before_optimizer_step = lambda optimizer: seen.setdefault("critic", module.critic[0].bias.clone())
    make_trainer(MinibatchInitCallback()).fit(module, loader)
    assert not seen["critic"].any()  # in the generator's turn the critic requires no gradient


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.1),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1),
}


class OwnOptimizer(LightningModule):
    """Keeps one optimizer over all fits."""

    def __init__(self, optimizer="sgd"):
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.kept = OPTIMIZERS[optimizer](self.layer.parameters())

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.kept


def test_an_optimizer_made_before_the_constraint_trains_it(make_trainer, loader):
    module = OwnOptimizer()
    before = module.layer.weight.clone()
    make_trainer(ConstraintCallback()).fit(module, loader)
    assert residual(module) < 1e-6
    assert (module.layer.weight - before).abs().max() > 1e-2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_that_has_stepped_before_the_constraint_is_named(optimizer, make_trainer, loader):
    module = OwnOptimizer(optimizer)
    make_trainer().fit(module, loader)
    with pytest.raises(ValueError, match=r"optimizer of 'layer\.weight' has stepped before .* make a new one"):
        make_trainer(ConstraintCallback()).fit(module, loader)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_that_has_stepped_under_the_constraint_goes_on(optimizer, make_trainer, loader):
    module = OwnOptimizer(optimizer)
    if optimizer == "adagrad":  # which makes its state at once, of the plain weight's shape
        constrain(module)
        module.kept = OPTIMIZERS[optimizer](module.layer.parameters())
    make_trainer(ConstraintCallback()).fit(module, loader)
    before = module.layer.weight.detach().clone()
    make_trainer(ConstraintCallback()).fit(module, loader)
    assert not torch.equal(module.layer.weight, before)
    assert residual(module) < 1e-6


PRECISIONS = {
    "bf16-mixed": ({"precision": "bf16-mixed"}, torch.float32, 1e-6),
    "bf16-true": ({"precision": "bf16-true"}, torch.bfloat16, 5e-2),
    "64-true": ({"precision": "64-true"}, torch.float64, 1e-13),
    "16-mixed": (
        {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]},
        torch.float32,
        1e-6,
    ),
}


@pytest.mark.parametrize(("settings", "dtype", "tolerance"), PRECISIONS.values(), ids=PRECISIONS)
def test_weights_are_zero_sum_to_the_precision_they_are_held_in(
    settings, dtype, tolerance, ours, logged, make_project, make_trainer, loader
):
    project = make_project()
    make_trainer(*ours(), **logged, **settings).fit(project, loader)
    assert project.head.weight.dtype == dtype
    assert residual(project) < tolerance
    assert all(parameter.isfinite().all() for parameter in project.parameters())


def test_loss_scaling_does_not_reach_the_logged_gradients(make_project, make_trainer, loader, tmp_path):
    def gradient_std(scale):
        folder = CSVLogger(tmp_path, name=str(scale))
        scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        settings = {"plugins": [scaled], "logger": folder, "limit_train_batches": 1, "log_every_n_steps": 1}
        make_trainer(ShiftMonitor(), **settings).fit(make_project(), loader)
        rows = csv.DictReader(Path(folder.log_dir, "metrics.csv").read_text().splitlines())
        return float(next(row["gradient_std/head"] for row in rows))

    assert gradient_std(1024.0) == pytest.approx(gradient_std(1.0), rel=1e-2)


class Compiled(LightningModule):
    """Compiles its network into one graph, as a user would in __init__."""

    def __init__(self, project):
        super().__init__()
        self.project = project
        self.project.body.compile(fullgraph=True, backend="aot_eager")

    def training_step(self, batch, batch_idx):
        return self.project.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_compiled_into_one_graph_trains_as_the_eager_one(ours, logged, make_project, make_trainer, loader):
    torch.compiler.reset()
    compiled, eager = Compiled(make_project()), make_project(optimizer_kwargs={"lr": 0.1})
    make_trainer(*ours(), **logged).fit(compiled, loader)
    make_trainer(*ours(), **logged).fit(eager, loader)
    for ours_, theirs in zip(compiled.project.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours_, theirs)


class Sequences(LightningModule):
    """Recurrence and attention, of which hooks see nothing."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        states, _ = self.lstm(batch[0].unsqueeze(1).expand(-1, 4, -1))
        return nn.functional.cross_entropy(self.head(self.attention(states)[:, -1]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def test_recurrence_and_attention_train_constrained_and_resume(ours, logged, make_trainer, loader, tmp_path):
    def run(module, epochs, **kwargs):
        trainer = make_trainer(*ours(), max_epochs=epochs, **logged)
        trainer.fit(module, loader, **kwargs)
        return trainer

    def make():
        torch.manual_seed(1)
        return Sequences()

    whole, first, resumed = make(), make(), make()
    run(whole, 2)
    run(first, 1).save_checkpoint(tmp_path / "first.ckpt")
    run(resumed, 2, ckpt_path=tmp_path / "first.ckpt")
    assert residual(whole) < 1e-6
    assert len(constrained_weights(whole)) == 4 + 4 + 1
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    loaded = load_from_checkpoint(Sequences, tmp_path / "first.ckpt")
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_a_checkpoint_that_does_not_fit_leaves_the_module_as_it_was(make_project, make_trainer, loader, tmp_path):
    wide, narrow = make_project(), make_project()
    wide.head = nn.Linear(16, 5)
    trainer = make_trainer(ConstraintCallback(), enable_checkpointing=True)
    trainer.fit(wide, loader)
    trainer.save_checkpoint(tmp_path / "wide.ckpt")
    constrain(narrow)
    before = {key: value.clone() for key, value in narrow.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit Project, and nothing of it was loaded: size mismatch for head"):
        make_trainer(ConstraintCallback()).test(narrow, loader, ckpt_path=tmp_path / "wide.ckpt")
    assert all(torch.equal(value, before[key]) for key, value in narrow.state_dict().items())
    assert "load_state_dict" not in vars(narrow)


def test_a_constrained_checkpoint_does_not_fit_a_plain_run_and_says_so(make_project, make_trainer, loader, tmp_path):
    trainer = make_trainer(ConstraintCallback(), enable_checkpointing=True)
    trainer.fit(make_project(), loader)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"parametrizations.*Build the model, and constrain it, as in the run"):
        make_trainer(ConstraintCallback("none")).test(make_project(), loader, ckpt_path=tmp_path / "run.ckpt")


def test_fit_test_and_predict_see_the_same_weights(ours, logged, make_project, make_trainer, loader):
    project, trainer = make_project(), make_trainer(*ours(), **logged)
    trainer.fit(project, loader)
    trained = {key: value.clone() for key, value in project.state_dict().items()}
    trainer.test(project, loader, verbose=False)
    predictions = torch.cat(trainer.predict(project, loader))
    assert all(torch.equal(value, trained[key]) for key, value in project.state_dict().items())
    assert torch.equal(predictions, torch.cat([project(batch[0]) for batch in loader]))


def test_nothing_turns_on_torchs_cache_which_copies_would_share(ours, logged, make_project, make_trainer, loader):
    project, seen = make_project(), []
    step = project.training_step
    project.training_step = lambda *args: (seen.append(parametrize._cache_enabled), step(*args))[1]
    make_trainer(*ours(), **logged).fit(project, loader)
    assert set(seen) == {0}


def test_no_trainer_gets_a_callback_without_asking_for_it(make_trainer):
    groups = {entry.group for entry in distribution("lcw_lightning").entry_points}
    assert groups == {"console_scripts"}
    assert not any(type(callback).__module__.startswith("lcw_lightning") for callback in make_trainer().callbacks)
