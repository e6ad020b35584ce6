"""The three callbacks in projects that use the rest of Lightning."""

import csv
from importlib.metadata import distribution
from itertools import permutations
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, ShiftMonitor, constrain, load_from_checkpoint
from lcw_lightning.constraints.constrain import constrained_weights
from tests.quick import quick

both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)

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
    residual, settings, ours, logged, make_project, make_trainer, loader
):
    project, plain = make_project(), make_project()
    make_trainer(*ours(), **(logged | settings)).fit(project, loader)
    assert residual(project) < 1e-6
    assert (project.head.weight - plain.head.weight).abs().max() > 1e-3


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
    residual, settings, dtype, tolerance, ours, logged, make_project, make_trainer, loader
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
    """Recurrence and attention, whose weights are inside one call."""

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


def test_recurrence_and_attention_train_constrained_and_resume(residual, ours, logged, make_trainer, loader, tmp_path):
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


class Tokens(LightningModule):
    """Linear layers on inputs of any shape (..., 8), with an activation in place."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


ORDERS = {"".join(str(place) for place in order): (order,) for order in permutations(range(3))}


@pytest.mark.parametrize("order", quick(["012", "210"], ORDERS))
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 2)], ids=["3d", "4d", "5d"])
def test_inputs_of_many_dimensions_train_in_any_order_of_the_callbacks(
    shape, order, residual, ours, logged, make_trainer
):
    torch.manual_seed(0)
    inputs, module = torch.randn(16, *shape, 8), Tokens()
    callbacks = ours()
    loader = DataLoader(TensorDataset(inputs), batch_size=8)
    make_trainer(*(callbacks[place] for place in order), **logged, max_epochs=2).fit(module, loader)
    assert residual(module) < 1e-6
    (last,) = [row for row in metrics_of(logged) if row["step"] == "2"]
    assert float(last["gradient_std/network.0"]) > 0
    # As many bits as if the monitor were not there.
    torch.manual_seed(0)
    torch.randn(16, *shape, 8)
    alone = Tokens()
    make_trainer(*ours()[:2], max_epochs=2).fit(alone, loader)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), alone.parameters(), strict=True))


def metrics_of(logged):
    return list(csv.DictReader(Path(logged["logger"].log_dir, "metrics.csv").read_text().splitlines()))


def test_a_checkpoint_that_does_not_fit_leaves_the_module_as_it_was(make_project, make_trainer, loader, tmp_path):
    wide, narrow = make_project(), make_project()
    wide.head = nn.Linear(16, 5)
    trainer = make_trainer(ConstraintCallback(), enable_checkpointing=True)
    trainer.fit(wide, loader)
    trainer.save_checkpoint(tmp_path / "wide.ckpt")
    constrain(narrow)
    before = {key: value.clone() for key, value in narrow.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"does not fit Project: its 'head\.weight' has the shape \[5, 16\], that of the model \[3, 16\]",
    ):
        make_trainer(ConstraintCallback()).test(narrow, loader, ckpt_path=tmp_path / "wide.ckpt")
    assert all(torch.equal(value, before[key]) for key, value in narrow.state_dict().items())
    assert "load_state_dict" not in vars(narrow)


def test_a_constrained_checkpoint_does_not_fit_a_plain_run_and_says_so(make_project, make_trainer, loader, tmp_path):
    trainer = make_trainer(ConstraintCallback(), enable_checkpointing=True)
    trainer.fit(make_project(), loader)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    plain = make_trainer(ConstraintCallback("none"), max_epochs=2)
    with pytest.raises(ValueError, match=r"with kind='lcw', and this one leaves them plain; constrain them too"):
        plain.fit(make_project(), loader, ckpt_path=tmp_path / "run.ckpt")


@both
def test_fit_test_and_predict_see_the_same_weights(ours, logged, make_project, make_trainer, loader):
    project, trainer = make_project(), make_trainer(*ours(), **logged)
    trainer.fit(project, loader)
    trained = {key: value.clone() for key, value in project.state_dict().items()}
    trainer.test(project, loader, verbose=False)
    assert trainer.callback_metrics["test/sparsity"] == 0  # no sigmoid gives an exact zero
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
