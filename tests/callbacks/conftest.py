"""What the tests of several callbacks share."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, ShiftedReLU, ShiftMonitor
from lcw_lightning.observation.statistics import Statistic


class Snapshots(Callback):
    """Keeps the weights as they are after each backward pass, before the optimizer steps."""

    def __init__(self):
        self.states = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.states.append({key: value.clone() for key, value in pl_module.state_dict().items()})


class Adversaries(LightningModule):
    """A GAN: two networks, two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Sigmoid(), nn.Linear(16, 8))
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            self.toggle_optimizer(optimizer)
            fake = self.critic(self.generator(torch.randn(len(batch[0]), 4))).mean()
            self.manual_backward(sign * (self.critic(batch[0]).mean() - fake))
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.Adam(network.parameters(), lr=0.01) for network in (self.generator, self.critic)]


@pytest.fixture
def adversaries():
    torch.manual_seed(1)
    return Adversaries()


@pytest.fixture
def make_snapshots():
    """Return a function that makes the callback which keeps the weights that each step trains."""
    return Snapshots


@pytest.fixture
def first_batch(loader):
    return next(iter(loader))[0]


@pytest.fixture
def make_sparse(make_project):
    """Return a function that makes the project with a sparse activation in place of its sigmoid."""

    def make(*args, **kwargs):
        project = make_project(*args, **kwargs)
        build = project.build

        def build_sparse():
            build()
            project.body[1] = project.body[3] = ShiftedReLU(0.3)

        project.build = build_sparse
        if hasattr(project, "body"):
            build_sparse()
        return project

    return make


@pytest.fixture
def ours(tmp_path):
    """Return a function that makes the three callbacks anew, and a logger for the monitor."""
    return lambda: [ConstraintCallback(), MinibatchInitCallback(), ShiftMonitor(every_n_steps=2)]


@pytest.fixture
def logged(lightning, tmp_path):
    return {"logger": lightning.loggers.CSVLogger(tmp_path), "log_every_n_steps": 1}


@pytest.fixture
def statistics():
    """The names of what the monitor logs of each layer."""
    return sorted(statistic.value for statistic in Statistic)
