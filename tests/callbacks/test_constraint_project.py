import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
)
from torch import nn

from lcw_lightning import ConstraintCallback, ImageClassifier, MinibatchInitCallback, fold, load_from_checkpoint
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.weights.weight_ref import named_weights

ALL = dict.fromkeys(["body.0.weight", "body.2.weight", "head.weight"], "lcw")
hooks = pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


def project_method(**kwargs):
    return ConstraintCallback(method="project", **kwargs)


def with_adam(project):
    project.configure_optimizers = lambda: torch.optim.Adam(project.parameters(), lr=0.03)
    return project


def weights(module):
    return torch.cat([ref.value.detach().flatten() for ref in named_weights(module).values()])


def gradient_hooks(module):
    return [len(ref.value._post_accumulate_grad_hooks or ()) for ref in named_weights(module).values()]


@both
@hooks
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_fit_trains_plain_parameters_that_sum_to_zero(build_in, adam, residual, make_project, make_trainer, loader):
    project = make_project(build_in)
    plain = make_project(build_in)
    plain.build()
    make_trainer(project_method()).fit(with_adam(project) if adam else project, loader)
    assert constrained_weights(project) == ALL
    assert list(project.state_dict()) == list(plain.state_dict())
    assert residual(project) < 1e-6 < residual(plain)
    assert (project.head.weight - plain.head.weight).abs().max() > 1e-2


SETTINGS = {
    "plain-steps": {},
    "clipped-and-accumulated": {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_sgd_takes_the_path_of_the_parametrization(settings, make_project, make_trainer, loader):
    paths = []
    for callbacks in ([project_method()], [ConstraintCallback()], []):
        project = make_project(optimizer_kwargs={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3})
        make_trainer(*callbacks, max_epochs=3, **settings).fit(project, loader)
        paths.append(weights(project))
    close = 2e-3 if "precision" in settings else 1e-6
    assert (paths[0] - paths[1]).abs().max() < close
    assert (paths[0] - paths[2]).abs().max() > 1e-2


def fit_and_save(folder, callback, project, make_trainer, loader, **kwargs):
    trainer = make_trainer(callback, enable_checkpointing=True, default_root_dir=folder, **kwargs)
    trainer.fit(project, loader)
    return trainer.checkpoint_callback.best_model_path


@pytest.fixture
def checkpoint(make_project, make_trainer, loader, tmp_path):
    """The path of a projected run's checkpoint."""
    return fit_and_save(tmp_path / "run", project_method(), make_project(), make_trainer, loader)


@both
@hooks
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_resume_is_bit_exact(build_in, adam, make_project, make_trainer, loader, tmp_path):
    optimized = with_adam if adam else lambda project: project
    whole, resumed = (optimized(make_project(build_in)) for _ in range(2))
    make_trainer(project_method(), max_epochs=3).fit(whole, loader)
    first = optimized(make_project(build_in))
    path = fit_and_save(tmp_path / "run", project_method(), first, make_trainer, loader)
    make_trainer(project_method(), max_epochs=3).fit(resumed, loader, ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_the_checkpoint_is_the_plain_one_and_names_the_weights(checkpoint, make_project, make_trainer, loader):
    content = torch.load(checkpoint, weights_only=True)
    assert content["lcw_lightning"] == {"basis_version": 1, "constraints": {}, "projected": list(ALL)}
    plain = make_project()
    make_trainer().test(plain, loader, ckpt_path=checkpoint, verbose=False)
    assert constrained_weights(plain) == {}
    assert torch.equal(plain.head.weight, content["state_dict"]["head.weight"])


@both
def test_load_from_checkpoint_restores_weights_and_constraint(checkpoint, make_project, tmp_path, residual):
    loaded = load_from_checkpoint(type(make_project()), checkpoint)
    assert constrained_weights(loaded) == ALL
    saved = torch.load(checkpoint)["state_dict"]
    assert all(torch.equal(value, saved[key]) for key, value in fold(loaded).state_dict().items())


REFUSED = {
    "from-plain": (
        lambda: ConstraintCallback("none"),
        project_method,
        r"trained 'body\.0\.weight', .* without the",
    ),
    "from-parametrized": (ConstraintCallback, project_method, "with method='parametrize', this one with 'project'"),
    "to-parametrized": (project_method, ConstraintCallback, "with method='project', this one with 'parametrize'"),
    "to-another-kind": (
        project_method,
        lambda: ConstraintCallback("sn"),
        "this one with 'parametrize'",
    ),
    "to-plain": (
        project_method,
        lambda: ConstraintCallback("none"),
        "and this one leaves them plain",
    ),
    "to-fewer": (
        project_method,
        lambda: project_method(exclude=["head.*"]),
        "held 'head.weight' with method",
    ),
}


@pytest.mark.parametrize(("before", "after", "message"), REFUSED.values(), ids=REFUSED)
def test_resuming_by_another_method_is_refused(before, after, message, make_project, make_trainer, loader, tmp_path):
    path = fit_and_save(tmp_path / "run", before(), make_project(), make_trainer, loader)
    project = make_project()
    with pytest.raises(ValueError, match=message):
        make_trainer(after(), max_epochs=2).fit(project, loader, ckpt_path=path)
    assert torch.equal(project.head.bias, make_project().head.bias)


def test_a_module_that_restores_its_constraint_says_that_it_stays(make_trainer, loader, tmp_path):
    def classifier():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))
        return ImageClassifier(network, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))

    path = fit_and_save(tmp_path / "run", project_method(), classifier(), make_trainer, loader)
    resumed = classifier()
    with pytest.warns(UserWarning, match="stay constrained although kind is none"):
        make_trainer(ConstraintCallback("none"), max_epochs=2).fit(resumed, loader, ckpt_path=path)
    assert len(constrained_weights(resumed)) == 2
    assert gradient_hooks(resumed) == [1, 1]


def test_a_broken_record_is_refused(checkpoint, make_project, make_trainer, loader):
    content = torch.load(checkpoint)
    content["lcw_lightning"]["projected"] = "head.weight"
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="record of constraints, 'lcw_lightning', is broken"):
        make_trainer(project_method(), max_epochs=2).fit(make_project(), loader, ckpt_path=checkpoint)


def test_trainers_in_sequence_set_one_hook_that_stays(residual, make_project, make_trainer, loader):
    project = with_adam(make_project())
    trainer = make_trainer(project_method())
    trainer.fit(project, loader)
    before = copy.deepcopy(project.state_dict())
    trainer.test(project, loader, verbose=False)
    make_trainer(project_method()).validate(project, loader, verbose=False)
    assert all(torch.equal(before[key], value) for key, value in project.state_dict().items())
    with pytest.warns(UserWarning, match="stay constrained although kind is none"):  # as parametrized modules do
        make_trainer(ConstraintCallback("none")).fit(project, loader)
    assert gradient_hooks(project) == [1, 1, 1]
    assert residual(project) < 1e-6
    with pytest.raises(ValueError, match="are under lcw already; take a fresh module or fold"):
        make_trainer(ConstraintCallback()).fit(project, loader)


def test_two_callbacks_share_a_module_each_by_its_method(residual, make_project, make_trainer, loader):
    project = make_project()
    trainer = make_trainer(project_method(include=["body.*"]), ConstraintCallback(include=["head.*"]))
    trainer.fit(project, loader)
    assert constrained_weights(project) == ALL
    assert residual(project) < 1e-6
    assert hasattr(project.head, "parametrizations")
    assert not hasattr(project.body[0], "parametrizations")


class Backbone(LightningModule):
    """Its backbone thaws after an epoch, when BackboneFinetuning gives it to the optimizer."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid())
        self.head = nn.Linear(16, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.head.parameters(), lr=0.03)


@pytest.mark.filterwarnings("ignore:.*BatchNorm", "ignore:The provided params to be frozen")
def test_a_backbone_that_was_frozen_before_stays_plain_when_it_thaws(residual, make_trainer, loader, caplog):
    module, finetuning = Backbone(), BackboneFinetuning(1, backbone_initial_lr=0.01, verbose=False)
    drawn = module.backbone[0].weight.clone()
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        make_trainer(finetuning, project_method(), max_epochs=3).fit(module, loader)
    assert "'backbone.0.weight' (frozen, and plain if it thaws)" in caplog.text
    assert list(constrained_weights(module)) == ["head.weight"]
    assert (module.backbone[0].weight - drawn).abs().max() > 1e-3
    assert residual(module.head) < 1e-6
    assert residual(module.backbone) > 1e-2


@pytest.mark.filterwarnings("ignore:.*BatchNorm", "ignore:The provided params to be frozen")
def test_a_backbone_that_is_frozen_after_it_was_constrained_stays_so(residual, make_trainer, loader):
    module, finetuning = Backbone(), BackboneFinetuning(1, backbone_initial_lr=0.01, verbose=False)
    callbacks = [project_method(), finetuning]
    drawn = module.backbone[0].weight.clone()
    make_trainer(*callbacks, max_epochs=1).fit(module, loader)
    frozen = module.backbone[0].weight.detach().clone()
    torch.testing.assert_close(frozen, drawn - drawn.mean(1, keepdim=True))
    callbacks = [project_method(), BackboneFinetuning(1, backbone_initial_lr=0.01, verbose=False)]
    make_trainer(*callbacks, max_epochs=3).fit(module, loader)
    assert (module.backbone[0].weight - frozen).abs().max() > 1e-3
    assert residual(module) < 1e-6


def test_two_optimizers_stepped_by_hand(adversaries, residual, make_trainer, loader):
    make_trainer(project_method(), MinibatchInitCallback()).fit(adversaries, loader)
    assert residual(adversaries) < 1e-6
    assert len(constrained_weights(adversaries)) == 4


AVERAGING = {
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1),
}


@pytest.mark.parametrize("averaging", AVERAGING.values(), ids=AVERAGING)
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_averages_of_weights_sum_to_zero(averaging, residual, make_project, make_trainer, loader):
    project = make_project()
    make_trainer(project_method(), averaging(), max_epochs=3).fit(project, loader)
    assert residual(project) < 1e-6
    assert constrained_weights(project) == ALL


@both
def test_a_strategy_that_flattens_parameters_is_refused(lightning, make_project, make_trainer):
    callback, trainer = project_method(), make_trainer()
    trainer.state.fn = lightning.trainer.states.TrainerFn.FITTING
    trainer._accelerator_connector.strategy = lightning.strategies.FSDPStrategy()  # which itself asks for a GPU
    with pytest.raises(ValueError, match="but FSDPStrategy flattens them; take ModelParallelStrategy"):
        callback.setup(trainer, make_project(), "fit")


def test_a_weight_that_no_optimizer_holds_is_an_error(make_project, make_trainer, loader):
    project = make_project()
    project.configure_optimizers = lambda: torch.optim.SGD(project.body.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"no optimizer holds the constrained weights 'head\.weight'"):
        make_trainer(project_method()).fit(project, loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "wn"}, "holds kind='lcw' alone, got 'wn'"),
        ({"method": "hope"}, "is one of 'parametrize', 'project'; got 'hope'"),
    ],
    ids=["kind", "method"],
)
def test_what_cannot_be_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConstraintCallback(**({"method": "project"} | arguments))


def test_the_flag_chooses_the_method(lcw):
    lcw("fit", "--constraint.method=project")
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    content = torch.load(path)
    assert len(content["lcw_lightning"]["projected"]) == len(named_weights(ImageClassifier.load_from_checkpoint(path)))
    assert not any("parametrizations" in key for key in content["state_dict"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--constraint.method=project", "--constraint.kind=cwn"], "holds kind='lcw' alone, got 'cwn'"),
        (["--constraint.method=projct"], "--constraint.method: expected one of 'parametrize', 'project'; got 'projct'"),
    ],
    ids=["kind", "method"],
)
def test_a_wrong_flag_ends_in_a_message(flags, message, lcw, capsys):
    with pytest.raises(SystemExit) as exit_:
        lcw("fit", *flags)
    assert message in f"{exit_.value.code}{capsys.readouterr().err}"
