"""A resume that fails says why, and leaves the module as it was."""

import pytest
import torch
from torch import nn

from lcw_lightning import ConstraintCallback

KINDS = ["lcw", "cwn", "wn", "sn"]


@pytest.fixture
def save(make_project, make_trainer, loader, tmp_path):
    """Return a function that trains a project under a callback and returns its checkpoint's path."""

    def save(callback, project=None):
        trainer = make_trainer(callback, enable_checkpointing=True)
        trainer.fit(make_project() if project is None else project, loader)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        return tmp_path / "run.ckpt"

    return save


@pytest.fixture
def resume(make_trainer, loader, save):
    """Return a function that resumes a project from a checkpoint, which a change may spoil."""

    def resume(project, callback, path, spoil=None):
        if spoil is not None:
            checkpoint = torch.load(path)
            spoil(checkpoint)
            torch.save(checkpoint, path)
        make_trainer(callback, max_epochs=2).fit(project, loader, ckpt_path=path)

    return resume


def by_adam(project):
    project.configure_optimizers = lambda: torch.optim.Adam(project.parameters(), lr=0.1)


def in_two_groups(project):
    groups = [{"params": project.body.parameters()}, {"params": project.head.parameters()}]
    project.configure_optimizers = lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def without_the_last_parameters(project):
    project.configure_optimizers = lambda: torch.optim.SGD([*project.head.parameters(), *project.body.parameters()][:4])


def as_it_is(project):
    pass


def with_other_loops(checkpoint):
    checkpoint["loops"] = {"fit_loop": {"epoch_progress": 3}}


FAILURES = {
    "another-optimizer": (
        by_adam,
        None,
        ValueError,
        r"state does not fit Adam \(KeyError: 'step'\); resume with the opt",
    ),
    "other-groups": (
        in_two_groups,
        None,
        ValueError,
        r"state does not fit SGD \(ValueError: loaded state dict has a d",
    ),
    "fewer-parameters": (without_the_last_parameters, None, ValueError, r"optimizer state does not fit SGD \(ValueErr"),
    "other-loops": (as_it_is, with_other_loops, TypeError, "not subscriptable"),  # in Python's words
}


@pytest.mark.parametrize("method", ["parametrize", "project"])
@pytest.mark.parametrize(("change", "spoil", "error", "message"), FAILURES.values(), ids=FAILURES)
def test_the_module_is_as_it_was(change, spoil, error, message, method, save, resume, make_project):
    path, project = save(ConstraintCallback(method=method)), make_project()
    change(project)
    before = {key: value.clone() for key, value in project.state_dict().items()}
    with pytest.raises(error, match=message):
        resume(project, ConstraintCallback(method=method), path, spoil)
    held = project.state_dict()
    assert held.keys() == before.keys()
    assert all(torch.equal(held[key], value) for key, value in before.items())


@pytest.mark.parametrize(("change", "spoil"), [failure[:2] for failure in FAILURES.values()], ids=FAILURES)
def test_control_without_the_callback_the_loaded_weights_stay(change, spoil, save, resume, make_project, lightning):
    path, project = save(lightning.Callback()), make_project()
    change(project)
    before = project.head.weight.detach().clone()
    with pytest.raises((ValueError, KeyError, TypeError)):
        resume(project, lightning.Callback(), path, spoil)
    assert not torch.equal(project.head.weight, before)


def test_the_settings_that_another_optimizer_lacks_are_named(save, resume, make_project):
    trained = make_project()
    by_adam(trained)
    path = save(ConstraintCallback(), trained)
    with pytest.raises(ValueError, match=r"SGD needs the settings 'dampening', .*resume with the optimizer of the run"):
        resume(make_project(), ConstraintCallback(), path)


@pytest.mark.filterwarnings("ignore:Found keys")
@pytest.mark.parametrize("settings", [{"exclude": ["head.*"]}, {"kind": "none"}], ids=["exclude", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not-strict"])
def test_what_a_constraint_trains_is_not_dropped(kind, strict, settings, save, resume, make_project):
    path, project = save(ConstraintCallback(kind)), make_project()
    project.strict_loading = strict
    message = rf"constrained .*'head\.weight' with kind='{kind}', and this one leaves them plain; constrain them too"
    with pytest.raises(ValueError, match=message):
        resume(project, ConstraintCallback(**{"kind": kind, **settings}), path)


@pytest.mark.filterwarnings("ignore:Found keys")
@pytest.mark.parametrize("kind", KINDS)
def test_control_torch_alone_drops_it(kind, save, make_project):
    project = make_project()
    before = project.head.weight.detach().clone()
    missing, unexpected = project.load_state_dict(
        torch.load(save(ConstraintCallback(kind)))["state_dict"], strict=False
    )
    assert "head.weight" in missing
    assert any(key.startswith("head.parametrizations") for key in unexpected)
    assert type(project.head) is nn.Linear
    assert torch.equal(project.head.weight, before)
