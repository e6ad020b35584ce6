"""The callback behind `lcw analyze` in runs of a project's own."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, analyze, constrain, minibatch_init_
from lcw_lightning.cli.first_step_report import FirstStepReport


class Witness(Callback):
    """Notes which hooks ran."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, *args):
        self.seen.append("batch")

    def on_train_epoch_end(self, *args):
        self.seen.append("epoch")

    def on_validation_start(self, *args):
        self.seen.append("validation")

    def teardown(self, *args, **kwargs):
        self.seen.append("teardown")


@pytest.fixture
def first_step():
    return FirstStepReport()


def hooked(project):
    return any(module._forward_hooks or module._forward_pre_hooks for module in project.modules())


def test_the_report_is_that_of_analyze_on_the_first_batch(make_project, make_trainer, loader, first_step):
    make_trainer(ConstraintCallback(), MinibatchInitCallback(), first_step).fit(make_project(), loader)
    project, batch = make_project(), next(iter(loader))
    constrain(project)
    minibatch_init_(project, batch[0])
    expected = analyze(project, batch)
    assert first_step.report.loss == pytest.approx(expected.loss)
    assert list(first_step.report.statistics) == ["body.0", "body.2", "head"]
    for layer, row in expected.statistics.items():
        assert first_step.report.statistics[layer] == pytest.approx(row, rel=1e-4, abs=1e-9)
    assert first_step.report.condition == expected.condition
    assert first_step.report.findings == expected.findings


def test_the_run_ends_after_one_step_and_leaves_no_hook(make_project, make_trainer, loader, first_step):
    project, witness = make_project(), Witness()
    trainer = make_trainer(witness, first_step, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(project, loader, loader)
    assert witness.seen == ["batch", "teardown"]
    assert trainer.global_step == 1
    assert not hooked(project)
    assert trainer.state.finished


def test_a_failing_step_leaves_no_hook_and_compiled_networks_compiled(make_project, make_trainer, loader, first_step):
    project = make_project()
    project.head = nn.Linear(7, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_trainer(first_step).fit(project, loader)
    assert not hooked(project)
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert first_step.report is None


STEPS = {
    "tensor": (lambda loss: loss, True),
    "dict": (lambda loss: {"loss": loss, "more": 1}, True),
    "none": (lambda loss: None, False),
}


@pytest.mark.filterwarnings("ignore:.*returned `None`")
@pytest.mark.parametrize(("give", "has_loss"), STEPS.values(), ids=STEPS)
def test_whatever_the_training_step_returns(give, has_loss, make_project, make_trainer, loader, first_step):
    project = make_project()
    step = project.training_step
    project.training_step = lambda batch, batch_idx: give(step(batch, batch_idx))
    make_trainer(first_step).fit(project, loader)
    assert (first_step.report.loss is not None) == has_loss
    assert all(("gradient_std" in row) == has_loss for row in first_step.report.statistics.values())


def test_manual_optimization(make_project, make_trainer, loader, first_step):
    project = make_project()
    project.automatic_optimization = False

    def training_step(batch, batch_idx):
        optimizer = project.optimizers()
        optimizer.zero_grad()
        project.manual_backward(nn.functional.cross_entropy(project(batch[0]), batch[1]))
        optimizer.step()

    project.training_step = training_step
    make_trainer(first_step).fit(project, loader)
    expected = analyze(make_project(), next(iter(loader))).statistics["head"]
    assert first_step.report.statistics["head"] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert first_step.report.loss is None
    assert "no gradient was seen" not in str(first_step.report)


def test_a_frozen_backbone_is_frozen_and_not_cut_off(make_project, make_trainer, loader, first_step):
    project = make_project()
    project.body.requires_grad_(False)
    make_trainer(first_step).fit(project, loader)
    assert "gradient_std" not in first_step.report.statistics["body.0"]
    assert [finding.says for finding in first_step.report.findings if "loss" in finding.says] == []
    assert first_step.report.findings[-1].says == "Frozen (no weight is trained): 'body.0', 'body.2'."


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 4}, {"precision": "bf16-mixed"}], ids=str)
def test_gradients_are_those_of_the_mean_loss(settings, make_project, make_trainer, loader, first_step):
    make_trainer(first_step, **settings).fit(make_project(), loader)
    expected = analyze(make_project(), next(iter(loader))).statistics
    tolerance = 0.02 if "precision" in settings else 1e-4
    for layer, row in first_step.report.statistics.items():
        assert row["gradient_std"] == pytest.approx(expected[layer]["gradient_std"], rel=tolerance)


def test_a_module_that_skips_its_batches_gives_no_report_and_ends(make_project, make_trainer, loader, first_step):
    project = make_project()
    project.on_train_batch_start = lambda batch, batch_idx: -1
    make_trainer(first_step, max_epochs=-1).fit(project, loader)
    assert first_step.report is None
    assert not hooked(project)


def test_patterns_choose_layers(make_project, make_trainer, loader):
    first_step = FirstStepReport(include=["body.*"], exclude=["body.0.*"])
    make_trainer(first_step).fit(make_project(), loader)
    assert list(first_step.report.statistics) == ["body.2"]


def test_data_that_are_nan_are_said_so(make_project, make_trainer, first_step):
    data = TensorDataset(torch.full((8, 8), math.nan), torch.zeros(8, dtype=torch.int64))
    make_trainer(first_step).fit(make_project(), DataLoader(data, batch_size=8))
    assert first_step.report.findings[0].says == "Not finite: the input of 'body.0'."
