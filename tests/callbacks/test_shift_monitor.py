from csv import DictReader
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, ShiftMonitor, constrain

LAYERS = ["body.0", "body.2", "head"]
both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


def events(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def logged(folder):
    found = events(folder)
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


@pytest.fixture
def scalars(statistics):
    """Return a function of a trainer: what the monitor has logged to TensorBoard."""

    def of_steps(trainer):
        found = logged(trainer.logger.log_dir)
        return {tag: values for tag, values in found.items() if tag.split("/")[0] in statistics}

    return of_steps


@pytest.fixture
def logger(lightning, tmp_path):
    return lightning.loggers.TensorBoardLogger(tmp_path)


@both
def test_each_statistic_of_each_layer_is_logged_every_n_steps(
    make_project, make_trainer, loader, logger, scalars, statistics
):
    trainer = make_trainer(
        ShiftMonitor(every_n_steps=3, figures=False), logger=logger, max_epochs=2, log_every_n_steps=1
    )
    trainer.fit(make_project(), loader)
    found = scalars(trainer)
    assert sorted(found) == sorted(f"{statistic}/{layer}" for statistic in statistics for layer in LAYERS)
    assert all(list(values) == [0, 3, 6] for values in found.values())


def textbook(layer, a, z, da, dz):
    """The statistics of a linear layer from what autograd gives."""
    weight = layer.weight.detach().double()
    a, z, da, dz = (tensor.detach().double() for tensor in (a, z - layer.bias, da, dz))
    va, vz, vda, vdz = (tensor.var(0, correction=0).mean() for tensor in (a, z, da, dz))
    cosine = torch.cosine_similarity(weight, a.mean(0).expand_as(weight), dim=1)
    values = {
        "shift_ratio": (z.mean(0).square().mean() / vz).sqrt(),
        "shift_angle_degrees": (90 - cosine.acos().rad2deg()).abs().mean(),
        "input_mean": a.mean(),
        "input_mean_spread": a.mean(0).std(correction=0),
        "preactivation_std": vz.sqrt(),
        "gradient_std": vdz.sqrt(),
        "amplification_forward": vz / va,
        "amplification_backward": vda / vdz,
        "sparsity": (a == 0).double().mean(),
        "dead_units": (a == 0).all(0).double().mean(),
        "constraint_residual": (weight.sum(1).abs() / weight.norm(dim=1)).max(),
    }
    return {name: value.item() for name, value in values.items()}


def step_by_hand(project, batch):
    """The statistics of every layer of the project in a training step, layer by layer."""
    (inputs, labels), tensors = batch, []
    for module in (*project.body, project.head):
        inputs = inputs.detach().requires_grad_() if not tensors else inputs
        outputs = module(inputs)
        if isinstance(module, torch.nn.Linear):
            tensors.append((inputs, outputs))
        inputs = outputs
    loss = torch.nn.functional.cross_entropy(outputs, labels)
    gradients = torch.autograd.grad(loss, [tensor for pair in tensors for tensor in pair])
    layers = [project.body[0], project.body[2], project.head]
    return {
        name: textbook(layer, a, z, da, dz)
        for name, layer, (a, z), da, dz in zip(LAYERS, layers, tensors, gradients[::2], gradients[1::2], strict=True)
    }


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_values_are_those_of_the_batch_and_the_weights_before_the_step(
    precision, make_project, make_trainer, loader, logger
):
    settings = {"logger": logger, "max_steps": 1, "log_every_n_steps": 1, "precision": precision}
    project = make_project(optimizer_kwargs={"lr": 10.0})
    make_trainer(ConstraintCallback(), ShiftMonitor(figures=False), **settings).fit(project, loader)
    found, batch = logged(logger.log_dir), next(iter(loader))
    fresh = make_project()
    constrain(fresh)
    for name, row in step_by_hand(fresh, batch).items():
        for statistic, value in row.items():
            assert found[f"{statistic}/{name}"][0] == pytest.approx(value, rel=1e-3, abs=1e-5), (statistic, name)
    # A control: after the step they are others.
    after = step_by_hand(project.float(), batch)["head"]
    assert found["shift_ratio/head"][0] != pytest.approx(after["shift_ratio"], rel=1e-2)


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_weights_count_as_rescaled_wherever_the_monitor_is_listed(
    is_first, make_project, make_trainer, loader, logger, scalars
):
    callbacks = [ShiftMonitor(figures=False), MinibatchInitCallback()][:: 1 if is_first else -1]
    trainer = make_trainer(*callbacks, logger=logger, max_steps=1, log_every_n_steps=1)
    trainer.fit(make_project(), loader)
    found = scalars(trainer)
    fresh, (inputs, _) = make_project(), next(iter(loader))
    with torch.no_grad():  # by hand, layer after layer
        for layer in (fresh.body[0], fresh.body[2], fresh.head):
            layer.bias.zero_()
        for layer, inside in ((fresh.body[0], 1), (fresh.body[2], 3), (fresh.head, None)):
            z = fresh(inputs) if inside is None else fresh.body[:inside](inputs)
            layer.weight /= z.std(correction=0)
    for name, row in step_by_hand(fresh, next(iter(loader))).items():
        for statistic in ("shift_ratio", "preactivation_std", "shift_angle_degrees", "amplification_forward"):
            assert found[f"{statistic}/{name}"][0] == pytest.approx(row[statistic], rel=1e-3), (statistic, name)


def test_between_samples_and_after_training_there_is_no_hook(make_project, make_trainer, loader, logger):
    project = make_project()
    seen = []
    project.on_before_zero_grad = lambda optimizer: seen.append(len(project.head._forward_hooks))
    make_trainer(ShiftMonitor(every_n_steps=2, figures=False), logger=logger, log_every_n_steps=1).fit(project, loader)
    assert seen == [1, 0, 1, 0]
    assert not project.head._forward_hooks


def test_a_failing_step_leaves_no_hook(make_project, make_trainer, logger):
    project = make_project()
    loader = DataLoader(TensorDataset(torch.randn(4, 7), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_trainer(ShiftMonitor(figures=False), logger=logger, log_every_n_steps=1).fit(project, loader)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in project.modules())


def test_accumulated_gradients_give_one_sample_a_step(make_project, make_trainer, loader, logger, scalars):
    project, hooks = make_project(), []
    step = project.training_step

    def training_step(batch, batch_idx):
        hooks.append(len(project.head._forward_hooks))
        return step(batch, batch_idx)

    project.training_step = training_step
    trainer = make_trainer(
        ShiftMonitor(every_n_steps=1, figures=False), logger=logger, accumulate_grad_batches=2, log_every_n_steps=1
    )
    trainer.fit(project, loader)
    assert hooks == [1, 0, 1, 0]
    assert list(scalars(trainer)["shift_ratio/head"]) == [0, 1]


def test_the_gradient_is_that_of_the_mean_loss_whatever_is_accumulated(
    make_project, make_trainer, loader, tmp_path, scalars
):
    found = []
    for batches in (1, 4):
        logger = TensorBoardLogger(tmp_path, version=batches)
        trainer = make_trainer(
            ShiftMonitor(figures=False), logger=logger, accumulate_grad_batches=batches, log_every_n_steps=1
        )
        trainer.fit(make_project(), loader)
        found.append(scalars(trainer)["gradient_std/head"][0])
    assert found[0] == pytest.approx(found[1])


def test_a_run_after_a_failed_one_samples_its_first_step(make_project, make_trainer, loader, logger, scalars):
    project, monitor = make_project(), ShiftMonitor(figures=False)
    spoiled = DataLoader(TensorDataset(torch.randn(4, 7), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_trainer(monitor, logger=logger, log_every_n_steps=1).fit(project, spoiled)
    trainer = make_trainer(monitor, logger=logger, log_every_n_steps=1)
    trainer.fit(project, loader)
    assert list(scalars(trainer)["shift_ratio/head"]) == [0]


def test_a_batch_that_the_module_skips_leaves_no_hook(make_project, make_trainer, loader, logger):
    project = make_project()
    project.on_train_batch_start = lambda batch, batch_idx: -1
    make_trainer(ShiftMonitor(figures=False), logger=logger, log_every_n_steps=1).fit(project, loader)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in project.modules())


def test_patterns_choose_layers(make_project, make_trainer, loader, logger, scalars):
    trainer = make_trainer(
        ShiftMonitor(figures=False, include=["body.*"], exclude=["*.2.*"]), logger=logger, log_every_n_steps=1
    )
    trainer.fit(make_project(), loader)
    assert {tag.split("/")[1] for tag in scalars(trainer)} == {"body.0"}


def test_any_logger_gets_the_scalars(make_project, make_trainer, loader, tmp_path):
    logger = CSVLogger(tmp_path)
    make_trainer(ShiftMonitor(figures=False), logger=logger, log_every_n_steps=1).fit(make_project(), loader)
    assert "shift_ratio/head" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()


@pytest.mark.parametrize("every_n_steps", [0, 50], ids=["off", "on"])
def test_switched_off_it_observes_nothing(every_n_steps, make_project, make_trainer, loader, logger):
    project = make_project()
    seen = []
    project.on_before_zero_grad = lambda optimizer: seen.append(len(project.head._forward_hooks))
    make_trainer(ShiftMonitor(every_n_steps), logger=logger, log_every_n_steps=1).fit(project, loader)
    assert seen == [int(every_n_steps > 0), 0, 0, 0]


def test_a_compiled_network_is_observed_in_eager_mode(make_project, make_trainer, loader, logger, scalars):
    project = make_project()
    project.body.compile(backend="aot_eager")
    project(next(iter(loader))[0])  # compiled code without hooks is there already
    trainer = make_trainer(ShiftMonitor(every_n_steps=2, figures=False), logger=logger, log_every_n_steps=1)
    trainer.fit(project, loader)
    assert {tag.split("/")[1] for tag in scalars(trainer)} == set(LAYERS)


def test_a_negative_period_is_refused():
    with pytest.raises(ValueError, match="every_n_steps >= 0, got -1"):
        ShiftMonitor(every_n_steps=-1)


def test_a_module_without_layers_trains_unobserved(make_project, make_trainer, loader, logger):
    class Scaled(type(make_project())):
        def build(self):
            self.scale = torch.nn.Parameter(torch.ones(8))

        def forward(self, inputs):
            return inputs * self.scale

    settings = {"logger": logger, "log_every_n_steps": 1}
    project = Scaled()
    make_trainer(ShiftMonitor(every_n_steps=1), **settings).fit(project, loader)
    assert (project.scale != 1).all()
    for patterns in ({"include": ["body.*"]}, {"exclude": ["body.*"]}):  # which name what is not there
        with pytest.raises(ValueError, match="Scaled has no weight for the pattern"):
            make_trainer(ShiftMonitor(**patterns), **settings).fit(Scaled(), loader)


def test_a_pattern_that_matches_nothing_is_named_at_the_first_sample(make_project, make_trainer, loader, tmp_path):
    settings = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    with pytest.raises(ValueError, match=r"'memory\.\*' matches no weight of Project; near it are"):
        make_trainer(ShiftMonitor(include=["memory.*"]), **settings).fit(make_project(), loader)


def test_a_resumed_run_goes_on_with_the_schedule(make_project, make_trainer, loader, tmp_path, scalars):
    trainer = make_trainer(enable_checkpointing=True, max_epochs=1)
    trainer.fit(make_project(), loader)
    path = trainer.checkpoint_callback.best_model_path
    logger = TensorBoardLogger(tmp_path, name="resumed")
    resumed = make_trainer(
        ShiftMonitor(every_n_steps=3, figures=False), logger=logger, max_epochs=3, log_every_n_steps=1
    )
    resumed.fit(make_project(), loader, ckpt_path=path)  # at step 4
    assert list(scalars(resumed)["shift_ratio/head"]) == [6, 9]


@both
def test_several_loggers_get_the_same(lightning, make_project, make_trainer, loader, logger, tmp_path, statistics):
    csv = lightning.loggers.CSVLogger(tmp_path, name="csv")
    make_trainer(ShiftMonitor(figures=False), logger=[csv, logger], log_every_n_steps=1).fit(make_project(), loader)
    rows = DictReader(Path(csv.log_dir, "metrics.csv").read_text().splitlines())
    (row,) = [row for row in rows if row["shift_ratio/head"]]
    for tag, values in logged(logger.log_dir).items():
        if tag.partition("/")[0] in statistics:
            assert float(row[tag]) == pytest.approx(values[0], rel=1e-6), tag


def test_a_step_that_reaches_no_layer_is_passed_over(make_project, make_trainer, loader, logger, scalars):
    project = make_project()
    project.idle = torch.nn.Linear(2, 2)
    monitor = ShiftMonitor(every_n_steps=2, include=["idle.*"], histograms=True)

    def call_it_once(batch, number):
        if number == 2:
            project.idle(torch.ones(3, 2)).sum().backward()

    project.on_train_batch_start = call_it_once
    trainer = make_trainer(monitor, logger=logger, log_every_n_steps=1)
    trainer.fit(project, loader)
    assert {tag: list(values) for tag, values in scalars(trainer).items()}["shift_ratio/idle"] == [2]
    (event,) = events(logger.log_dir).Tensors("custom_scalars__config__")
    assert b"shift_ratio" in event.tensor_proto.string_val[0]


def test_gates_of_recurrent_layers_are_logged_beside_their_states(
    make_project, make_trainer, loader, logger, scalars, statistics
):
    project = make_project(optimizer_kwargs={"lr": 1000.0})
    project.memory, forward = torch.nn.GRU(4, 4, batch_first=True), project.forward

    def read_in_two_steps(inputs):
        states, _ = project.memory(inputs.view(-1, 2, 4))
        return forward(states.flatten(1))

    project.forward = read_in_two_steps
    (inputs, _), before = next(iter(loader)), {name: w.clone() for name, w in project.memory.named_parameters()}
    make_trainer(ShiftMonitor(figures=False), logger=logger, max_steps=1, log_every_n_steps=1).fit(project, loader)
    found = logged(logger.log_dir)
    gates = [f"memory.{gate}_gate_l0" for gate in ("reset", "update", "candidate")]
    rows = ("preactivation_mean", "preactivation_std", "shift_ratio")
    assert {tag for tag in found if "gate_l0" in tag} == {f"{row}/{gate}" for row in rows for gate in gates}
    assert {f"{statistic}/memory" for statistic in statistics} <= set(found)

    # At the first step the state is zero, at the second it is the first output.
    def update(weights):
        first = torch.func.functional_call(project.memory, weights, inputs.view(-1, 2, 4))[0][:, 0]
        states = torch.stack((torch.zeros_like(first), first), dim=1)
        z = inputs.view(-1, 2, 4) @ weights["weight_ih_l0"][4:8].T + states @ weights["weight_hh_l0"][4:8].T
        return z.flatten(0, 1).var(0, correction=0).mean().sqrt().item()

    value = found["preactivation_std/memory.update_gate_l0"][0]
    assert value == pytest.approx(update(before), rel=1e-4)
    assert value != pytest.approx(update(dict(project.memory.named_parameters())), rel=1e-2)  # after the step
