import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lcw_lightning import ConstraintCallback
from lcw_lightning.constraints.constrain import constrained_weights

ALL = dict.fromkeys(["body.0.weight", "body.2.weight", "head.weight"], "lcw")
hooks = pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


@both
@hooks
def test_fit_trains_zero_sum_weights_wherever_layers_are_built(residual, build_in, make_project, make_trainer, loader):
    project = make_project(build_in)
    make_trainer(ConstraintCallback()).fit(project, loader)
    assert constrained_weights(project) == ALL
    assert residual(project.head) < 1e-6
    plain = make_project(build_in)
    plain.build()
    assert (project.head.weight - plain.head.weight).abs().max() > 1e-2


@both
@hooks
def test_nothing_of_the_callback_stays_on_the_module(build_in, make_project, make_trainer, loader):
    project = make_project(build_in)
    make_trainer(ConstraintCallback()).fit(project, loader)
    assert not {"configure_model", "load_state_dict", "on_load_checkpoint"} & set(vars(project))


@both
def test_a_hook_that_the_user_set_on_the_instance_stays(make_project, make_trainer, loader):
    project, calls = make_project(), []
    project.configure_model = lambda: calls.append("called")
    make_trainer(ConstraintCallback()).fit(project, loader)
    make_trainer(ConstraintCallback()).test(project, loader, verbose=False)
    assert calls == ["called", "called"]
    assert constrained_weights(project) == ALL


def test_fit_again_then_test_then_predict_constrains_once(make_project, make_trainer, loader):
    project, trainer = make_project(), make_trainer(ConstraintCallback())
    trainer.fit(project, loader)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(project, loader)
    trainer.test(project, loader)
    trainer.predict(project, loader)
    assert len(project.head.parametrizations.weight) == 1


def test_the_optimizer_holds_the_coordinates(make_project, make_trainer, loader):
    project, trainer = make_project(), make_trainer(ConstraintCallback())
    trainer.fit(project, loader)
    held = {id(parameter) for parameter in trainer.optimizers[0].param_groups[0]["params"]}
    assert len(held) == 6
    for layer in (project.body[0], project.body[2], project.head):
        assert id(layer.parametrizations.weight.original) in held


def test_kind_none_trains_the_plain_module(make_project, make_trainer, loader):
    project, plain = make_project(), make_project()
    make_trainer(ConstraintCallback("none")).fit(project, loader)
    make_trainer().fit(plain, loader)
    for ours, theirs in zip(project.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@both
@hooks
def test_two_callbacks_share_a_module_by_patterns(build_in, make_project, make_trainer, loader):
    project = make_project(build_in)
    trainer = make_trainer(ConstraintCallback(include=["body.*"]), ConstraintCallback(include=["head.*"]))
    trainer.fit(project, loader)
    assert constrained_weights(project) == ALL


@both
@hooks
def test_resume_is_bit_exact(build_in, lightning, make_project, make_trainer, loader, tmp_path):
    whole = make_project(build_in)
    make_trainer(ConstraintCallback(), max_epochs=3).fit(whole, loader)

    first = make_trainer(
        ConstraintCallback(), lightning.callbacks.ModelCheckpoint(tmp_path / "run"), enable_checkpointing=True
    )
    first.fit(make_project(build_in), loader)
    resumed = make_project(build_in)
    path = first.checkpoint_callback.best_model_path
    make_trainer(ConstraintCallback(), max_epochs=3).fit(resumed, loader, ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_the_checkpoint_loads_safely_and_names_basis_and_weights(make_project, make_trainer, loader, tmp_path):
    trainer = make_trainer(ConstraintCallback(exclude=["head.*"]), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    trainer.fit(make_project(), loader)
    checkpoint = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert checkpoint["lcw_lightning"] == {
        "basis_version": 1,
        "constraints": {
            "body.0.weight": {"kind": "lcw", "weight_shape": [16, 8], "transposed_groups": 0},
            "body.2.weight": {"kind": "lcw", "weight_shape": [16, 16], "transposed_groups": 0},
        },
    }


@hooks
def test_a_pattern_without_a_match_stops_the_run_before_it_starts(build_in, make_project, make_trainer, loader):
    with pytest.raises(ValueError, match=r"'tail\.\*' matches no weight"):
        make_trainer(ConstraintCallback(exclude=["tail.*"])).fit(make_project(build_in), loader)


@hooks
def test_a_corrected_pattern_works_with_the_same_module(build_in, make_project, make_trainer, loader):
    project = make_project(build_in)
    with pytest.raises(ValueError, match="matches no weight"):
        make_trainer(ConstraintCallback(exclude=["tail.*"])).fit(project, loader)
    make_trainer(ConstraintCallback(exclude=["head.*"])).fit(project, loader)
    assert list(constrained_weights(project)) == ["body.0.weight", "body.2.weight"]


@pytest.fixture
def checkpoint(make_project, make_trainer, loader, tmp_path):
    """The path of a constrained run's checkpoint."""
    trainer = make_trainer(ConstraintCallback(), ModelCheckpoint(tmp_path / "run"), enable_checkpointing=True)
    trainer.fit(make_project(), loader)
    return trainer.checkpoint_callback.best_model_path


def test_another_basis_is_refused_in_any_module(checkpoint, make_project, make_trainer, loader):
    content = torch.load(checkpoint)
    content["lcw_lightning"]["basis_version"] = 2
    content["state_dict"] = dict(content["state_dict"])  # as weight averaging saves it, without torch's versions
    torch.save(content, checkpoint)
    project, drawn = make_project(), make_project()
    with pytest.raises(ValueError, match="basis version 2"):
        make_trainer(ConstraintCallback()).test(project, loader, ckpt_path=checkpoint)
    assert torch.equal(project.head.bias, drawn.head.bias)


@both
def test_the_optimizer_state_of_plain_weights_is_refused_by_name(
    lightning, make_project, make_trainer, loader, tmp_path
):
    trainer = make_trainer(lightning.callbacks.ModelCheckpoint(tmp_path / "run"), enable_checkpointing=True)
    trainer.fit(make_project(), loader)
    path = trainer.checkpoint_callback.best_model_path
    project = make_project()
    with pytest.raises(ValueError, match=r"trained 'body\.0\.weight', .* without the constraint, so its optimizer"):
        make_trainer(ConstraintCallback(), max_epochs=2).fit(project, loader, ckpt_path=path)
    assert torch.equal(project.head.bias, make_project().head.bias)


def test_what_cannot_be_constrained_is_left_plain_and_said_in_one_line(make_project, make_trainer, loader, caplog):
    project = make_project()
    project.gain = nn.Linear(1, 1)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        make_trainer(ConstraintCallback()).fit(project, loader)
    assert constrained_weights(project) == ALL
    (said,) = [message for message in caplog.messages if message.startswith("lcw: ")]
    assert said.startswith(
        "lcw: 3 of 4 weights, 100 % of the numbers in the model's matrices; left out: 'gain.weight' (fan"
    )


def test_a_name_of_what_cannot_be_constrained_is_an_error(make_project, make_trainer, loader):
    project = make_project()
    project.gain = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"the pattern 'gain\.weight' takes no weight: 'gain\.weight' \(fan_in 1"):
        make_trainer(ConstraintCallback(include=["*", "gain.weight"])).fit(project, loader)
    assert constrained_weights(project) == {}


def test_a_constrained_weight_that_no_optimizer_holds_is_an_error(make_project, make_trainer, loader):
    project = make_project()
    project.configure_optimizers = lambda: torch.optim.SGD(project.body.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"no optimizer holds the constrained weights 'head\.weight'"):
        make_trainer(ConstraintCallback()).fit(project, loader)


def test_a_module_without_an_optimizer_may_be_constrained(residual, make_project, make_trainer, loader):
    project = make_project()
    project.configure_optimizers = lambda: None
    with pytest.warns(UserWarning, match="returned `None`"):
        make_trainer(ConstraintCallback()).fit(project, loader)
    assert residual(project) < 1e-6


def test_a_frozen_weight_is_left_alone_and_needs_no_optimizer(residual, make_project, make_trainer, loader):
    project = make_project()
    project.head.requires_grad_(False)
    drawn = project.head.weight.clone()
    project.configure_optimizers = lambda: torch.optim.SGD(project.body.parameters(), lr=0.1)
    make_trainer(ConstraintCallback()).fit(project, loader)
    assert torch.equal(project.head.weight, drawn)
    assert residual(project.body) < 1e-6
