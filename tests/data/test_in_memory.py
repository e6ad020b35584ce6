"""Where batches lie, and how processes share them."""

import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer

from lcw_lightning import FashionMNIST

SCRIPT = """
import sys
import torch
from lightning.pytorch import LightningModule, Trainer
from lcw_lightning import FashionMNIST

class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.weight

    def on_train_end(self):
        torch.save(self.batches, f"rank{self.global_rank}.pt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    data = FashionMNIST(sys.argv[1], batch_size=8, augment=True, download=False)
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, **quiet).fit(Recorder(), datamodule=data)
"""


@pytest.fixture
def data(published, tmp_path):
    module = FashionMNIST(tmp_path, batch_size=16, augment=True)
    module.prepare_data()
    module.setup("fit")
    return module


def test_two_processes_share_the_batches_of_one(data, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, "-W", "ignore", script, tmp_path], cwd=tmp_path, check=True, timeout=240)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    loader, expected = data.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        expected += list(loader)
    assert len(first) == len(second) == len(expected) == 2 * 3
    for parts in zip(first, second, expected, strict=True):
        for one, other, whole in zip(*parts, strict=True):
            assert torch.equal(torch.stack((one, other), dim=1).flatten(0, 1), whole)
            assert not torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("workers", "device"), [(0, "cuda"), (1, "cpu")])
def test_batches_lie_on_the_device_that_trains_unless_workers_make_them(workers, device, data):
    data.workers = workers
    expected = list(data.train_dataloader())
    data.trainer = Trainer(accelerator="gpu", devices=1, logger=False)
    for batch, others in zip(data.train_dataloader(), expected, strict=True):
        assert {tensor.device.type for tensor in batch} == {device}
        torch.testing.assert_close([tensor.cpu() for tensor in batch], list(others))
