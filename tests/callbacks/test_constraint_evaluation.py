"""Evaluation follows the checkpoint, or takes the module as it is; no network is changed behind its owner's back."""

import copy

import pytest
import torch

from lcw_lightning import ConstraintCallback, constrain, load_from_checkpoint
from lcw_lightning.constraints.constrain import constrained_weights

ALL = ["body.0.weight", "body.2.weight", "head.weight"]
runs = pytest.mark.parametrize("run", ["validate", "test", "predict"])
hooks = pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)
SETTINGS = {
    "lcw": ConstraintCallback,
    "project": lambda: ConstraintCallback(method="project"),
    "cwn": lambda: ConstraintCallback("cwn"),
    "wn": lambda: ConstraintCallback("wn"),
    "sn": lambda: ConstraintCallback("sn"),
    "none": lambda: ConstraintCallback("none"),
}
settings = pytest.mark.parametrize("setting", SETTINGS)


def outcome(trainer, run, module, loader, path=None):
    """What a run prints or returns."""
    found = getattr(trainer, run)(module, loader, ckpt_path=path)
    return torch.cat(found) if run == "predict" else torch.tensor(list(found[0].values()), dtype=torch.float64)


@pytest.fixture
def saved(make_project, make_trainer, loader, tmp_path):
    """Return a function that trains under a callback, and gives the module and the checkpoint."""

    def train(callback, build_in="__init__"):
        module, trainer = make_project(build_in), make_trainer(callback, enable_checkpointing=True, max_epochs=2)
        trainer.fit(module, loader)
        path = tmp_path / "run.ckpt"
        trainer.save_checkpoint(path)
        return module, path

    return train


@both
@hooks
@runs
def test_a_plain_checkpoint_gives_the_plain_numbers(run, build_in, saved, make_project, make_trainer, loader):
    _, path = saved(ConstraintCallback("none"), build_in)
    expected = outcome(make_trainer(), run, make_project(build_in), loader, path)
    project = make_project(build_in)
    assert torch.equal(outcome(make_trainer(ConstraintCallback()), run, project, loader, path), expected)
    assert constrained_weights(project) == {}


@settings
@runs
def test_every_setting_gives_the_plain_numbers_of_a_plain_checkpoint(
    setting, run, saved, make_project, make_trainer, loader
):
    _, path = saved(ConstraintCallback("none"))
    expected = outcome(make_trainer(), run, make_project(), loader, path)
    assert torch.equal(outcome(make_trainer(SETTINGS[setting]()), run, make_project(), loader, path), expected)


def test_control_projecting_the_plain_checkpoint_gives_other_numbers(saved, make_project, make_trainer, loader):
    _, path = saved(ConstraintCallback("none"))
    expected = outcome(make_trainer(), "test", make_project(), loader, path)
    constrained = make_project()
    constrain(constrained)
    constrained.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert (outcome(make_trainer(), "test", constrained, loader) - expected).abs().max() > 1e-3


@settings
@hooks
def test_a_constrained_checkpoint_is_followed_whatever_the_settings(
    setting, build_in, saved, make_project, make_trainer, loader
):
    module, path = saved(ConstraintCallback("cwn", exclude=["head.*"]), build_in)
    expected = outcome(make_trainer(), "test", module, loader)
    project = make_project(build_in)
    assert torch.equal(outcome(make_trainer(SETTINGS[setting]()), "test", project, loader, path), expected)
    assert constrained_weights(project) == {"body.0.weight": "cwn", "body.2.weight": "cwn"}


def test_a_projected_checkpoint_is_followed_too(saved, make_project, make_trainer, loader):
    module, path = saved(ConstraintCallback(method="project"))
    expected = outcome(make_trainer(), "test", module, loader)
    project = make_project()
    assert torch.equal(outcome(make_trainer(ConstraintCallback()), "test", project, loader, path), expected)
    assert constrained_weights(project) == dict.fromkeys(ALL, "lcw")
    assert not hasattr(project.head, "parametrizations")


@pytest.mark.parametrize("method", ["parametrize", "project"])
def test_a_constraint_in_memory_is_taken_off_and_said(method, saved, make_project, make_trainer, loader, caplog):
    _, path = saved(ConstraintCallback("none"))
    expected = outcome(make_trainer(), "test", make_project(), loader, path)
    project = make_project()
    constrain(project, method=method)
    twin = copy.deepcopy(project)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        assert torch.equal(outcome(make_trainer(ConstraintCallback()), "test", project, loader, path), expected)
    assert "The constraint of 'body.0.weight', 'body.2.weight', 'head.weight' was taken off" in caplog.text
    assert constrained_weights(project) == {}
    assert constrained_weights(twin) == dict.fromkeys(ALL, "lcw")
    twin(torch.randn(2, 8)).sum().backward()  # a copy shares its classes with the module


@settings
@runs
@pytest.mark.filterwarnings("default:.*are evaluated as they are")
def test_without_a_checkpoint_the_module_is_evaluated_as_it_is(
    setting, run, make_project, make_trainer, loader, recwarn
):
    project = make_project()
    before = copy.deepcopy(project.state_dict())
    expected = outcome(make_trainer(), run, make_project(), loader)
    assert torch.equal(outcome(make_trainer(SETTINGS[setting]()), run, project, loader), expected)
    assert project.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in project.state_dict().items())
    said = [str(warning.message) for warning in recwarn if "are evaluated as they are" in str(warning.message)]
    assert len(said) == (setting != "none")


@runs
def test_after_fit_the_module_is_evaluated_as_fit_left_it(run, make_project, make_trainer, loader):
    project, trainer = make_project(), make_trainer(ConstraintCallback())
    trainer.fit(project, loader)
    expected = outcome(make_trainer(), run, copy.deepcopy(project), loader)
    assert torch.equal(outcome(trainer, run, project, loader), expected)
    assert list(constrained_weights(project)) == ALL


def test_validation_within_fit_sees_the_constraint(residual, make_project, make_trainer, loader):
    project, seen = make_project(), []
    project.on_validation_start = lambda: seen.append(residual(project))
    make_trainer(ConstraintCallback(), limit_val_batches=1).fit(project, loader, loader)
    assert seen
    assert max(seen) < 1e-6


def test_a_checkpoint_that_does_not_fit_leaves_the_module_and_its_constraints(
    saved, make_project, make_trainer, loader
):
    _, path = saved(ConstraintCallback("none"))
    content = torch.load(path)
    content["state_dict"]["head.weight"] = torch.zeros(3, 7)
    torch.save(content, path)
    project = make_project()
    constrain(project)
    before = copy.deepcopy(project.state_dict())
    held = list(project.parameters())
    with pytest.raises(ValueError, match="the state dict does not fit"):
        make_trainer(ConstraintCallback()).test(project, loader, ckpt_path=path)
    assert project.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in project.state_dict().items())
    assert all(one is other for one, other in zip(held, project.parameters(), strict=True))
    assert list(constrained_weights(project)) == ALL


def test_a_fit_after_a_plain_evaluation_constrains(saved, make_project, make_trainer, loader):
    _, path = saved(ConstraintCallback("none"))
    project, trainer = make_project(), make_trainer(ConstraintCallback())
    trainer.test(project, loader, ckpt_path=path)
    trainer.fit(project, loader)
    assert list(constrained_weights(project)) == ALL


def test_a_second_fit_under_kind_none_says_that_the_constraint_stays(make_project, make_trainer, loader):
    project = make_project()
    make_trainer(ConstraintCallback()).fit(project, loader)
    with pytest.warns(
        UserWarning, match=r"although kind is none; for a plain run take a fresh module or fold\(module\)"
    ):
        make_trainer(ConstraintCallback("none")).fit(project, loader)


def test_a_second_fit_under_another_kind_is_refused_with_the_way_out(make_project, make_trainer, loader):
    project = make_project()
    make_trainer(ConstraintCallback()).fit(project, loader)
    with pytest.raises(ValueError, match=r"are under lcw already; take a fresh module or fold\(module\)"):
        make_trainer(ConstraintCallback("cwn")).fit(project, loader)


def test_two_callbacks_follow_one_checkpoint(saved, make_project, make_trainer, loader):
    _, path = saved(ConstraintCallback("cwn"))
    project = make_project()
    callbacks = ConstraintCallback(include=["body.*"]), ConstraintCallback("wn", include=["head.*"])
    make_trainer(*callbacks).test(project, loader, ckpt_path=path)
    assert constrained_weights(project) == dict.fromkeys(ALL, "cwn")
    loaded = load_from_checkpoint(type(project), path)
    assert torch.equal(loaded.head.weight, project.head.weight)
