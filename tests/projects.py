"""A Lightning project that was never written for this one, its data and its trainer, as fixtures."""

from functools import cache
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# What Lightning says about the project itself: its DataLoader has no workers, fit gets no validation data, and a
# checkpoint is loaded without the ModelCheckpoint that wrote it.
ADVICE = [
    "ignore:.*does not have many workers",
    "ignore:You defined a `validation_step` but have no",
    "ignore:Be aware that when using `ckpt_path`",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if "lightning" in getattr(item, "fixturenames", ()):
            for advice in ADVICE:
                item.add_marker(pytest.mark.filterwarnings(advice))


class Body(nn.Sequential):
    """Has a forward of its own: torch 2.6 compiles no module that is made of torch's own code alone."""

    def forward(self, inputs):
        for layer in self:
            inputs = layer(inputs)
        return inputs


class Project:
    """A LightningModule but for its base; builds its layers where ``build_in`` says; batches are (inputs, labels)."""

    def __init__(self, build_in="__init__", optimizer_kwargs=None):
        super().__init__()
        self.build_in = build_in
        self.optimizer_kwargs = optimizer_kwargs or {"lr": 0.1, "momentum": 0.9}
        if build_in == "__init__":
            self.build()

    def build(self):
        if not hasattr(self, "body"):
            torch.manual_seed(1)
            self.body = Body(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Sigmoid())
            self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.optimizer_kwargs)


class BuiltInSetup(Project):
    def setup(self, stage):
        self.build()


class BuiltInConfigureModel(Project):
    def configure_model(self):
        self.build()


PROJECTS = {"__init__": Project, "setup": BuiltInSetup, "configure_model": BuiltInConfigureModel}


@pytest.fixture
def lightning(request):
    """The package that projects and trainers come from: lightning.pytorch, unless a test says pytorch_lightning."""
    return import_module(getattr(request, "param", "lightning.pytorch"))


@cache
def project_class(build_in, lightning):
    """Return the project as a LightningModule of the package; pickle finds the class by its qualified name."""
    project = PROJECTS[build_in]
    made = type(project.__name__, (project, lightning.LightningModule), {"__module__": __name__})
    made.__qualname__ = f"{project.__name__}_{lightning.__name__.replace('.', '_')}"
    globals()[made.__qualname__] = made
    return made


@pytest.fixture
def make_project(lightning):
    """Return a function that makes the project, its layers built in the named hook."""

    def make(build_in="__init__", **kwargs):
        return project_class(build_in, lightning)(build_in, **kwargs)

    return make


@pytest.fixture
def loader():
    torch.manual_seed(2)
    return DataLoader(TensorDataset(0.5 + torch.randn(64, 8), torch.randint(3, (64,))), batch_size=16)


@pytest.fixture
def make_trainer(lightning, tmp_path):
    """Return a function that makes a quiet CPU trainer."""

    def make(*callbacks, **kwargs):
        settings = {
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "default_root_dir": tmp_path,
        } | kwargs
        return lightning.Trainer(
            callbacks=list(callbacks),
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    return make
