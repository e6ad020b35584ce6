"""Several optimizers, optimizers that were there before, and the learning rate finder."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    LearningRateFinder,
)
from torch import nn

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, constrain
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.weights.weight_ref import named_weights


def test_the_learning_rate_finder_says_what_it_tries_and_finds_a_rate(residual, make_project, make_trainer, loader):
    project = make_project()
    project.lr = 1e-3
    finder = LearningRateFinder(num_training_steps=5)
    with pytest.warns(UserWarning, match="LearningRateFinder tests rates before the first batch initializes"):
        make_trainer(ConstraintCallback(), MinibatchInitCallback(), finder, enable_checkpointing=True).fit(
            project, loader
        )
    assert residual(project) < 1e-6
    assert not torch.equal(project.head.bias, make_project().head.bias)


def test_adversaries_with_two_optimizers_stepped_by_hand(adversaries, residual, ours, logged, make_trainer, loader):
    before = {key: value.clone() for key, value in adversaries.state_dict().items()}
    make_trainer(*ours(), **logged).fit(adversaries, loader)
    assert residual(adversaries) < 1e-6
    assert set(constrained_weights(adversaries)) == set(named_weights(adversaries))
    assert all(
        adversaries.state_dict()[key].shape != value.shape or not torch.equal(adversaries.state_dict()[key], value)
        for key, value in before.items()
        if key in adversaries.state_dict()
    )


def test_a_frozen_networks_biases_stay_while_a_toggled_ones_become_zero(adversaries, make_trainer, loader):
    seen = {}
    adversaries.on_before_optimizer_step = lambda optimizer: seen.setdefault(
        "critic", adversaries.critic[0].bias.clone()
    )
    make_trainer(MinibatchInitCallback()).fit(adversaries, loader)
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


def test_an_optimizer_made_before_the_constraint_trains_it(residual, make_trainer, loader):
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
def test_an_optimizer_that_has_stepped_under_the_constraint_goes_on(residual, optimizer, make_trainer, loader):
    module = OwnOptimizer(optimizer)
    if optimizer == "adagrad":  # which makes its state at once, of the plain weight's shape
        constrain(module)
        module.kept = OPTIMIZERS[optimizer](module.layer.parameters())
    make_trainer(ConstraintCallback()).fit(module, loader)
    before = module.layer.weight.detach().clone()
    make_trainer(ConstraintCallback()).fit(module, loader)
    assert not torch.equal(module.layer.weight, before)
    assert residual(module) < 1e-6
