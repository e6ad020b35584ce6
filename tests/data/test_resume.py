"""Runs of Lightning's Trainer that go on in the middle of an epoch."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lcw_lightning import CIFAR10, MLP, Digits, ImageClassifier

BATCHES = 7  # an epoch's
LIMITS = {"epochs": {"max_epochs": 3}, "steps": {"max_steps": 3 * BATCHES}}
STEPS = {"in the first epoch": 3, "at its end": BATCHES, "in the second": BATCHES + 4}

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:.*The dirpath has changed")


class Recorder(Callback):
    """Keeps the sum of each batch's pixels."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(batch[0].double().sum().item())


def data_of(kind, folder):
    return CIFAR10(folder / "data", batch_size=8) if kind == "cifar10" else Digits(batch_size=200)


def fit(data, folder, limit, path=None):
    """Train with a checkpoint a step; return the final weights and the batches that were seen."""
    torch.manual_seed(0)
    network = MLP(64 if isinstance(data, Digits) else 3072, 10, depth=2, width=8)
    module = ImageClassifier(network, partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    recorder = Recorder()
    checkpoints = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[recorder, checkpoints], **LIMITS[limit], **quiet)
    trainer.fit(module, datamodule=data, ckpt_path=path)
    return module.state_dict(), recorder.batches


@pytest.fixture(scope="module", params=["cifar10", "digits"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def unbroken(kind, published, tmp_path_factory):
    """A folder with a checkpoint of each step, the final weights and the batches."""
    folder = tmp_path_factory.mktemp(kind)
    return folder, *fit(data_of(kind, folder), folder, "epochs")


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("moment", STEPS)
def test_a_run_resumed_from_any_step_sees_the_same_batches_and_ends_bit_identical(
    moment, limit, kind, unbroken, tmp_path
):
    folder, weights, batches = unbroken
    resumed, rest = fit(data_of(kind, folder), tmp_path, limit, folder / f"step={STEPS[moment]}.ckpt")
    assert rest == batches[STEPS[moment] :]
    assert len(batches) == len(set(batches)) == 3 * BATCHES
    assert all(torch.equal(resumed[key], value) for key, value in weights.items())


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_without_the_loaders_state_the_epoch_begins_anew(kind, unbroken, tmp_path):
    folder, _, batches = unbroken
    checkpoint = torch.load(folder / "step=3.ckpt")
    del checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    path = Path(tmp_path, "without.ckpt")
    torch.save(checkpoint, path)
    _, rest = fit(data_of(kind, folder), tmp_path, "epochs", path)
    assert rest[:4] == batches[:4]
