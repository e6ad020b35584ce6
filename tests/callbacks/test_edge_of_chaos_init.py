import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback
from lcw_lightning.callbacks.edge_of_chaos_init import EdgeOfChaosInitCallback
from lcw_lightning.constraints.constrain import constrain
from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_

both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


class Seeded(EdgeOfChaosInitCallback):
    """Draws from a seed, to compare with the function."""

    def armed(self, module, outcome, meet):
        torch.manual_seed(7)
        return super().armed(module, outcome, meet)


@both
@pytest.mark.parametrize("weights", ["gaussian", "delta_orthogonal"])
@pytest.mark.parametrize("kind", ["none", "lcw", "cwn"])
def test_the_first_step_trains_what_the_function_draws(
    kind, weights, make_snapshots, first_batch, make_sparse, make_trainer, loader
):
    project, expected, snapshots = make_sparse(), make_sparse(), make_snapshots()
    make_trainer(ConstraintCallback(kind), Seeded(weights, q=2.0), snapshots).fit(project, loader)
    constrain(expected, kind)
    inputs = first_batch
    torch.manual_seed(7)
    edge_of_chaos_init_(expected, inputs, q=2.0, weights=weights)
    for key, value in expected.state_dict().items():
        assert torch.equal(snapshots.states[0][key], value), key


def test_it_works_where_layers_are_built_late(make_snapshots, make_sparse, make_trainer, loader):
    project, snapshots = make_sparse("configure_model"), make_snapshots()
    make_trainer(ConstraintCallback(), EdgeOfChaosInitCallback(), snapshots).fit(project, loader)
    assert snapshots.states[0]["body.0.bias"].std() > 0.2


def test_a_run_that_failed_in_its_first_batch_can_be_started_again(
    make_snapshots, first_batch, make_sparse, make_trainer, loader
):
    project, snapshots, callback = make_sparse(), make_snapshots(), EdgeOfChaosInitCallback()
    spoiled = DataLoader(TensorDataset(torch.full((4, 8), float("nan")), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"'body\.0\.weight', the first layer, are NaN or infinite"):
        make_trainer(callback).fit(project, spoiled)
    assert not any(module._forward_pre_hooks for module in project.modules())
    make_trainer(callback, snapshots).fit(project, loader)
    z = snapshots.states[0]["body.0.weight"] @ first_batch.T
    sigma_b = snapshots.states[0]["body.0.bias"].std().item()
    assert z.square().mean().item() == pytest.approx(1 - sigma_b**2, abs=5 * sigma_b**2 * math.sqrt(2 / 16))


def test_a_first_batch_that_reaches_no_layer_is_reported(make_sparse, make_trainer, loader):
    project = make_sparse()
    drawn = project.head.weight.clone()
    project.training_step = lambda batch, batch_idx: project.head.bias.square().sum() + 0 * project.head.weight.sum()
    with pytest.warns(UserWarning, match=r"did not reach 'body\.0.*; they are drawn, but not matched to the data"):
        make_trainer(EdgeOfChaosInitCallback()).fit(project, loader)
    assert not torch.equal(project.head.weight, drawn)


def test_minibatch_initialization_beside_it_is_refused_before_anything_happens(make_sparse, make_trainer, loader):
    project, plain = make_sparse(), make_sparse()
    both = MinibatchInitCallback(), EdgeOfChaosInitCallback()
    for callbacks in (both, both[::-1]):
        with pytest.raises(ValueError, match=r"turn that off \(--minibatch_init\.granularity=none\)"):
            make_trainer(*callbacks).fit(project, loader)
    assert torch.equal(project.head.weight, plain.head.weight)
    make_trainer(MinibatchInitCallback(), EdgeOfChaosInitCallback("none")).fit(project, loader)


def test_activations_that_differ_end_the_run_with_the_way_out(make_project, make_trainer, loader):
    project = make_project()
    project.body[1] = nn.Tanh()
    with pytest.raises(ValueError, match=r"Tanh\(\), Sigmoid\(\); give the one .*activation=\.\.\."):
        make_trainer(EdgeOfChaosInitCallback()).fit(project, loader)
