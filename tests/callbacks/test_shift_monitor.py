import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, ShiftMonitor, constrain
from lcw_lightning.layers import named_weights
from lcw_lightning.recording import observe
from lcw_lightning.statistics import NetworkMoments, layer_statistics

STATISTICS = [
    "amplification_backward",
    "amplification_forward",
    "constraint_residual",
    "dead_units",
    "gradient_std",
    "input_mean",
    "input_mean_spread",
    "preactivation_std",
    "shift_angle_degrees",
    "shift_ratio",
    "sparsity",
]
LAYERS = ["body.0", "body.2", "head"]


def logged(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def scalars(trainer):
    found = logged(trainer.logger.log_dir)
    return {tag: values for tag, values in found.items() if tag.split("/")[0] in STATISTICS}


@pytest.fixture
def logger(tmp_path):
    return TensorBoardLogger(tmp_path)


def test_each_statistic_of_each_layer_is_logged_every_n_steps(make_project, make_trainer, loader, logger):
    trainer = make_trainer(ShiftMonitor(every_n_steps=3), logger=logger, max_epochs=2, log_every_n_steps=1)
    trainer.fit(make_project(), loader)
    found = scalars(trainer)
    assert sorted(found) == sorted(f"{statistic}/{layer}" for statistic in STATISTICS for layer in LAYERS)
    assert all(list(values) == [0, 3, 6] for values in found.values())


def test_values_are_those_of_the_batch_and_the_weights_before_the_step(make_project, make_trainer, loader, logger):
    trainer = make_trainer(ConstraintCallback(), ShiftMonitor(), logger=logger, max_steps=1, log_every_n_steps=1)
    trainer.fit(make_project(), loader)

    project, (inputs, labels) = make_project(), next(iter(loader))
    constrain(project)
    refs = {name.removesuffix(".weight"): ref for name, ref in named_weights(project).items()}
    moments = NetworkMoments(refs)
    with observe({name: ref.layer for name, ref in refs.items()}, moments.update):
        torch.nn.functional.cross_entropy(project(inputs), labels).backward()
    found = scalars(trainer)
    for name, ref in refs.items():
        expected = layer_statistics(moments.compute()[name], ref, ref.value.detach(), ref.layer.bias.detach())
        for statistic, value in expected.items():
            assert found[f"{statistic}/{name}"][0] == pytest.approx(value.item(), rel=1e-5, abs=1e-9), statistic


def test_training_is_bit_for_bit_the_same_with_and_without(make_project, make_trainer, loader, logger):
    watched, plain = make_project(), make_project()
    callbacks = ConstraintCallback(), MinibatchInitCallback()
    make_trainer(*callbacks, ShiftMonitor(every_n_steps=1), logger=logger, log_every_n_steps=1).fit(watched, loader)
    make_trainer(*callbacks).fit(plain, loader)
    for key, value in plain.state_dict().items():
        assert torch.equal(watched.state_dict()[key], value), key


def test_between_samples_and_after_training_there_is_no_hook(make_project, make_trainer, loader, logger):
    project = make_project()
    seen = []
    project.on_before_zero_grad = lambda optimizer: seen.append(len(project.head._forward_hooks))
    make_trainer(ShiftMonitor(every_n_steps=2), logger=logger, log_every_n_steps=1).fit(project, loader)
    assert seen == [1, 0, 1, 0]
    assert not project.head._forward_hooks


def test_a_failing_step_leaves_no_hook(make_project, make_trainer, logger):
    project = make_project()
    loader = DataLoader(TensorDataset(torch.randn(4, 7), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(RuntimeError, match="must match the size"):
        make_trainer(ShiftMonitor(), logger=logger, log_every_n_steps=1).fit(project, loader)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in project.modules())


def test_accumulated_gradients_give_one_sample_a_step(make_project, make_trainer, loader, logger):
    trainer = make_trainer(ShiftMonitor(every_n_steps=1), logger=logger, accumulate_grad_batches=2, log_every_n_steps=1)
    trainer.fit(make_project(), loader)
    assert list(scalars(trainer)["shift_ratio/head"]) == [0, 1]


def test_the_gradient_is_that_of_the_mean_loss_whatever_is_accumulated(make_project, make_trainer, loader, tmp_path):
    found = []
    for batches in (1, 4):
        logger = TensorBoardLogger(tmp_path, version=batches)
        trainer = make_trainer(ShiftMonitor(), logger=logger, accumulate_grad_batches=batches, log_every_n_steps=1)
        trainer.fit(make_project(), loader)
        found.append(scalars(trainer)["gradient_std/head"][0])
    assert found[0] == pytest.approx(found[1])


def test_a_run_after_a_failed_one_samples_its_first_step(make_project, make_trainer, loader, logger):
    project, monitor = make_project(), ShiftMonitor()
    spoiled = DataLoader(TensorDataset(torch.randn(4, 7), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(RuntimeError, match="must match the size"):
        make_trainer(monitor, logger=logger, log_every_n_steps=1).fit(project, spoiled)
    trainer = make_trainer(monitor, logger=logger, log_every_n_steps=1)
    trainer.fit(project, loader)
    assert list(scalars(trainer)["shift_ratio/head"]) == [0]


def test_a_batch_that_the_module_skips_leaves_no_hook(make_project, make_trainer, loader, logger):
    project = make_project()
    project.on_train_batch_start = lambda batch, batch_idx: -1
    make_trainer(ShiftMonitor(), logger=logger, log_every_n_steps=1).fit(project, loader)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in project.modules())


def test_patterns_choose_layers(make_project, make_trainer, loader, logger):
    trainer = make_trainer(ShiftMonitor(include=["body.*"], exclude=["*.2.*"]), logger=logger, log_every_n_steps=1)
    trainer.fit(make_project(), loader)
    assert {tag.split("/")[1] for tag in scalars(trainer)} == {"body.0"}


def test_any_logger_gets_the_scalars(make_project, make_trainer, loader, tmp_path):
    logger = CSVLogger(tmp_path)
    make_trainer(ShiftMonitor(), logger=logger, log_every_n_steps=1).fit(make_project(), loader)
    assert "shift_ratio/head" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()


@pytest.mark.parametrize("settings", [{"every_n_steps": 0}, {"every_n_steps": 50}], ids=["off", "no-logger"])
def test_without_a_logger_or_switched_off_nothing_is_observed(settings, make_project, make_trainer, loader):
    project = make_project()
    seen = []
    project.on_before_zero_grad = lambda optimizer: seen.append(len(project.head._forward_hooks))
    make_trainer(ShiftMonitor(**settings)).fit(project, loader)
    assert seen == [0, 0, 0, 0]


def test_a_compiled_network_is_observed_in_eager_mode(make_project, make_trainer, loader, logger):
    project = make_project()
    project.body.compile(backend="aot_eager")
    project(next(iter(loader))[0])  # compiled code without hooks is there already
    trainer = make_trainer(ShiftMonitor(every_n_steps=2), logger=logger, log_every_n_steps=1)
    trainer.fit(project, loader)
    assert {tag.split("/")[1] for tag in scalars(trainer)} == set(LAYERS)


def test_a_negative_period_is_refused():
    with pytest.raises(ValueError, match="every_n_steps >= 0, got -1"):
        ShiftMonitor(every_n_steps=-1)


def test_a_choice_of_layers_that_hooks_do_not_see_is_named(make_project, make_trainer, loader, tmp_path):
    project = make_project()
    project.memory = torch.nn.GRU(3, 4)
    settings = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    with pytest.raises(ValueError, match=r"sees Linear layers and convolutions, .* none among 'memory\.weight_ih_l0'"):
        make_trainer(ShiftMonitor(include=["memory.*"]), **settings).fit(project, loader)
