import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, ShiftedReLU
from lcw_lightning.callbacks.edge_of_chaos_init import EdgeOfChaosInitCallback
from lcw_lightning.constraints.constrain import constrain
from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_

both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


class Snapshots(Callback):
    """Keeps the weights as they are after each backward pass, before the optimizer steps."""

    def __init__(self):
        self.states = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.states.append({key: value.clone() for key, value in pl_module.state_dict().items()})


class Seeded(EdgeOfChaosInitCallback):
    """Draws from a seed, to compare with the function."""

    def armed(self, module):
        torch.manual_seed(7)
        return super().armed(module)


@pytest.fixture
def make_sparse(make_project):
    """Return a function that makes the project with a sparse activation in place of its sigmoid."""

    def make(*args, **kwargs):
        project = make_project(*args, **kwargs)
        build = project.build

        def build_sparse():
            build()
            project.body[1] = project.body[3] = ShiftedReLU(0.3)

        project.build = build_sparse
        if hasattr(project, "body"):
            build_sparse()
        return project

    return make


def first_batch(loader):
    return next(iter(loader))[0]


@both
@pytest.mark.parametrize("weights", ["gaussian", "delta_orthogonal"])
@pytest.mark.parametrize("kind", ["none", "lcw", "cwn"])
def test_the_first_step_trains_what_the_function_draws(kind, weights, make_sparse, make_trainer, loader):
    project, expected, snapshots = make_sparse(), make_sparse(), Snapshots()
    make_trainer(ConstraintCallback(kind), Seeded(weights, q=2.0), snapshots).fit(project, loader)
    constrain(expected, kind)
    inputs = first_batch(loader)
    torch.manual_seed(7)
    edge_of_chaos_init_(expected, inputs, q=2.0, weights=weights)
    for key, value in expected.state_dict().items():
        assert torch.equal(snapshots.states[0][key], value), key


def test_it_happens_once(make_sparse, make_trainer, loader):
    project, snapshots = make_sparse(optimizer_kwargs={"lr": 0.0}), Snapshots()
    make_trainer(EdgeOfChaosInitCallback(), snapshots, max_epochs=2).fit(project, loader)
    assert len(snapshots.states) == 8
    for state in snapshots.states:
        assert all(torch.equal(state[key], value) for key, value in snapshots.states[0].items())


def test_weights_none_leaves_everything_as_it_was_drawn(make_sparse, make_trainer, loader):
    project, plain = make_sparse(), make_sparse()
    make_trainer(EdgeOfChaosInitCallback("none"), MinibatchInitCallback(granularity="none")).fit(project, loader)
    make_trainer().fit(plain, loader)
    assert torch.equal(project.head.weight, plain.head.weight)


def test_resume_does_not_draw_again(make_sparse, make_trainer, loader, tmp_path):
    callbacks = ConstraintCallback(), Seeded()
    whole = make_sparse()
    make_trainer(*callbacks, max_epochs=3).fit(whole, loader)
    first = make_trainer(*callbacks, ModelCheckpoint(tmp_path / "run"), enable_checkpointing=True)
    first.fit(make_sparse(), loader)
    resumed = make_sparse()
    path = first.checkpoint_callback.best_model_path
    make_trainer(*callbacks, max_epochs=3).fit(resumed, loader, ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_a_second_fit_of_a_trained_module_does_not_draw_again(make_sparse, make_trainer, loader):
    project = make_sparse()
    make_trainer(EdgeOfChaosInitCallback()).fit(project, loader)
    trained, snapshots = project.head.weight.clone(), Snapshots()
    make_trainer(EdgeOfChaosInitCallback(), snapshots).fit(project, loader)
    assert torch.equal(snapshots.states[0]["head.weight"], trained)


def test_it_works_where_layers_are_built_late(make_sparse, make_trainer, loader):
    project, snapshots = make_sparse("configure_model"), Snapshots()
    make_trainer(ConstraintCallback(), EdgeOfChaosInitCallback(), snapshots).fit(project, loader)
    assert snapshots.states[0]["body.0.bias"].std() > 0.2


def test_a_compiled_network_is_matched_in_its_first_batch_and_runs_compiled_after_it(make_sparse, make_trainer, loader):
    calls = []

    def backend(graph, example_inputs):
        return lambda *args: (calls.append(1), graph.forward(*args))[1]

    torch.compiler.reset()
    project, eager, found, expected = make_sparse(), make_sparse(), Snapshots(), Snapshots()
    project.body.compile(backend=backend)
    project(first_batch(loader))
    calls.clear()
    make_trainer(Seeded(), found).fit(project, loader)
    make_trainer(Seeded(), expected).fit(eager, loader)
    for key, value in expected.states[0].items():
        torch.testing.assert_close(found.states[0][key], value, msg=key)
    assert len(calls) == 3  # of four batches


def test_a_run_that_failed_in_its_first_batch_can_be_started_again(make_sparse, make_trainer, loader):
    project, snapshots, callback = make_sparse(), Snapshots(), EdgeOfChaosInitCallback()
    spoiled = DataLoader(TensorDataset(torch.full((4, 8), float("nan")), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"'body\.0\.weight', the first layer, are NaN or infinite"):
        make_trainer(callback).fit(project, spoiled)
    assert not any(module._forward_pre_hooks for module in project.modules())
    make_trainer(callback, snapshots).fit(project, loader)
    z = snapshots.states[0]["body.0.weight"] @ first_batch(loader).T
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
        with pytest.raises(ValueError, match=r"turn that one off \(--minibatch_init\.granularity=none\)"):
            make_trainer(*callbacks).fit(project, loader)
    assert torch.equal(project.head.weight, plain.head.weight)
    make_trainer(MinibatchInitCallback(), EdgeOfChaosInitCallback("none")).fit(project, loader)


def test_activations_that_differ_end_the_run_with_the_way_out(make_project, make_trainer, loader):
    project = make_project()
    project.body[1] = nn.Tanh()
    with pytest.raises(ValueError, match=r"Tanh\(\), Sigmoid\(\); give the one .*activation=\.\.\."):
        make_trainer(EdgeOfChaosInitCallback()).fit(project, loader)


@both
def test_a_learning_rate_finder_is_warned_of_and_the_run_draws_after_it(lightning, make_sparse, make_trainer, loader):
    project, snapshots = make_sparse(), Snapshots()
    project.lr = 0.1
    finder = lightning.callbacks.LearningRateFinder(num_training_steps=3)
    trainer = make_trainer(finder, EdgeOfChaosInitCallback(), snapshots, enable_checkpointing=True)
    with pytest.warns(
        UserWarning, match=r"draw them with edge_of_chaos_init_\(module, inputs\) before fit, and leave Edge"
    ):
        trainer.fit(project, loader)
    assert any((state["body.0.bias"] - make_sparse().body[0].bias).abs().max() > 0.5 for state in snapshots.states)
