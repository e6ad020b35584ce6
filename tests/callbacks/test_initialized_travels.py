"""Whether a module is initialized is a fact that travels: through checkpoints, worker processes, folds."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lcw_lightning import (
    ConstraintCallback,
    EdgeOfChaosInitCallback,
    MinibatchInitCallback,
    ShiftMonitor,
    constrain,
    convert_,
    fold,
    mark_fresh,
)
from lcw_lightning.callbacks import returned
from lcw_lightning.weights.freshness import INITIALIZED

CALLBACKS = {"minibatch": MinibatchInitCallback, "edge-of-chaos": EdgeOfChaosInitCallback}
initializing = pytest.mark.parametrize("initialize", CALLBACKS.values(), ids=CALLBACKS)


def stepping_by_hand(project):
    """Let the module step an optimizer that Lightning does not see, so that the global step stands still."""
    project.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = project.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(project(batch[0]), batch[1])
        project.manual_backward(loss)
        optimizer.step()

    project.training_step = training_step
    return project


@initializing
def test_a_run_whose_global_step_stands_still_resumes_without_initializing_again(
    initialize, make_sparse, make_trainer, loader, tmp_path
):
    first = stepping_by_hand(make_sparse())
    trainer = make_trainer(initialize(), max_epochs=2, enable_checkpointing=True)
    trainer.fit(first, loader)
    assert trainer.global_step == 0
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    whole, resumed = stepping_by_hand(make_sparse()), stepping_by_hand(make_sparse())
    make_trainer(max_epochs=3).fit(whole, loader, ckpt_path=tmp_path / "run.ckpt")
    make_trainer(initialize(), max_epochs=3).fit(resumed, loader, ckpt_path=tmp_path / "run.ckpt")
    assert torch.equal(resumed.head.weight, whole.head.weight)


@initializing
def test_control_the_mark_is_what_keeps_the_weights(initialize, make_sparse, make_trainer, loader, tmp_path):
    trainer = make_trainer(initialize(), max_epochs=2, enable_checkpointing=True)
    trainer.fit(stepping_by_hand(make_sparse()), loader)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt")
    content["callbacks"][initialize.__name__][INITIALIZED] = False
    content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] = 0
    torch.save(content, tmp_path / "run.ckpt")
    kept, again = stepping_by_hand(make_sparse()), stepping_by_hand(make_sparse())
    make_trainer(max_epochs=3).fit(kept, loader, ckpt_path=tmp_path / "run.ckpt")
    make_trainer(initialize(), max_epochs=3).fit(again, loader, ckpt_path=tmp_path / "run.ckpt")
    assert (again.head.weight - kept.head.weight).abs().max() > 1e-3


@initializing
def test_a_checkpoint_of_a_run_without_the_callback_counts_as_trained(
    initialize, make_sparse, make_trainer, loader, tmp_path
):
    trainer = make_trainer(ModelCheckpoint(tmp_path), enable_checkpointing=True)
    trainer.fit(make_sparse(), loader)
    path = trainer.checkpoint_callback.best_model_path
    plain, resumed = make_sparse(), make_sparse()
    make_trainer(max_epochs=2).fit(plain, loader, ckpt_path=path)
    make_trainer(initialize(), max_epochs=2).fit(resumed, loader, ckpt_path=path)
    assert torch.equal(plain.head.weight, resumed.head.weight)


NOT_INITIALIZING = {"no callback": [], "turned off": [MinibatchInitCallback(granularity="none")]}


@initializing
@pytest.mark.parametrize("callbacks", NOT_INITIALIZING.values(), ids=NOT_INITIALIZING)
def test_so_does_one_of_a_run_whose_global_step_stood_still(
    callbacks, initialize, make_sparse, make_trainer, loader, tmp_path
):
    trainer = make_trainer(*callbacks, enable_checkpointing=True)
    trainer.fit(stepping_by_hand(make_sparse()), loader)
    assert trainer.global_step == 0
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    whole, resumed = stepping_by_hand(make_sparse()), stepping_by_hand(make_sparse())
    make_trainer(max_epochs=2).fit(whole, loader, ckpt_path=tmp_path / "run.ckpt")
    make_trainer(initialize(), max_epochs=2).fit(resumed, loader, ckpt_path=tmp_path / "run.ckpt")
    assert torch.equal(resumed.head.weight, whole.head.weight)


@initializing
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_skipped_first_batch_leaves_the_callback_waiting(initialize, make_sparse, make_trainer, loader):
    project = make_sparse()
    step, drawn = project.training_step, project.head.weight.clone()
    project.training_step = lambda batch, batch_idx: step(batch, batch_idx) if batch_idx else None
    project.configure_optimizers = lambda: torch.optim.SGD(project.parameters(), lr=0.0)
    make_trainer(initialize()).fit(project, loader)
    assert not torch.equal(project.head.weight, drawn)


@initializing
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_run_of_skipped_batches_leaves_the_weights_as_they_were_drawn(initialize, make_sparse, make_trainer, loader):
    project = make_sparse()
    before = copy.deepcopy(project.state_dict())
    project.training_step = lambda batch, batch_idx: None
    make_trainer(initialize()).fit(project, loader)  # at the edge of chaos weights are drawn before the forward pass
    assert all(torch.equal(before[name], tensor) for name, tensor in project.state_dict().items())


@initializing
@pytest.mark.filterwarnings("ignore:the first batch did not reach")
def test_training_by_hand_that_reaches_no_layer_is_not_taken_back(initialize, make_sparse, make_trainer, loader):
    project, steps = make_sparse(optimizer_kwargs={"lr": 0.01}), []
    project.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = project.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        (project.head.weight - 5).square().sum().backward()  # past Lightning, and past the layers
        optimizer.step()
        steps.append(project.head.weight.detach().clone())

    project.training_step = training_step
    make_trainer(initialize()).fit(project, loader)
    distances = [(weight - 5).square().sum().item() for weight in steps]
    assert distances == sorted(distances, reverse=True)
    assert torch.equal(project.head.weight, steps[-1])


@initializing
def test_a_module_is_initialized_again_once_it_is_marked_fresh(initialize, make_sparse, make_trainer, loader):
    project = make_sparse(optimizer_kwargs={"lr": 0.0})
    first = copy.deepcopy(project.state_dict())

    def fit_fold():
        project.load_state_dict(first)
        torch.manual_seed(3)
        make_trainer(initialize()).fit(project, loader)
        return copy.deepcopy(project.head.weight)

    initialized, forgotten = fit_fold(), fit_fold()
    mark_fresh(project)
    marked = fit_fold()
    assert torch.equal(forgotten, first["head.weight"])  # control: without the mark the fold keeps what it loaded
    assert torch.equal(marked, initialized)
    assert not torch.equal(marked, forgotten)


@initializing
def test_one_trainer_initializes_each_fold_of_one_module(initialize, make_sparse, make_trainer, loader):
    project = make_sparse(optimizer_kwargs={"lr": 0.0})
    first, trainer = copy.deepcopy(project.state_dict()), make_trainer(initialize())
    for max_epochs in (1, 2):
        project.load_state_dict(first)
        mark_fresh(project)
        trainer.fit_loop.max_epochs = max_epochs
        trainer.fit(project, loader)
        assert trainer.global_step == max_epochs * len(loader)
        assert not torch.equal(project.head.weight, first["head.weight"])


def word_of(module, monkeypatch):
    """Let word that a module is initialized come as from a worker process."""
    monkeypatch.setattr(returned, "_FINGERPRINTS", set())
    pickle.loads(pickle.dumps(returned.Initialized(returned.fingerprint(module))))


def test_word_from_a_worker_is_of_this_module_alone(monkeypatch):
    first, second = (nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)) for _ in range(2))
    word_of(first, monkeypatch)
    assert returned.is_initialized_elsewhere(copy.deepcopy(first))
    assert not returned.is_initialized_elsewhere(second)


@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])
def test_word_from_a_worker_is_of_a_module_that_was_constrained_there(kind, monkeypatch):
    module = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Conv1d(8, 3, 2, bias=False))
    constrain(module, kind)
    word_of(module, monkeypatch)
    assert returned.is_initialized_elsewhere(fold(module))


@initializing
def test_a_first_forward_that_fails_leaves_the_module_as_it_was(initialize, make_sparse, make_trainer, loader):
    project = make_sparse()
    before = copy.deepcopy(project.state_dict())

    def fail(*_):
        raise RuntimeError("the head fails")

    project.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="the head fails"):
        make_trainer(initialize()).fit(project, loader)
    assert all(torch.equal(before[name], tensor) for name, tensor in project.state_dict().items())


def test_the_monitor_counts_batches_where_the_global_step_stands_still(make_sparse, make_trainer, loader, tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(ShiftMonitor(every_n_steps=2), logger=logger, log_every_n_steps=1)
    trainer.fit(stepping_by_hand(make_sparse()), loader)
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) - 1 == (len(loader) + 1) // 2


@initializing
def test_a_module_that_was_trained_under_a_constraint_is_not_initialized(initialize, make_sparse, make_trainer, loader):
    project = make_sparse()
    make_trainer(ConstraintCallback()).fit(project, loader)
    trained = project.head.weight.detach().clone()
    project.configure_optimizers = lambda: torch.optim.SGD(project.parameters(), lr=0.0)
    make_trainer(ConstraintCallback(), initialize()).fit(project, loader)
    assert torch.equal(project.head.weight, trained)


@initializing
def test_a_converted_network_is_not_initialized_wherever_it_stands(initialize, make_sparse, make_trainer, loader):
    project = make_sparse(optimizer_kwargs={"lr": 0.0})
    convert_(project.body, torch.randn(32, 8))
    converted = project.body[0].weight.detach().clone()
    make_trainer(initialize()).fit(project, loader)
    assert torch.equal(project.body[0].weight, converted)
    mark_fresh(project)
    make_trainer(initialize()).fit(project, loader)
    assert not torch.equal(project.body[0].weight, converted)
