"""EpochRecorder in a Trainer: what it keeps, and when it ends a run."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ImageClassifier
from tools.reproduce.runs import diverged, recorded
from tools.reproduce.training import EpochRecorder

BATCHES = 120


@pytest.fixture
def trained(tmp_path):
    """Train a small network for up to three epochs of 120 batches; return what the recorder kept, and where it ended.

    ``spoilt`` is the number of the one batch whose images are infinite, counted over epochs.
    """

    class Spoiler(ImageClassifier):
        spoilt = None

        def training_step(self, batch, batch_idx):
            images, labels = batch
            if self.trainer.current_epoch * BATCHES + batch_idx == self.spoilt:
                images = images * math.inf
            return super().training_step((images, labels), batch_idx)

    def train(spoilt=None):
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        module = Spoiler(network, partial(torch.optim.SGD, lr=0.1))
        module.spoilt = spoilt
        images, labels = torch.rand(2 * BATCHES, 4), torch.randint(3, (2 * BATCHES,))
        batches = DataLoader(TensorDataset(images, labels), batch_size=2)
        recorder = EpochRecorder("small")
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            callbacks=[recorder, ModelCheckpoint(tmp_path / "run", "last", enable_version_counter=False)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, batches, DataLoader(TensorDataset(images, labels), batch_size=60))
        stored = recorded(tmp_path / "run" / "last.ckpt")
        assert str(stored) == str(recorder.epochs)  # as text, since nan is not equal to itself
        return SimpleNamespace(epochs=recorder.epochs, steps=trainer.global_step)

    return train


pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Encountered `nan` values in tensor"),
]


@pytest.mark.parametrize(
    ("spoilt", "steps"),
    [(10, 50), (49, 50), (50, 100), (110, 120), (BATCHES + 7, BATCHES + 50)],
    ids=["early", "when looked at", "just after that", "after the last look", "in the second epoch"],
)
def test_a_run_ends_soon_after_a_loss_that_is_not_finite(trained, spoilt, steps):
    run = trained(spoilt)
    assert run.steps == steps
    *before, last = run.epochs
    assert len(before) == spoilt // BATCHES
    assert math.isnan(last["train/loss"])
    assert {"val/loss", "val/accuracy", "train/accuracy"} <= set(last)
    assert all(math.isfinite(value) for epoch in before for value in epoch.values())
    assert diverged(run.epochs)


def test_a_run_with_finite_losses_goes_to_its_end(trained):
    run = trained()
    assert run.steps == 3 * BATCHES
    assert len(run.epochs) == 3
    assert all(math.isfinite(value) for epoch in run.epochs for value in epoch.values())
    assert not diverged(run.epochs)
