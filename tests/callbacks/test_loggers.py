"""What each of Lightning's loggers is given."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lcw_lightning.callbacks.charts import charts
from lcw_lightning.callbacks.loggers import (
    Shown,
    lay_out_charts,
    log_scalars,
    log_shown,
    say_what_is_not_taken,
    takes,
)

SCALARS = {"shift_ratio/body.0": 0.1, "shift_ratio/head": 1e-30, "gradient_std/head": float("inf"), "sparsity/a b": 1e9}


class Gallery(Logger):
    """Takes images as W&B's logger does."""

    name, version = "gallery", "0"

    def __init__(self):
        super().__init__()
        self.images, self.metrics = [], []

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, params):
        pass

    def log_image(self, key, images, step=None, **kwargs):
        assert isinstance(images, list)
        self.images.append((key, step, *images))


def events(logger):
    logger.finalize("success")
    found = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(logger):
    found = events(logger)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def layout(logger):
    (event,) = events(logger).Tensors("custom_scalars__config__")
    return Layout.FromString(event.tensor_proto.string_val[0])


@pytest.mark.parametrize("prefix", ["", "run"], ids=["plain", "prefixed"])
def test_tensorboard_reads_what_log_metrics_would_have_written(prefix, tmp_path):
    ours, theirs = (TensorBoardLogger(tmp_path, name, prefix=prefix) for name in ("ours", "theirs"))
    for step in (0, 50):
        log_scalars(ours, SCALARS, step)
        theirs.log_metrics(SCALARS, step)
    assert scalars(ours) == scalars(theirs)
    assert len(scalars(ours)) == 4


def test_tensorboard_gets_one_event_a_sample(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    log_scalars(logger, SCALARS, 7)
    logger.finalize("success")
    (path,) = Path(logger.log_dir).glob("events*")
    (event,) = [event for event in EventFileLoader(str(path)).Load() if event.step == 7]
    assert [value.tag for value in event.summary.value] == list(SCALARS)


def test_other_loggers_get_the_scalars_as_metrics(tmp_path):
    logger, gallery = CSVLogger(tmp_path), Gallery()
    for each in (logger, gallery):
        log_scalars(each, SCALARS, 7)
    logger.save()
    (row,) = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    assert {tag: float(row[tag]) for tag in SCALARS} == SCALARS
    assert gallery.metrics == [(7, SCALARS)]


def picture():
    return np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


def test_images_arrive_pixel_by_pixel(tmp_path):
    tensorboard, gallery = TensorBoardLogger(tmp_path), Gallery()
    for logger in (tensorboard, gallery):
        assert "images" in takes(logger)
        log_shown(logger, Shown({}, images={"depth/shift_ratio": picture()}), 7)
    (event,) = events(tensorboard).Images("depth/shift_ratio")
    assert event.step == 7
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), picture())
    ((key, step, image),) = gallery.images
    assert (key, step) == ("depth/shift_ratio", 7)
    assert np.array_equal(image, picture())


def test_nothing_is_said_of_the_logger_of_fast_dev_run(caplog):
    with caplog.at_level("INFO"):
        say_what_is_not_taken([DummyLogger()], ["images"])
    assert not caplog.messages


def test_a_logger_of_numbers_is_sent_one_row_and_told_once_what_is_missing(tmp_path, caplog):
    logger = CSVLogger(tmp_path)
    shown = Shown(
        scalars=SCALARS,
        bands={"band/shift_ratio/median": 0.1},
        images={"depth/shift_ratio": picture()},
        histograms={"preactivation/head": torch.randn(10)},
        texts={"verdict": "nothing is the matter."},
    )
    assert takes(logger) == set()
    with caplog.at_level("INFO"):
        say_what_is_not_taken([logger], ["images", "texts"])
    assert caplog.messages == ["ShiftMonitor: CSVLogger is given scalars, but no images and no texts."]
    lay_out_charts(logger, charts(["shift/dead_units_max"], ["shift_ratio"]))
    log_shown(logger, shown, 7)
    logger.save()
    (row,) = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    assert row.keys() == {*SCALARS, "step"}
    assert [path.name for path in Path(logger.log_dir).iterdir()] == ["metrics.csv"]


def test_a_logger_that_takes_all_is_told_nothing(tmp_path, caplog):
    with caplog.at_level("INFO"):
        say_what_is_not_taken([TensorBoardLogger(tmp_path)], ["images", "histograms", "texts"])
        assert caplog.messages == []
        say_what_is_not_taken([], ["images"])
    assert "without a logger" in caplog.text


def test_texts_and_bands_reach_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    log_shown(logger, Shown({"a": 1.0}, bands={"band/a": 2.0}, texts={"verdict": "*all* is well"}), 7)
    (event,) = events(logger).Tensors("verdict/text_summary")
    assert (event.step, event.tensor_proto.string_val[0]) == (7, b"*all* is well")
    assert scalars(logger) == {"a": [(7, 1.0)], "band/a": [(7, 2.0)]}


def test_histograms_hold_the_values(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    values = torch.randn(4096)
    log_shown(logger, Shown({}, histograms={"preactivation/head": values}), 7)
    (event,) = events(logger).Histograms("preactivation/head")
    found = event.histogram_value
    assert (event.step, found.num) == (7, 4096)
    assert (found.min, found.max) == (values.min().item(), values.max().item())
    counts = np.histogram(values.numpy(), [-np.inf, *found.bucket_limit])[0]
    assert np.array_equal(counts, found.bucket)
    assert len(found.bucket) <= 66  # the 1,500 of TensorBoard's own would take 24 KB


def test_histograms_leave_out_what_is_not_finite(tmp_path):
    logger, gap = TensorBoardLogger(tmp_path), torch.full((10,), torch.nan)
    values = {"unseen": gap, "diverged": torch.cat((gap, torch.tensor([1.0, 2.0, torch.inf])))}
    log_shown(logger, Shown({}, histograms=values), 7)
    found = events(logger)
    assert found.Tags()["histograms"] == ["diverged"]
    assert found.Histograms("diverged")[0].histogram_value.num == 2


@pytest.mark.parametrize("prefix", ["", "run"], ids=["plain", "prefixed"])
def test_each_statistic_has_a_chart_of_all_its_layers_and_of_nothing_else(prefix, tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix=prefix)
    statistics = ["shift_ratio", "input_mean", "input_mean_spread"]
    tags = {f"{statistic}/{layer}" for statistic in statistics for layer in ("body.0", "head", "input_mean/deep")}
    first = ["shift/dead_units_max", "shift/shift_ratio_max"]
    lay_out_charts(logger, charts(first, statistics))
    log_scalars(logger, dict.fromkeys([*tags, *first, "val_input_mean/head"], 1.0), 0)
    read_first, bands, by_layer = layout(logger).category
    assert [chart.title for chart in read_first.chart] == first
    assert all(chart.HasField("margin") for chart in bands.chart)
    lines = list(by_layer.chart)
    assert [chart.title for chart in lines] == statistics
    written = set(scalars(logger))
    for chart in (*lines, *read_first.chart):
        shown = {tag for tag in written if any(re.search(pattern, tag) for pattern in chart.multiline.tag)}
        assert shown == {tag for tag in written if f"{tag.removeprefix('run-')}/".startswith(f"{chart.title}/")}
        assert len(shown) == (3 if chart in lines else 1)
