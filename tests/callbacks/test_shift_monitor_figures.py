"""The monitor's figures, charts and histograms, as loggers show them."""

import io
import re

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch.utils.data import DataLoader, IterableDataset

from lcw_lightning import ShiftMonitor

LAYERS = ["body.0", "body.2", "head"]
both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


@pytest.fixture
def figures(statistics):
    """Tags of all figures of the project."""
    return ["boxes/by_layer", *(f"depth/{name}" for name in statistics), "units/body.2", "units/head"]


@pytest.fixture
def fit(lightning, make_project, make_trainer, loader, tmp_path):
    """Return a function that trains the project for ten steps and returns what TensorBoard reads of it."""

    def train(monitor, *callbacks, project=None, data=loader, **settings):
        settings = {"max_epochs": -1, "max_steps": 10, "log_every_n_steps": 1} | settings
        logger = lightning.loggers.TensorBoardLogger(tmp_path, name="logs")
        make_trainer(monitor, *callbacks, logger=logger, **settings).fit(project or make_project(), data)
        events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 0, "histograms": 0})
        events.Reload()
        return events

    return train


def steps(events, tag="depth/shift_ratio"):
    return [image.step for image in events.Images(tag)]


@both
def test_every_figure_is_an_image_that_shows_something(fit, figures):
    events = fit(ShiftMonitor(), max_steps=1)
    assert sorted(events.Tags()["images"]) == figures
    for tag in figures:
        (event,) = events.Images(tag)
        image = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        assert image.shape == (event.height, event.width, 3)
        assert 200 < event.height < 800
        assert 300 < event.width < 1280  # readable without zooming
        colourful = np.ptp(image.astype(int), axis=2) > 50
        assert colourful.sum() > 100, tag
        assert (image == 255).all(axis=2).mean() > 0.5, tag


def test_samples_0_4_16_and_so_on_and_the_last_are_plotted(fit, figures):
    events = fit(ShiftMonitor(every_n_steps=2), max_steps=40)
    assert {tuple(steps(events, tag)) for tag in figures} == {(0, 8, 32, 38)}
    assert len(events.Scalars("shift_ratio/head")) == 20


def test_the_last_sample_is_plotted_where_the_number_of_steps_is_no_multiple(fit):
    assert steps(fit(ShiftMonitor(every_n_steps=5), max_epochs=4, max_steps=-1)) == [0, 15]


class Endless(IterableDataset):
    def __init__(self, limit):
        self.limit = limit

    def __iter__(self):
        return iter([(torch.rand(8), torch.tensor(1))] * self.limit)


class StopAt(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 8


UNKNOWN_ENDS = {
    "endless": ({"max_epochs": -1, "max_steps": -1}, [StopAt()], 10**6),
    "iterable-of-two-epochs": ({"max_epochs": 2, "max_steps": -1}, [], 16),
}


@pytest.mark.parametrize(("settings", "callbacks", "limit"), UNKNOWN_ENDS.values(), ids=UNKNOWN_ENDS)
def test_where_nobody_knows_the_end_no_sample_is_taken_for_the_last(settings, callbacks, limit, fit):
    data = DataLoader(Endless(limit), batch_size=4)
    assert steps(fit(ShiftMonitor(every_n_steps=1), *callbacks, data=data, **settings)) == [0, 4]


def test_a_known_end_of_an_iterable_data_set_is_plotted(fit):
    data = DataLoader(Endless(10**6), batch_size=4)
    assert steps(fit(ShiftMonitor(every_n_steps=3), data=data, max_steps=11)) == [0, 9]


def test_two_optimizers_that_step_in_turn_plot_no_more_figures_than_one(make_project, fit):
    project = make_project()
    project.automatic_optimization = False
    training_step = project.training_step

    def step(batch, batch_idx):
        for optimizer in project.optimizers():
            optimizer.zero_grad()
            project.manual_backward(training_step(batch, batch_idx))
            optimizer.step()

    project.training_step = step
    project.configure_optimizers = lambda: [torch.optim.SGD(part.parameters(), lr=0.1) for part in project.children()]
    events = fit(ShiftMonitor(every_n_steps=4), project=project, max_epochs=6, max_steps=-1)  # 24 batches, 48 steps
    assert len(events.Scalars("shift_ratio/head")) == 12
    assert steps(events) == [0, 16, 20]  # of 24 the trainer takes the one at 20 for the last: it counts batches


def test_a_resumed_run_plots_the_samples_that_the_whole_run_would(make_project, make_trainer, loader, fit):
    trainer = make_trainer(enable_checkpointing=True, max_epochs=1)
    trainer.fit(make_project(), loader)
    path = trainer.checkpoint_callback.best_model_path
    logger = TensorBoardLogger(trainer.default_root_dir, name="resumed")
    resumed = make_trainer(
        ShiftMonitor(every_n_steps=1), logger=logger, max_steps=11, max_epochs=-1, log_every_n_steps=1
    )
    resumed.fit(make_project(), loader, ckpt_path=path)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    assert steps(events) == [4, 10]


def test_without_figures_there_are_scalars_and_charts_alone(fit):
    events = fit(ShiftMonitor(figures=False))
    assert events.Tags()["images"] == []
    assert events.Tags()["histograms"] == []
    assert events.Scalars("shift_ratio/head")


@both
def test_each_statistic_has_a_chart_of_all_layers_and_one_of_their_median_and_limits(fit, statistics):
    events = fit(ShiftMonitor(figures=False))
    (event,) = events.Tensors("custom_scalars__config__")
    _, bands, by_layer = Layout.FromString(event.tensor_proto.string_val[0]).category
    tags = events.Tags()["scalars"]
    assert sorted(chart.title for chart in by_layer.chart) == statistics
    for chart in by_layer.chart:
        (pattern,) = chart.multiline.tag
        shown = [tag for tag in tags if re.match(pattern, tag)]
        assert sorted(shown) == [f"{chart.title}/{layer}" for layer in LAYERS]
    limits = [chart.margin.series[0] for chart in bands.chart]
    assert len(limits) == len(statistics)
    assert {tag for series in limits for tag in (series.value, series.lower, series.upper)} <= set(tags)


@both
def test_the_verdict_comes_as_text_with_each_drawing(fit):
    events = fit(ShiftMonitor(every_n_steps=2, figures=False), max_steps=10)
    found = {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors("verdict/text_summary")}
    assert list(found) == [0, 8]
    assert all(text.startswith(("nothing is the matter", "what is the matter")) for text in found.values())


def test_the_verdict_says_whose_gates_are_not_seen(make_project, fit):
    class Own(torch.nn.GRU):
        def forward(self, inputs):
            return super().forward(2 * inputs)

    project = make_project()
    project.memory, forward = Own(8, 8), project.forward
    project.forward = lambda inputs: forward(project.memory(inputs)[0])
    found = fit(ShiftMonitor(figures=False), project=project, max_steps=1)
    text = found.Tensors("verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "not seen inside of recurrent layers: 'memory' (it does not compute as torch's own" in text
    assert not [tag for tag in found.Tags()["scalars"] if "_gate" in tag]


def test_the_verdict_says_what_is_the_matter(make_project, fit):
    project = make_project()
    with torch.no_grad():
        project.body[0].weight[0] = torch.nan
    with pytest.warns(UserWarning, match="in step 0: Not finite: the weights of 'body.0'"):
        text = fit(ShiftMonitor(figures=False), project=project, max_steps=1).Tensors("verdict/text_summary")[0]
    assert b"Not finite: the weights of 'body.0'" in text.tensor_proto.string_val[0]


def test_gains_that_were_zero_before_the_step_explain_gradients_of_zero(make_project, fit):
    project = make_project()
    project.gain = torch.nn.Parameter(torch.zeros(16))
    project.body.append(Gain(project.gain))
    text = fit(ShiftMonitor(figures=False), project=project, max_steps=1).Tensors("verdict/text_summary")[0]
    assert b"because the gains 'gain'" in text.tensor_proto.string_val[0]
    assert project.gain.any()  # a control: the step has moved them


class Gain(torch.nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, inputs):
        return inputs * self.gain


@both
def test_histograms_of_every_layer_come_at_every_sample_if_asked_for(fit):
    events = fit(ShiftMonitor(every_n_steps=2, figures=False, histograms=True))
    expected = {f"{quantity}/{layer}" for quantity in ("preactivation", "preactivation_gradient") for layer in LAYERS}
    assert expected <= set(events.Tags()["histograms"])
    for tag in expected:
        assert [event.step for event in events.Histograms(tag)] == [0, 2, 4, 6, 8]
    std = events.Scalars("preactivation_std/head")[0].value
    found = events.Histograms("preactivation/head")[0].histogram_value
    assert (found.sum_squares / found.num) ** 0.5 > std  # which is about the mean of each unit


def test_a_layer_that_is_never_called_breaks_neither_figures_nor_histograms(make_project, fit, figures):
    project = make_project()
    project.idle = torch.nn.Linear(2, 2)
    events = fit(ShiftMonitor(histograms=True), project=project, max_steps=1)
    assert sorted(events.Tags()["images"]) == figures
    assert not [tag for tag in (*events.Tags()["histograms"], *events.Tags()["scalars"]) if tag.endswith("idle")]


def test_a_run_that_diverges_is_still_plotted(make_project, fit, figures):
    project = make_project()
    with torch.no_grad():
        project.body[0].weight[0] = torch.nan
    with pytest.warns(UserWarning, match="in step 0: Not finite: the weights of 'body.0'"):
        events = fit(ShiftMonitor(histograms=True), project=project, max_steps=1)
    assert sorted(events.Tags()["images"]) == figures
    assert np.isnan(events.Scalars("shift_ratio/body.0")[0].value)


class Gallery(Logger):
    """Takes images as W&B's logger does."""

    name, version = "gallery", "0"

    def __init__(self):
        super().__init__()
        self.images, self.steps = {}, []

    def log_metrics(self, metrics, step=None):
        if "shift_ratio/head" in metrics:
            self.steps.append(step)

    def log_hyperparams(self, params):
        pass

    def log_image(self, key, images, step=None):
        (self.images[key, step],) = images


def test_any_logger_that_takes_images_gets_them(make_project, make_trainer, loader, figures):
    gallery = Gallery()
    trainer = make_trainer(ShiftMonitor(every_n_steps=3), logger=gallery, log_every_n_steps=1)
    trainer.fit(make_project(), loader)
    assert gallery.steps == [0, 3]
    assert {step for _, step in gallery.images} == {0, 3}
    assert sorted({key for key, _ in gallery.images}) == figures
    assert all(image.dtype == np.uint8 for image in gallery.images.values())


def test_a_logger_of_numbers_gets_scalars_alone(make_project, make_trainer, loader, tmp_path):
    logger = CSVLogger(tmp_path, name="csv")
    monitor = ShiftMonitor(histograms=True)
    make_trainer(monitor, logger=logger, log_every_n_steps=1).fit(make_project(), loader)
    assert sorted(path.name for path in (tmp_path / "csv/version_0").iterdir()) == ["metrics.csv"]


def test_a_fast_dev_run_goes_through_it_all_and_leaves_nothing(make_project, make_trainer, loader, tmp_path):
    project = make_project()
    before = sorted(tmp_path.rglob("*"))
    make_trainer(ShiftMonitor(histograms=True), fast_dev_run=True, logger=True).fit(project, loader)
    assert sorted(tmp_path.rglob("*")) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in project.modules())
