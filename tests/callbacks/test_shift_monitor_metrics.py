"""The metrics shift/..., which other callbacks watch."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcw_lightning import ShiftMonitor
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.snapshot import Snapshot
from lcw_lightning.observation.summary import summary

METRICS = [f"shift/{name}" for name in ("shift_ratio_median", "shift_ratio_max", "gradient_decades", "dead_units_max")]
both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


class Keep(Callback):
    """Keeps the metrics that other callbacks see, after each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        found = trainer.callback_metrics
        self.seen.append({name: found[name].item() for name in found if name.startswith("shift/")})


@both
def test_metrics_are_those_of_the_sampled_step_with_a_logger_or_without(
    make_project, make_trainer, loader, lightning, tmp_path
):
    project = make_project()
    inputs, labels = next(iter(loader))
    snapshot = Snapshot(observed_layers(fresh := copy.deepcopy(project)))
    with snapshot.watching():
        torch.nn.functional.cross_entropy(fresh(inputs), labels).backward()
    statistics = snapshot.statistics()
    expected = summary(statistics, snapshot.num_values("preactivation_gradient"))
    for logger in (False, lightning.loggers.CSVLogger(tmp_path)):
        trainer = make_trainer(ShiftMonitor(figures=False), logger=logger, log_every_n_steps=1)
        trainer.fit(copy.deepcopy(project), loader)
        found = {name: value.item() for name, value in trainer.callback_metrics.items() if name in METRICS}
        assert list(found) == METRICS
        assert found == pytest.approx(expected, rel=1e-5)


def test_loggers_get_them_first_and_in_one_row(make_project, make_trainer, loader, tmp_path):
    logger = TensorBoardLogger(tmp_path), CSVLogger(tmp_path, name="csv")
    make_trainer(ShiftMonitor(2, figures=False), logger=logger, log_every_n_steps=1).fit(make_project(), loader)
    found = EventAccumulator(logger[0].log_dir).Reload()
    assert all([event.step for event in found.Scalars(name)] == [0, 2] for name in METRICS)
    header, *rows = [line.split(",") for line in (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()]
    with_shift = [row for row in rows if row[header.index(METRICS[0])]]
    assert len(with_shift) == 2
    assert all(row[header.index("shift_ratio/head")] for row in with_shift)


@pytest.mark.parametrize(("threshold", "epochs"), [(1e9, 1), (-1e9, 4)], ids=["met", "not-met"])
def test_early_stopping_ends_a_run_whose_metric_meets_its_threshold(
    threshold, epochs, make_project, make_trainer, loader
):
    stop = EarlyStopping("shift/gradient_decades", stopping_threshold=threshold, patience=99)
    trainer = make_trainer(ShiftMonitor(every_n_steps=50), stop, max_epochs=4)  # one sample in all
    trainer.fit(make_project(), loader, loader)
    assert trainer.current_epoch == epochs


def test_a_checkpoint_is_kept_by_a_metric(make_project, make_trainer, loader, tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="shift/shift_ratio_max")
    trainer = make_trainer(ShiftMonitor(every_n_steps=4), keep, max_epochs=3, enable_checkpointing=True)
    trainer.fit(make_project(), loader)
    assert keep.best_model_score.isfinite()


def test_a_resumed_run_has_the_metrics_of_its_checkpoint_until_its_next_sample(
    make_project, make_trainer, loader, tmp_path
):
    first = make_trainer(ShiftMonitor(every_n_steps=3), enable_checkpointing=True, max_epochs=1)
    first.fit(make_project(), loader)
    path, keep = first.checkpoint_callback.best_model_path, Keep()
    resumed = make_trainer(ShiftMonitor(every_n_steps=3), keep, max_epochs=2)
    resumed.fit(make_project(), loader, ckpt_path=path)  # at step 4
    before = {name: first.callback_metrics[name].item() for name in METRICS}
    assert keep.seen[0] == keep.seen[1] == before
    assert keep.seen[2] != before
    # A control: a run that is not resumed, with a callback that has seen another.
    monitor, keep = ShiftMonitor(every_n_steps=3), Keep()
    monitor.load_state_dict(before)
    make_trainer(monitor, keep, max_epochs=1).fit(make_project(optimizer_kwargs={"lr": 0.0}), loader)
    assert keep.seen[0].keys() == before.keys()
    assert keep.seen[0] != before


def test_two_monitors_of_different_layers_can_be_saved_together(make_project, make_trainer, loader):
    monitors = ShiftMonitor(include=["body.*"]), ShiftMonitor(include=["head.*"])
    trainer = make_trainer(*monitors, enable_checkpointing=True)
    trainer.fit(make_project(), loader)
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["callbacks"]
    assert sum("ShiftMonitor" in key for key in saved) == 2


def test_a_barebones_trainer_samples_nothing(make_project, loader):
    project, seen = make_project(), []
    project.on_before_zero_grad = lambda optimizer: seen.append(len(project.head._forward_hooks))
    Trainer(barebones=True, max_epochs=1, accelerator="cpu", callbacks=[ShiftMonitor()]).fit(project, loader)
    assert seen == [0, 0, 0, 0]


class Turned(LightningModule):
    """Calls its layers in an order that depends on the rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(6))
        self.seen = torch.nn.Buffer(torch.zeros(2, len(METRICS)))

    def training_step(self, batch, number):
        outputs = batch[0]
        for layer in self.layers if self.global_rank == 0 else reversed(self.layers):
            outputs = torch.relu(layer(outputs))
        return outputs.square().sum()

    def on_train_end(self):
        ours = torch.tensor([self.trainer.callback_metrics[name] for name in METRICS])
        self.seen.copy_(self.all_gather(ours))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.slow
def test_ranks_agree_even_where_they_call_layers_in_different_orders(make_trainer, loader, forkserver, tmp_path):
    module = Turned()
    strategy = DDPStrategy(start_method=forkserver.get_start_method())
    trainer = make_trainer(ShiftMonitor(figures=False), strategy=strategy, devices=2, max_epochs=1)
    trainer.fit(module, loader)
    assert module.seen.isfinite().all()
    assert torch.equal(*module.seen)
