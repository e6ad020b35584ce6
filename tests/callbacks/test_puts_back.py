"""A run that fails before its first backward pass leaves the module as it was."""

import copy

import pytest
import torch
from torch import nn

from lcw_lightning import ConstraintCallback, MinibatchInitCallback
from lcw_lightning.constraints.constrain import constrained_weights

METHODS = pytest.mark.parametrize("method", ["parametrize", "project"])
ORDERS = pytest.mark.parametrize("step", [1, -1], ids=["constraint-first", "initialization-first"])


def no_optimizer_for_the_head(project):
    project.configure_optimizers = lambda: torch.optim.SGD(project.body.parameters(), lr=0.1)
    return "no optimizer holds the constrained weights"


def a_layer_that_comes_too_late(project):
    project.on_fit_start = lambda: setattr(project, "extra", nn.Linear(4, 4))
    return "were created after the module was constrained"


def a_forward_that_fails(project):
    def fail(*_):
        raise ValueError("the head fails")

    project.head.register_forward_hook(fail)
    return "the head fails"


FAILURES = [no_optimizer_for_the_head, a_layer_that_comes_too_late, a_forward_that_fails]


@METHODS
@ORDERS
@pytest.mark.parametrize("spoil", FAILURES, ids=[failure.__name__ for failure in FAILURES])
def test_the_module_is_plain_and_has_its_values_and_parameters(spoil, method, step, make_project, make_trainer, loader):
    project = make_project()
    message = spoil(project)
    before, held = copy.deepcopy(project.state_dict()), dict(project.named_parameters())
    with pytest.raises(ValueError, match=message):
        make_trainer(*[ConstraintCallback(method=method), MinibatchInitCallback()][::step]).fit(project, loader)
    assert constrained_weights(project) == {}
    assert type(project.head) is nn.Linear
    assert all(torch.equal(before[name], project.state_dict()[name]) for name in before)
    assert all(dict(project.named_parameters())[name] is parameter for name, parameter in held.items())


@METHODS
@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "by-hand"])
def test_an_error_after_the_first_step_takes_nothing_back(method, by_hand, make_project, make_trainer, loader):
    project = make_project()
    project.automatic_optimization = not by_hand
    weights = []

    def training_step(batch, batch_idx):
        if batch_idx == 2:
            raise ValueError("the third batch fails")
        loss = nn.functional.cross_entropy(project(batch[0]), batch[1])
        if not by_hand:
            return loss
        optimizer = project.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss.backward()  # past Lightning
        optimizer.step()
        return None

    project.training_step = training_step
    project.on_train_batch_end = lambda *_: weights.append(project.head.weight.detach().clone())
    with pytest.raises(ValueError, match="the third batch fails"):
        make_trainer(ConstraintCallback(method=method), MinibatchInitCallback()).fit(project, loader)
    assert len(constrained_weights(project)) == 3
    assert torch.equal(project.head.weight, weights[-1])
