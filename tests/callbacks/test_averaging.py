"""Weight averaging copies the module, before and while it is constrained."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lcw_lightning import ConstraintCallback, constrain
from lcw_lightning.constraints.constrain import constrained_weights


class Copying(Callback):
    """Copies the trainer with all its callbacks, as jsonargparse's optimizer does whenever a module is copied."""

    def setup(self, trainer, pl_module, stage):
        self.twin = copy.deepcopy({"callbacks": trainer.callbacks[:3], "module": pl_module})["module"]


def test_callbacks_at_work_can_be_copied_with_the_module(residual, ours, make_project, make_trainer, loader):
    project, copying = make_project(), Copying()
    make_trainer(*ours(), copying).fit(project, loader)
    assert residual(copying.twin) < 1e-6
    assert not torch.equal(copying.twin.head.weight, project.head.weight)


AVERAGES = {
    "ema": lambda lightning: lightning.callbacks.EMAWeightAveraging(decay=0.5),
    "swa": lambda lightning: lightning.callbacks.StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1),
}
both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)
averages = pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)


@both
@averages
@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_averages_are_zero_sum_and_trained(
    residual, average, build_in, ours, lightning, make_project, make_trainer, loader
):
    project = make_project(build_in)
    if build_in != "__init__":
        project.build()  # overrides the hook, but has its layers before
    constrained = make_project()
    constrain(constrained)
    make_trainer(*ours(), average(lightning), max_epochs=3).fit(project, loader)
    assert residual(project) < 1e-6
    assert len(constrained_weights(project)) == 3
    assert (project.head.weight - constrained.head.weight).abs().max() > 1e-2


# What the Trainer is given, and what the module's configure_callbacks returns, which Lightning appends.
ORDERS = {
    "trainer": lambda constraint, average: ([average, constraint], []),
    "trainer-and-module": lambda constraint, average: ([average], [constraint]),
    "module": lambda constraint, average: ([], [average, constraint]),
}
orders = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


@both
@averages
@orders
@pytest.mark.parametrize("method", ["parametrize", "project"])
def test_an_average_that_is_set_up_before_the_constraint_averages_what_one_after_it_does(
    method, order, average, lightning, make_project, make_trainer, loader
):
    last, first, plain = make_project(), make_project(), make_project()
    given, returned = order(ConstraintCallback(method=method), average(lightning))
    first.configure_callbacks = lambda: returned
    make_trainer(*given, max_epochs=3).fit(first, loader)
    make_trainer(ConstraintCallback(method=method), average(lightning), max_epochs=3).fit(last, loader)
    make_trainer(average(lightning), max_epochs=3).fit(plain, loader)
    assert constrained_weights(first) == constrained_weights(last)
    assert all(torch.equal(value, last.state_dict()[key]) for key, value in first.state_dict().items())
    assert (first.head.weight - plain.head.weight).abs().max() > 1e-2


@both
@pytest.mark.parametrize(("average", "build_in"), [("swa", "setup"), ("swa", "configure_model"), ("ema", "setup")])
def test_an_average_of_layers_that_do_not_exist_yet_is_refused(
    average, build_in, lightning, make_project, make_trainer, loader
):
    average = AVERAGES[average](lightning)
    with pytest.raises(ValueError, match=r"before its setup\(\) or configure_model\(\) builds the layers"):
        make_trainer(ConstraintCallback(), average).fit(make_project(build_in), loader)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_a_layer_that_comes_after_the_average_is_named(hook, lightning, make_project, make_trainer, loader):
    project = make_project()
    setattr(project, hook, lambda **stage: setattr(project, "head", nn.Linear(16, 3)))
    with pytest.raises(ValueError, match=r"'head\.weight' were created after the module was constrained"):
        make_trainer(ConstraintCallback(), AVERAGES["ema"](lightning)).fit(project, loader)


@both
@pytest.mark.parametrize("step", [1, -1], ids=["constraint-first", "average-first"])
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_ema_of_layers_built_in_configure_model_resumes_bit_exactly(
    step, lightning, make_project, make_trainer, loader, tmp_path
):
    def callbacks(*more):
        return [*[ConstraintCallback(), AVERAGES["ema"](lightning)][::step], *more]

    whole, resumed = make_project("configure_model"), make_project("configure_model")
    make_trainer(*callbacks(), max_epochs=3).fit(whole, loader)
    first = make_trainer(*callbacks(lightning.callbacks.ModelCheckpoint(tmp_path / "run")), enable_checkpointing=True)
    first.fit(make_project("configure_model"), loader)
    path = first.checkpoint_callback.best_model_path
    make_trainer(*callbacks(), max_epochs=3).fit(resumed, loader, ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
