"""What loggers show of a run's settings, and the names of runs."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lcw_lightning.cli.hyperparameters import hyperparameters


def shown(folder):
    """The settings and the names of metrics that TensorBoard's HParams tab reads, and the tags of scalars."""
    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    data = {
        tag: HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
        for tag in events.PluginTagToContent("hparams")
    }
    start = data["_hparams_/session_start_info"].session_start_info
    metrics = [info.name.tag for info in data["_hparams_/experiment"].experiment.metric_infos]
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    return values, metrics, events


def test_runs_of_two_kinds_are_told_apart_beside_metrics_that_were_measured(lcw):
    lcw("fit")
    lcw("fit", "--constraint.kind=none")
    (first, metrics, events), (second, _, _) = (shown(f"lightning_logs/version_{n}") for n in (0, 1))
    assert {name for name in first | second if first.get(name) != second.get(name)} == {
        "constraint.kind",
        "constraint.method",  # which no run without a constraint has
    }
    assert (first["constraint.kind"], second["constraint.kind"]) == ("lcw", "none")
    assert (first["model.network"], first["model.network.depth"], first["data"]) == ("MLP", 3, "Digits")
    assert (first["model.optimizer"], first["model.optimizer.lr"]) == ("SGD", 0.1)
    assert (first["seed_everything"], first["minibatch_init.granularity"]) == (0, "layer")
    assert metrics[:2] == ["val/accuracy", "val/loss"]
    assert "shift/gradient_decades" in metrics
    assert all(math.isfinite(events.Scalars(name)[-1].value) for name in metrics)
    assert "hp_metric" not in events.Tags()["scalars"]
    assert not any("_instantiator" in name for name in first)
    written = yaml.safe_load(Path("lightning_logs/version_0/hparams.yaml").read_text())
    words = {False: "false", True: "true"}  # a number, 0.0000, says less
    assert {name: words[value] if isinstance(value, bool) else value for name, value in written.items()} == first
    assert first["data.permuted"] == "false"


def test_no_metric_is_logged_that_was_not_measured(lcw):
    lcw("fit")
    _, metrics, events = shown("lightning_logs/version_0")
    assert [event.step for event in events.Scalars("val/accuracy")] == [10, 21]  # the ends of two epochs
    assert len(metrics) == len(set(metrics))


def test_other_loggers_get_the_settings(lcw):
    lcw("fit", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.", "--constraint.kind=cwn")
    settings = yaml.safe_load(Path("lightning_logs/version_0/hparams.yaml").read_text())
    assert (settings["constraint.kind"], settings["model.network.width"]) == ("cwn", 16)


def test_a_checkpoint_still_has_what_its_module_saved(small_checkpoint):
    saved = torch.load(small_checkpoint)["hyper_parameters"]
    assert saved["_instantiator"] == "lightning.pytorch.cli.instantiate_module"


CONFIG = {
    "seed_everything": 3,
    "trainer": {"max_epochs": 5},
    "constraint": {"kind": "lcw", "method": "project", "include": ["*"], "exclude": ["head.*"]},
    "edge_of_chaos_init": {"weights": "none", "q": 1.0},
    "model": {
        "class_path": "a.b.Net",
        "init_args": {"sizes": [3, 4], "bias": False, "norm": None, "inner": {"k": 1.5}},
    },
    "data": {"class_path": "Data"},
}


def test_each_setting_has_the_name_of_its_flag():
    assert hyperparameters(CONFIG) == {
        "seed_everything": 3,
        "constraint.kind": "lcw",
        "constraint.method": "project",
        "constraint.exclude": "['head.*']",
        "edge_of_chaos_init.weights": "none",
        "model": "Net",
        "model.sizes": "[3, 4]",
        "model.bias": False,
        "model.inner.k": 1.5,
        "data": "Data",
    }


def test_a_run_has_the_name_that_it_is_given(lcw):
    lcw("fit", "--run_name=lcw_deep")
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["lcw_deep"]
    assert Path("lightning_logs/lcw_deep/config.yaml").is_file()
    lcw("fit")  # a control: without a name Lightning counts
    assert Path("lightning_logs/version_0/config.yaml").is_file()


def test_a_name_beside_a_logger_of_ones_own_is_refused(lcw):
    with pytest.raises(SystemExit, match="--run_name names the folder of the default logger, got 'x' and --trainer"):
        lcw("fit", "--run_name=x", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.")
