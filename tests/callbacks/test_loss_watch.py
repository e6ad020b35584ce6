"""A training loss that is not finite ends the run, or is said once."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import LossWatch, ShiftMonitor

both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


@pytest.fixture
def spoiled(loader):
    """Return a function of batches' numbers: data in which these hold one number that is not finite."""

    def spoil(*batches, value=torch.nan):
        inputs, labels = (tensor.clone() for tensor in loader.dataset.tensors)
        for batch in batches:
            inputs[16 * batch + 3, 5] = value
        return DataLoader(TensorDataset(inputs, labels), batch_size=16)

    return spoil


def is_finite(module):
    return all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())


class Forms(LightningModule):
    """Steps by hand, in one of the ways in which projects do; ``skips`` are numbers of batches without a loss."""

    def __init__(self, form, skips=()):
        super().__init__()
        self.automatic_optimization = False
        self.form, self.skips = form, skips
        self.layer = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        if batch_idx in self.skips:
            return None
        loss = self.layer(batch[0]).square().mean()
        optimizer = self.optimizers()
        optimizer.zero_grad()
        if self.form == "two losses":
            self.manual_backward(self.layer.weight.square().mean())
        if self.form == "its own backward":
            loss.backward()
        else:
            self.manual_backward(loss)
        optimizer.step()
        returned = {"a tensor": loss, "a dict": {"outputs": 1}, "its own backward": {"loss": loss}}
        return returned.get(self.form)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


FORMS = ["nothing", "a tensor", "a dict", "two losses", "its own backward"]


@both
def test_the_run_ends_one_batch_later_and_names_step_and_batch(make_project, make_trainer, spoiled):
    trainer = make_trainer(LossWatch(), max_epochs=3)
    with pytest.raises(FloatingPointError, match=r"loss is not finite in step 1 \(batch 1 of epoch 0\); look for NaN"):
        trainer.fit(make_project(), spoiled(1))
    assert trainer.global_step == 3


INFINITE = {  # inputs, which sigmoids turn into a finite loss, whose gradient is NaN
    "in the middle": (1, "the training loss is not finite in step 2 "),
    "at the end": (3, "weights are NaN after step 3 "),
}


@pytest.mark.parametrize(("batch", "says"), INFINITE.values(), ids=INFINITE)
def test_weights_that_a_finite_loss_made_nan_are_seen(batch, says, make_project, make_trainer, spoiled):
    with pytest.raises(FloatingPointError, match=says):
        make_trainer(LossWatch()).fit(make_project(), spoiled(batch, value=torch.inf))


def test_control_without_the_watch_the_run_goes_to_its_end_with_nan_weights(make_project, make_trainer, spoiled):
    project, trainer = make_project(), make_trainer(max_epochs=3)
    trainer.fit(project, spoiled(1))
    assert trainer.global_step == 12
    assert not is_finite(project)


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "by hand"])
def test_the_last_loss_is_looked_at_too(automatic, make_project, make_trainer, spoiled):
    project = make_project() if automatic else Forms("nothing")
    with pytest.raises(FloatingPointError, match=r"step 3 \(batch 3 of epoch 0\)"):
        make_trainer(LossWatch()).fit(project, spoiled(3))


def test_a_loss_is_looked_at_before_its_weights_are_validated(make_project, make_trainer, spoiled, loader):
    project = make_project()
    project.on_validation_batch_start = lambda *_: pytest.fail("weights were validated")
    trainer = make_trainer(LossWatch(), num_sanity_val_steps=0)
    with pytest.raises(FloatingPointError, match="step 3 "):
        trainer.fit(project, spoiled(3), loader)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("watches", [True, False], ids=["watched", "control"])
def test_no_checkpoint_holds_nan(watches, value, make_project, make_trainer, spoiled, tmp_path):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(*[LossWatch()] * watches, saves, enable_checkpointing=True)
    if watches:
        with pytest.raises(FloatingPointError, match="step 2 "):
            trainer.fit(make_project(), spoiled(2, value=value))
    else:
        trainer.fit(make_project(), spoiled(2, value=value))
    states = [torch.load(path)["state_dict"] for path in sorted(tmp_path.glob("*.ckpt"))]
    finite = [all(bool(tensor.isfinite().all()) for tensor in state.values()) for state in states]
    assert finite == ([True, True] if watches else [True, True, False, False])


def test_accumulated_gradients_name_the_batch_within_the_step(make_project, make_trainer, spoiled):
    trainer = make_trainer(LossWatch(), accumulate_grad_batches=2)
    with pytest.raises(FloatingPointError, match=r"step 1 \(batch 2 of epoch 0\)"):
        trainer.fit(make_project(), spoiled(2))


@pytest.mark.parametrize("form", FORMS)
def test_losses_of_steps_by_hand_are_seen(form, make_trainer, spoiled, lightning):
    with pytest.raises(FloatingPointError, match=r"step 1 \(batch 1 of epoch 0\)"):
        make_trainer(LossWatch()).fit(Forms(form), spoiled(1))


@pytest.mark.parametrize("form", FORMS)
def test_skipped_batches_are_passed_over(form, make_trainer, spoiled, lightning):
    with pytest.raises(FloatingPointError, match=r"batch 1 of epoch 0"):
        make_trainer(LossWatch()).fit(Forms(form, skips=(0, 2, 3)), spoiled(1))


def test_a_batch_that_an_automatic_step_skips_is_no_fault(make_project, make_trainer, spoiled):
    project = make_project()
    step = project.training_step
    project.training_step = lambda batch, batch_idx: None if batch_idx == 1 else step(batch, batch_idx)
    make_trainer(LossWatch(), max_epochs=2).fit(project, spoiled(1))
    assert is_finite(project)


@both
def test_healthy_runs_say_nothing_and_train_the_same(make_project, make_trainer, loader):
    watched, plain = make_project(), make_project()
    make_trainer(LossWatch(), max_epochs=2).fit(watched, loader, loader)
    make_trainer(max_epochs=2).fit(plain, loader, loader)
    assert all(torch.equal(watched.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_healthy_steps_by_hand_say_nothing(form, make_trainer, loader, lightning):
    make_trainer(LossWatch(), max_epochs=2).fit(Forms(form, skips=(1,)), loader)


def test_layers_that_are_still_lazy_say_nothing(make_project, make_trainer, loader):
    project = make_project()
    project.unused = nn.LazyLinear(3)
    make_trainer(LossWatch()).fit(project, loader)


@both
def test_told_to_warn_it_warns_once_and_trains_on(make_project, make_trainer, spoiled):
    project, trainer = make_project(), make_trainer(LossWatch("warn"), max_epochs=3)
    with pytest.warns(UserWarning, match=r"step 1 \(batch 1 of epoch 0\); training goes on") as said:
        trainer.fit(project, spoiled(1))
    assert len([warning for warning in said if "not finite" in str(warning.message)]) == 1
    assert trainer.global_step == 12


def test_a_run_after_a_failed_one_starts_afresh(make_project, make_trainer, spoiled, loader):
    watch = LossWatch()
    for data in (spoiled(1), spoiled(3)):
        with pytest.raises(FloatingPointError):
            make_trainer(watch).fit(make_project(), data)
    make_trainer(watch).fit(make_project(), loader)


def test_another_word_is_an_error():
    with pytest.raises(ValueError, match="LossWatch needs if_not_finite='stop' or 'warn', got 'raise'"):
        LossWatch("raise")


MONITORED = {
    "the step itself": (
        1,
        1,
        r"step 1 \(batch 1 of epoch 0\) \(ShiftMonitor in step 1: Not finite: the input of 'body.0'\);",
    ),
    "a step after it": (3, 2, r"step 2 \(batch 2 of epoch 0\); look"),
}


@pytest.mark.parametrize(("every", "batch", "says"), MONITORED.values(), ids=MONITORED)
def test_a_monitor_that_has_seen_the_step_names_the_layer(
    every, batch, says, make_project, make_trainer, spoiled, tmp_path
):
    monitor = ShiftMonitor(every_n_steps=every, figures=False)
    trainer = make_trainer(monitor, LossWatch(), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    with pytest.raises(FloatingPointError, match=says):
        trainer.fit(make_project(), spoiled(batch))


def scaled():
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]}


@pytest.mark.parametrize(("settings", "ends"), [(scaled, False), (dict, True)], ids=["scaler", "control"])
def test_a_step_that_the_scaler_skips_is_no_fault(settings, ends, make_project, make_trainer, spoiled):
    project, trainer = make_project(), make_trainer(LossWatch(), max_epochs=6, **settings())
    if ends:
        with pytest.raises(FloatingPointError):
            trainer.fit(project, spoiled(1, 2))
        return
    trainer.fit(project, spoiled(1, 2))
    assert is_finite(project)


def test_ten_skipped_steps_in_a_row_are_a_fault(make_project, make_trainer, spoiled):
    trainer = make_trainer(LossWatch(), max_epochs=6, **scaled())
    with pytest.raises(FloatingPointError, match=r"step 0 \(batch 0 of epoch 0\)"):
        trainer.fit(make_project(), spoiled(0, 1, 2, 3))
    assert 10 <= trainer.fit_loop.total_batch_idx + 1 <= 12


def test_a_skipped_step_that_leaves_nan_in_running_statistics_is_a_fault(make_project, make_trainer, spoiled):
    project = make_project()
    project.body.insert(0, nn.BatchNorm1d(8))
    with pytest.raises(FloatingPointError, match="step 1 "):
        make_trainer(LossWatch(), **scaled()).fit(project, spoiled(1))
