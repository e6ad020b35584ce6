"""ShiftMonitor warns once of numbers that are not finite, unless LossWatch says so."""

import warnings

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import LossWatch, ShiftMonitor


@pytest.fixture
def fit(make_project, make_trainer, tmp_path):
    """Return a function that trains with a monitor of every second step, and returns the monitor and what was said."""

    def run(*callbacks, data, project=None, **settings):
        monitor = ShiftMonitor(every_n_steps=2, figures=False)
        trainer = make_trainer(monitor, *callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=1, **settings)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(make_project() if project is None else project, data)
        return monitor, [str(warning.message) for warning in said if "ot finite" in str(warning.message)]

    return run


@pytest.fixture
def spoiled(loader):
    """Return a function that makes the loader with a number in one batch that is infinite or NaN."""

    def make(batch, value):
        inputs, labels = loader.dataset.tensors
        inputs = inputs.clone()
        inputs[batch * loader.batch_size, 0] = value
        return DataLoader(TensorDataset(inputs, labels), batch_size=loader.batch_size)

    return make


def test_it_warns_once_and_names_the_step_and_the_first_layer(fit, spoiled):
    monitor, said = fit(data=spoiled(2, torch.nan), max_epochs=3)
    (warning,) = said
    assert "ShiftMonitor in step 2: Not finite: the input of 'body.0'. Training goes on; look for NaN" in warning
    assert monitor.not_finite == (2, "Not finite: the input of 'body.0'.")


def test_healthy_runs_say_nothing(fit, loader):
    monitor, said = fit(data=loader)
    assert not said
    assert monitor.not_finite is None


def test_a_loss_of_which_loss_watch_says_it_is_not_said_twice(fit, spoiled):
    _, said = fit(LossWatch("warn"), data=spoiled(2, torch.nan), max_epochs=2)
    (warning,) = said
    assert warning.startswith("the training loss is not finite in step 2 ")
    assert "ShiftMonitor in step 2: Not finite: the input of 'body.0'" in warning


def test_a_finite_loss_is_said_beside_loss_watch(fit, spoiled):
    # Sigmoids turn infinite inputs into a finite loss.
    _, said = fit(LossWatch("warn"), data=spoiled(2, torch.inf), max_steps=3)
    assert said[0].startswith("ShiftMonitor in step 2: Not finite: the input of 'body.0'")


class Overflow(torch.autograd.Function):
    """Passes its input, and an infinite gradient."""

    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, torch.inf)


@pytest.mark.parametrize("is_scaled", [True, False], ids=["scaler", "control"])
def test_gradients_whose_step_a_scaler_skips_say_nothing(is_scaled, fit, make_project, loader):
    project = make_project()
    project.head.register_forward_hook(lambda _, __, output: Overflow.apply(output))
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
    settings = {"plugins": [plugin]} if is_scaled else {}
    monitor, said = fit(data=loader, project=project, max_steps=1, **settings)
    assert bool(said) != is_scaled
    assert (monitor.not_finite is None) == is_scaled  # else a later failure would be blamed on this step
    assert is_scaled or monitor.not_finite[1].startswith("Not finite: dL/dz of 'body.2'")


def test_a_second_run_warns_anew(fit, spoiled):
    for _ in range(2):
        assert len(fit(data=spoiled(0, torch.nan), max_steps=1)[1]) == 1
