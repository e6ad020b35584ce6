import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, ShiftMonitor, constrain, minibatch_init_
from lcw_lightning.constraints.constrain import constrained_weights

both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


class Snapshots(Callback):
    """Keeps the weights as they are after each backward pass, before the optimizer steps."""

    def __init__(self):
        self.states = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.states.append({key: value.clone() for key, value in pl_module.state_dict().items()})


def first_batch(loader):
    return next(iter(loader))[0]


@both
@pytest.mark.parametrize("kind", ["none", "lcw"])
def test_the_first_step_trains_weights_initialized_on_the_first_batch(kind, make_project, make_trainer, loader):
    project, expected, snapshots = make_project(), make_project(), Snapshots()
    make_trainer(ConstraintCallback(kind), MinibatchInitCallback(), snapshots).fit(project, loader)
    constrain(expected, kind)
    minibatch_init_(expected, first_batch(loader))
    for key, value in expected.state_dict().items():
        assert torch.equal(snapshots.states[0][key], value), key


def test_it_happens_once(make_project, make_trainer, loader):
    project, snapshots = make_project(optimizer_kwargs={"lr": 0.0}), Snapshots()
    make_trainer(MinibatchInitCallback(), snapshots, max_epochs=2).fit(project, loader)
    assert len(snapshots.states) == 8
    for state in snapshots.states:
        assert all(torch.equal(state[key], value) for key, value in snapshots.states[0].items())


def test_settings_reach_the_layers(make_project, make_trainer, loader):
    project, expected, snapshots = make_project(), make_project(), Snapshots()
    make_trainer(MinibatchInitCallback(target_std=0.5, granularity="unit"), snapshots).fit(project, loader)
    minibatch_init_(expected, first_batch(loader), target_std=0.5, granularity="unit")
    assert torch.equal(snapshots.states[0]["head.weight"], expected.head.weight)


def test_granularity_none_leaves_weights_as_they_were_drawn(make_project, make_trainer, loader):
    project, plain = make_project(), make_project()
    make_trainer(MinibatchInitCallback(granularity="none")).fit(project, loader)
    make_trainer().fit(plain, loader)
    assert torch.equal(project.head.weight, plain.head.weight)


def test_resume_does_not_initialize_again(make_project, make_trainer, loader, tmp_path):
    callbacks = ConstraintCallback(), MinibatchInitCallback()
    whole = make_project()
    make_trainer(*callbacks, max_epochs=3).fit(whole, loader)
    first = make_trainer(*callbacks, ModelCheckpoint(tmp_path / "run"), enable_checkpointing=True)
    first.fit(make_project(), loader)
    resumed = make_project()
    path = first.checkpoint_callback.best_model_path
    make_trainer(*callbacks, max_epochs=3).fit(resumed, loader, ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_a_second_fit_of_a_trained_module_does_not_initialize_again(make_project, make_trainer, loader):
    project = make_project()
    make_trainer(MinibatchInitCallback()).fit(project, loader)
    trained, snapshots = project.head.weight.clone(), Snapshots()
    make_trainer(MinibatchInitCallback(), snapshots).fit(project, loader)
    assert torch.equal(snapshots.states[0]["head.weight"], trained)


def test_validation_before_training_sees_no_hook(make_project, make_trainer, loader):
    project, plain = make_project(), make_project()
    make_trainer(MinibatchInitCallback()).validate(project, loader)
    assert torch.equal(project.head.weight, plain.head.weight)


def test_a_layer_that_the_first_batch_does_not_reach_is_reported(make_project, make_trainer, loader):
    project = make_project()
    project.spare = nn.Linear(4, 4)
    before = project.spare.weight.clone()
    with pytest.warns(UserWarning, match=r"did not reach 'spare\.weight'"):
        make_trainer(MinibatchInitCallback()).fit(project, loader)
    assert torch.equal(project.spare.weight, before)


def test_nan_in_the_first_batch_stops_the_run_and_leaves_no_hook(make_project, make_trainer):
    project = make_project()
    dataset = TensorDataset(torch.full((4, 8), float("nan")), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"those of 'body\.0\.weight' are NaN or infinite"):
        make_trainer(MinibatchInitCallback()).fit(project, DataLoader(dataset))
    assert not any(module._forward_pre_hooks for module in project.modules())


def test_it_works_where_layers_are_built_late(make_project, make_trainer, loader):
    project, snapshots = make_project("configure_model"), Snapshots()
    make_trainer(ConstraintCallback(), MinibatchInitCallback(), snapshots).fit(project, loader)
    assert len(constrained_weights(project)) == 3
    assert not snapshots.states[0]["head.bias"].any()


def test_fast_dev_run_initializes_on_its_one_batch(make_project, make_trainer, loader):
    project, snapshots = make_project(), Snapshots()
    make_trainer(MinibatchInitCallback(), snapshots, fast_dev_run=True).fit(project, loader)
    assert not snapshots.states[0]["head.bias"].any()


def compiled(project, make_trainer, loader, calls=None):
    """The project with its body compiled, and compiled code already made for training and evaluation."""

    def backend(graph, example_inputs):
        return lambda *args: (calls is not None and calls.append(1), graph.forward(*args))[1]

    torch.compiler.reset()
    project.body.compile(backend=backend)
    project(first_batch(loader))
    make_trainer().validate(project, loader, verbose=False)
    return project


def test_an_already_compiled_network_is_initialized_all_the_same(make_project, make_trainer, loader):
    project, eager, snapshots, expected = make_project(), make_project(), Snapshots(), Snapshots()
    compiled(project, make_trainer, loader)
    make_trainer(MinibatchInitCallback(), snapshots).fit(project, loader)
    make_trainer(MinibatchInitCallback(), expected).fit(eager, loader)
    for key, value in expected.states[0].items():
        torch.testing.assert_close(snapshots.states[0][key], value, msg=key)


def test_a_compiled_network_runs_compiled_after_the_first_batch(make_project, make_trainer, loader, tmp_path):
    calls = []
    project = compiled(make_project(), make_trainer, loader, calls)
    calls.clear()
    callbacks = MinibatchInitCallback(), ShiftMonitor(every_n_steps=50)
    make_trainer(*callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=1).fit(project, loader)
    assert len(calls) == 3  # of four batches


def test_a_first_batch_that_the_module_skips_is_not_the_first(make_project, make_trainer, loader):
    project, snapshots = make_project(), Snapshots()
    project.on_train_batch_start = lambda batch, batch_idx: -1 if project.current_epoch == 0 else None
    make_trainer(MinibatchInitCallback(), snapshots, max_epochs=2).fit(project, loader)
    assert not snapshots.states[0]["head.bias"].any()
    assert not any(module._forward_pre_hooks for module in project.modules())


def test_a_run_that_failed_in_its_first_batch_can_be_started_again(make_project, make_trainer, loader):
    project, snapshots, callback = make_project(), Snapshots(), MinibatchInitCallback()
    spoiled = DataLoader(TensorDataset(torch.full((4, 8), float("nan")), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        make_trainer(callback).fit(project, spoiled)
    make_trainer(callback, snapshots).fit(project, loader)
    z = snapshots.states[0]["body.0.weight"] @ first_batch(loader).T
    assert z.std(correction=0).item() == pytest.approx(1, rel=1e-4)


@both
def test_after_a_tuner_which_is_warned_of_the_run_initializes(lightning, make_project, make_trainer, loader):
    project, snapshots = make_project(), Snapshots()
    project.lr = 0.1
    finder = lightning.callbacks.LearningRateFinder(num_training_steps=3)
    trainer = make_trainer(finder, MinibatchInitCallback(), snapshots, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"rescale them with minibatch_init_\(module, inputs\) before fit"):
        trainer.fit(project, loader)
    assert any(not state["head.bias"].any() for state in snapshots.states)


@pytest.mark.filterwarnings("ignore:.*`limit_train_batches=0`")
def test_a_run_without_training_batches_changes_nothing(make_project, make_trainer, loader):
    project, plain = make_project(), make_project()
    make_trainer(MinibatchInitCallback(), limit_train_batches=0).fit(project, loader)
    assert torch.equal(project.head.weight, plain.head.weight)


def test_training_sees_every_batch_once_and_in_order(make_project, make_trainer, loader):
    seen = []
    project = make_project()
    step = project.training_step
    project.training_step = lambda batch, batch_idx: (seen.append(batch[0]), step(batch, batch_idx))[1]
    make_trainer(MinibatchInitCallback()).fit(project, loader)
    assert [batch.tolist() for batch in seen] == [batch[0].tolist() for batch in loader]
