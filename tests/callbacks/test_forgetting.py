"""What callbacks keep after a run: nothing of the module, so that they pickle and copy alone."""

import copy
import io
import pickle

import pytest
import torch
from lightning.pytorch import Callback

from lcw_lightning import ConstraintCallback, EdgeOfChaosInitCallback, LossWatch, MinibatchInitCallback, ShiftMonitor
from lcw_lightning.constraints.constrain import constrained_weights

CALLBACKS = {
    "constraint": lambda: [ConstraintCallback()],
    "project": lambda: [ConstraintCallback(method="project")],
    "minibatch-init": lambda: [ConstraintCallback(), MinibatchInitCallback()],
    "edge-of-chaos-init": lambda: [ConstraintCallback(), EdgeOfChaosInitCallback()],
    "loss-watch": lambda: [ConstraintCallback(), LossWatch()],
    "monitor": lambda: [ConstraintCallback(), ShiftMonitor(every_n_steps=1, figures=False, histograms=True)],
}
callbacks = pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)


def refers_to(value, module):
    """Whether a pickle of the value takes the module along."""
    seen = []

    class Pickler(pickle.Pickler):
        def reducer_override(self, other):
            seen.append(other)
            return NotImplemented

    Pickler(io.BytesIO()).dump(value)
    return any(part is module for part in seen)


def assert_alone(ours, project):
    for callback in ours:
        assert not refers_to(callback, project)
        settings = {key: value for key, value in vars(callback).items() if not key.startswith("_")}
        for twin in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
            assert settings.items() <= vars(twin).items()


@callbacks
@pytest.mark.filterwarnings("ignore:.*are evaluated as they are")
@pytest.mark.parametrize("run", ["fit", "validate", "test", "predict"])
def test_after_a_run_callbacks_pickle_without_the_module(run, make, make_project, make_trainer, loader, logged):
    ours, project = make(), make_project()
    trainer = make_trainer(*ours, **logged)
    loaders = (loader, loader) if run == "fit" else (loader,)
    getattr(trainer, run)(project, *loaders)
    assert_alone(ours, project)


class Stop(Callback):
    """Raises in one of Lightning's hooks."""

    def __init__(self, hook, error):
        self.error = error
        setattr(self, hook, self.stop)

    def stop(self, *args, **kwargs):
        raise self.error


STOPS = {
    "setup": ("setup", ValueError),
    "sanity-check": ("on_sanity_check_start", ValueError),
    "in-a-batch": ("on_before_backward", ValueError),
    "in-validation": ("on_validation_batch_start", ValueError),
    "interrupted": ("on_before_backward", KeyboardInterrupt),
    "terminated": ("on_train_batch_end", SystemExit),
}


@callbacks
@pytest.mark.parametrize(("hook", "error"), STOPS.values(), ids=STOPS)
def test_after_a_run_that_ended_early_too(hook, error, make, make_project, make_trainer, loader, logged):
    ours, project = make(), make_project()
    trainer = make_trainer(*ours, Stop(hook, error), **logged)
    with pytest.raises((error, SystemExit)):
        trainer.fit(project, loader, loader)
    assert_alone(ours, project)


def test_without_it_a_callback_of_lightnings_takes_the_module_along(make_project, make_trainer, loader):
    other, project = Callback(), make_project()
    make_trainer(other).fit(project, loader)
    assert refers_to(other, project)


class Keeping(Callback):
    """Pickles whatever there is in the midst of training."""

    def __init__(self):
        self.pickled = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.pickled.append(pickle.dumps([pl_module, *trainer.callbacks[:2]]))


def test_callbacks_and_modules_pickle_in_the_midst_of_training(make_project, make_trainer, loader):
    keeping = Keeping()
    make_trainer(ConstraintCallback(), ShiftMonitor(every_n_steps=1), keeping).fit(project := make_project(), loader)
    module, constraint, monitor = pickle.loads(keeping.pickled[-1])
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in project.state_dict().items())
    make_trainer(constraint, monitor, max_epochs=2).fit(module, loader)
    assert constrained_weights(module) == constrained_weights(project)


def test_callbacks_serve_a_second_module_after_that(make_project, make_trainer, loader, residual):
    ours = [ConstraintCallback(), MinibatchInitCallback()]
    for _ in range(2):
        project = make_project()
        make_trainer(*ours).fit(project, loader)
        assert residual(project) < 1e-6
        ours = pickle.loads(pickle.dumps(ours))
