"""Every kind of constraint in real runs: who trains it, resume, checkpoints of other kinds, initialization."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lcw_lightning import (
    ConstraintCallback,
    MinibatchInitCallback,
    ShiftMonitor,
    constrain,
    fold,
    load_from_checkpoint,
    minibatch_init_,
)
from lcw_lightning.constraints.constrain import constrained_weights
from tests.quick import quick

KINDS = ["lcw", "cwn", "wn", "sn"]
kinds = pytest.mark.parametrize("kind", KINDS)
ALL = ["body.0.weight", "body.2.weight", "head.weight"]


@kinds
@pytest.mark.parametrize("build_in", ["__init__", "configure_model"])
def test_training_moves_all_that_the_constraint_trains(kind, build_in, make_project, make_trainer, loader):
    project, start = make_project(build_in), make_project(build_in)
    make_trainer(ConstraintCallback(kind)).fit(project, loader)
    start.build()
    constrain(start, kind)
    assert constrained_weights(project) == dict.fromkeys(ALL, kind)
    before = dict(start.named_parameters())
    assert not any(torch.equal(parameter, before[name]) for name, parameter in project.named_parameters())


def made_early(project):
    """The project with an optimizer made before anybody could constrain it."""
    early = torch.optim.SGD(project.parameters(), lr=0.1)
    project.configure_optimizers = lambda: early
    return project


@pytest.mark.parametrize("kind", ["cwn", "wn"])
def test_two_tensors_that_an_early_optimizer_does_not_hold_are_an_error(kind, make_project, make_trainer, loader):
    message = r"no optimizer holds the constrained weights 'body\.0\.weight', .* so they would never train"
    with pytest.raises(ValueError, match=message):
        make_trainer(ConstraintCallback(kind)).fit(made_early(make_project()), loader)


@pytest.mark.parametrize("kind", ["lcw", "sn"])
def test_one_tensor_is_trained_by_an_early_optimizer(kind, make_project, make_trainer, loader):
    project = made_early(make_project())
    make_trainer(ConstraintCallback(kind)).fit(project, loader)
    constrain(start := make_project(), kind)
    trained = project.head.parametrizations.weight.original
    assert not torch.equal(trained, start.head.parametrizations.weight.original)


def test_without_the_check_an_early_optimizer_would_train_nothing_of_them(make_project, make_trainer, loader):
    project = made_early(make_project())
    constrain(project, "cwn")
    before = copy.deepcopy(dict(project.named_parameters()))
    make_trainer().fit(project, loader)
    still = [name for name, parameter in project.named_parameters() if torch.equal(parameter, before[name])]
    assert len(still) == 6


@pytest.mark.parametrize("kind", ["cwn", "wn"])
def test_an_optimizer_that_forgets_the_gains_is_an_error(kind, make_project, make_trainer, loader):
    project = make_project()
    project.configure_optimizers = lambda: torch.optim.SGD(
        [parameter for name, parameter in project.named_parameters() if not name.endswith("original0")], lr=0.1
    )
    with pytest.raises(ValueError, match="no optimizer holds the constrained weights"):
        make_trainer(ConstraintCallback(kind)).fit(project, loader)


@kinds
@pytest.mark.parametrize("constrained", [False, True], ids=["plain", "constrained-before"])
def test_frozen_weights_stay_as_they_are_and_need_no_optimizer(kind, constrained, make_project, make_trainer, loader):
    project, start = make_project(), make_project()
    if constrained:
        for module in (project, start):
            constrain(module, kind, include=["head.*"])
    project.head.requires_grad_(False)
    project.configure_optimizers = lambda: torch.optim.SGD(project.body.parameters(), lr=0.1)
    make_trainer(ConstraintCallback(kind), MinibatchInitCallback()).fit(project, loader)
    held = dict(start.head.named_parameters())
    assert all(torch.equal(parameter, held[name]) for name, parameter in project.head.named_parameters())


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("kind", quick(["lcw", "cwn", "sn"], KINDS))
def test_resume_is_bit_exact_with_monitor_and_checkpoints(kind, make_project, make_trainer, loader, logged, tmp_path):
    def callbacks(run):
        saver = ModelCheckpoint(tmp_path / run, every_n_train_steps=3, save_top_k=-1)
        return ConstraintCallback(kind), MinibatchInitCallback(), ShiftMonitor(every_n_steps=2), saver

    whole, first, resumed = make_project(), make_project(), make_project()
    make_trainer(ConstraintCallback(kind), MinibatchInitCallback(), max_epochs=3).fit(whole, loader)
    trainer = make_trainer(*callbacks("first"), **logged, enable_checkpointing=True)
    trainer.fit(first, loader)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    settings = {"max_epochs": 3, "enable_checkpointing": True, **logged}
    make_trainer(*callbacks("resumed"), **settings).fit(resumed, loader, ckpt_path=tmp_path / "first.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    loaded = load_from_checkpoint(type(first), tmp_path / "first.ckpt").eval()
    inputs = next(iter(loader))[0]
    assert torch.equal(loaded(inputs), first.eval()(inputs))
    assert torch.equal(fold(loaded)(inputs), first(inputs))


@pytest.mark.parametrize(("saved", "kind"), [("wn", "cwn"), ("cwn", "wn"), ("sn", "lcw"), ("cwn", "lcw")])
def test_resuming_a_run_of_another_kind_is_refused_whole(saved, kind, make_project, make_trainer, loader, tmp_path):
    trainer = make_trainer(ConstraintCallback(saved), enable_checkpointing=True)
    trainer.fit(make_project(), loader)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    project, drawn = make_project(), make_project()
    with pytest.raises(ValueError, match=f"with kind='{saved}', this one with '{kind}'; take '{saved}'"):
        make_trainer(ConstraintCallback(kind), max_epochs=2).fit(project, loader, ckpt_path=tmp_path / "run.ckpt")
    assert torch.equal(project.head.bias, drawn.head.bias)


def test_two_kinds_share_a_module_by_patterns(make_project, make_trainer, loader):
    project = make_project()
    callbacks = ConstraintCallback("lcw", include=["body.*"]), ConstraintCallback("cwn", include=["head.*"])
    make_trainer(*callbacks).fit(project, loader)
    assert constrained_weights(project) == {"body.0.weight": "lcw", "body.2.weight": "lcw", "head.weight": "cwn"}


@pytest.mark.parametrize("kind", ["wn", "sn"])
def test_fan_in_1_stops_no_run_whose_units_need_not_sum_to_zero(kind, make_project, make_trainer, loader):
    project = make_project()
    project.gain = nn.Linear(1, 1)
    make_trainer(ConstraintCallback(kind)).fit(project, loader)
    assert "gain.weight" in constrained_weights(project)


@pytest.mark.parametrize("kind", ["cwn", "wn"])
def test_the_first_step_trains_gains_and_biases_set_on_the_first_batch(kind, make_project, make_trainer, loader):
    project, seen = make_project(), []
    project.on_before_optimizer_step = lambda optimizer: seen.append(copy.deepcopy(project.state_dict()))
    make_trainer(ConstraintCallback(kind), MinibatchInitCallback()).fit(project, loader)
    expected = make_project()
    constrain(expected, kind)
    minibatch_init_(expected, next(iter(loader))[0])
    for key, value in expected.state_dict().items():
        assert torch.equal(seen[0][key], value), key
    assert expected.head.bias.any()


def test_spectrally_normalized_weights_and_their_biases_start_as_they_were_drawn(make_project, make_trainer, loader):
    project, plain, seen = make_project(), make_project(), []
    project.on_before_optimizer_step = lambda optimizer: seen.append(copy.deepcopy(project.state_dict()))
    make_trainer(ConstraintCallback("sn"), MinibatchInitCallback()).fit(project, loader)
    assert torch.equal(seen[0]["head.parametrizations.weight.original"], plain.head.weight)
    assert torch.equal(seen[0]["head.bias"], plain.head.bias)


PRECISIONS = ["bf16-mixed", "bf16-true", "64-true"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["cwn", "wn", "sn"])
def test_every_kind_trains_in_every_precision(kind, precision, make_project, make_trainer, loader):
    project = make_project()
    callbacks = ConstraintCallback(kind), MinibatchInitCallback()
    make_trainer(*callbacks, precision=precision, gradient_clip_val=1.0).fit(project, loader)
    assert all(parameter.isfinite().all() for parameter in project.parameters())
    if kind == "cwn":
        rows = project.head.weight.detach().double()
        tolerance = {"bf16-mixed": 1e-6, "bf16-true": 5e-2, "64-true": 1e-13}[precision]
        assert (rows.sum(1).abs() / rows.norm(dim=1)).max() < tolerance
