"""What MinibatchInitCallback and EdgeOfChaosInitCallback have in common: they initialize once, on the first batch."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lcw_lightning import ConstraintCallback, EdgeOfChaosInitCallback, MinibatchInitCallback, ShiftMonitor

CALLBACKS = {"minibatch": MinibatchInitCallback, "edge-of-chaos": EdgeOfChaosInitCallback}
both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)
initializing = pytest.mark.parametrize("initialize", CALLBACKS.values(), ids=CALLBACKS)


def fit_seeded(trainer, *arguments, **kwargs):
    torch.manual_seed(7)
    trainer.fit(*arguments, **kwargs)


@initializing
def test_it_happens_once(initialize, make_snapshots, make_sparse, make_trainer, loader):
    project, snapshots = make_sparse(optimizer_kwargs={"lr": 0.0}), make_snapshots()
    drawn = project.head.weight.clone()
    make_trainer(initialize(), snapshots, max_epochs=2).fit(project, loader)
    assert len(snapshots.states) == 8
    for state in snapshots.states:
        assert all(torch.equal(state[key], value) for key, value in snapshots.states[0].items())
    assert not torch.equal(snapshots.states[0]["head.weight"], drawn)


OFF = {
    "minibatch": lambda: [MinibatchInitCallback(granularity="none")],
    "edge-of-chaos": lambda: [EdgeOfChaosInitCallback("none")],
    "both": lambda: [EdgeOfChaosInitCallback("none"), MinibatchInitCallback(granularity="none")],
}


@pytest.mark.parametrize("make_callbacks", OFF.values(), ids=OFF)
def test_none_leaves_weights_as_they_were_drawn(make_callbacks, make_sparse, make_trainer, loader):
    project, plain = make_sparse(), make_sparse()
    make_trainer(*make_callbacks()).fit(project, loader)
    make_trainer().fit(plain, loader)
    assert torch.equal(project.head.weight, plain.head.weight)


@initializing
def test_resume_does_not_initialize_again(initialize, make_sparse, make_trainer, loader, tmp_path):
    callbacks = ConstraintCallback(), initialize()
    whole, resumed = make_sparse(), make_sparse()
    fit_seeded(make_trainer(*callbacks, max_epochs=3), whole, loader)
    first = make_trainer(*callbacks, ModelCheckpoint(tmp_path / "run"), enable_checkpointing=True)
    fit_seeded(first, make_sparse(), loader)
    path = first.checkpoint_callback.best_model_path
    make_trainer(*callbacks, max_epochs=3).fit(resumed, loader, ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@initializing
def test_a_second_fit_of_a_trained_module_does_not_initialize_again(
    initialize, make_snapshots, make_sparse, make_trainer, loader
):
    project, snapshots = make_sparse(), make_snapshots()
    make_trainer(initialize()).fit(project, loader)
    trained = project.head.weight.clone()
    make_trainer(initialize(), snapshots).fit(project, loader)
    assert torch.equal(snapshots.states[0]["head.weight"], trained)


@pytest.fixture
def compiled(make_sparse, make_trainer, loader, first_batch):
    """A project with its body compiled, and code already made for training and evaluation; .calls are those of it."""
    project, project.calls = make_sparse(), []

    def backend(graph, example_inputs):
        return lambda *args: (project.calls.append(1), graph.forward(*args))[1]

    torch.compiler.reset()
    project.body.compile(backend=backend)
    project(first_batch)
    make_trainer().validate(project, loader, verbose=False)
    project.calls.clear()
    return project


@initializing
def test_an_already_compiled_network_is_initialized_all_the_same(
    initialize, compiled, make_snapshots, make_sparse, make_trainer, loader
):
    found, expected = make_snapshots(), make_snapshots()
    fit_seeded(make_trainer(initialize(), found), compiled, loader)
    fit_seeded(make_trainer(initialize(), expected), make_sparse(), loader)
    for key, value in expected.states[0].items():
        torch.testing.assert_close(found.states[0][key], value, msg=key)


@initializing
def test_a_compiled_network_runs_compiled_after_the_first_batch(initialize, compiled, make_trainer, loader, tmp_path):
    callbacks = initialize(), ShiftMonitor(every_n_steps=50)
    make_trainer(*callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=1).fit(compiled, loader)
    assert len(compiled.calls) == 3  # of four batches


@initializing
def test_patterns_leave_layers_as_they_are_and_are_checked(
    initialize, make_snapshots, make_sparse, make_trainer, loader
):
    project, plain, snapshots = make_sparse(), make_sparse(), make_snapshots()
    fit_seeded(make_trainer(initialize(exclude=["head.*"]), snapshots), project, loader)
    assert torch.equal(snapshots.states[0]["head.weight"], plain.head.weight)
    assert not torch.equal(snapshots.states[0]["body.0.weight"], plain.body[0].weight)
    with pytest.raises(ValueError, match=r"the pattern 'tail\.\*' matches no weight"):
        make_trainer(initialize(include=["tail.*"])).fit(make_sparse(), loader)


BEFORE_A_FINDER = {
    "minibatch": (
        MinibatchInitCallback,
        r"rescale them with minibatch_init_\(module, inputs\) before fit",
        lambda state, drawn: not state["head.bias"].any(),
    ),
    "edge-of-chaos": (
        EdgeOfChaosInitCallback,
        r"draw them with edge_of_chaos_init_\(module, inputs\) before fit, and leave Edge",
        lambda state, drawn: (state["body.0.bias"] - drawn.body[0].bias).abs().max() > 0.5,
    ),
}


@both
@pytest.mark.parametrize(("initialize", "message", "initialized"), BEFORE_A_FINDER.values(), ids=BEFORE_A_FINDER)
def test_a_learning_rate_finder_is_warned_of_and_the_run_initializes_after_it(
    initialize, message, initialized, lightning, make_snapshots, make_sparse, make_trainer, loader
):
    project, snapshots = make_sparse(), make_snapshots()
    project.lr = 0.1
    finder = lightning.callbacks.LearningRateFinder(num_training_steps=3)
    trainer = make_trainer(finder, initialize(), snapshots, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=message):
        trainer.fit(project, loader)
    assert any(initialized(state, make_sparse()) for state in snapshots.states)
