"""lcw's own subcommands on modules that were written for a run."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback
from lcw_lightning.cli.command_trainer import CommandTrainer

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Data(LightningDataModule):
    width = 6

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, self.width), torch.randn(8, 2)), batch_size=4)


class BuiltForItsData(LightningModule):
    """Asks the data module for its width, in setup."""

    def setup(self, stage):
        self.layer = nn.Linear(self.trainer.datamodule.width, 2)

    def forward(self, inputs):
        return self.layer(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"] = {**checkpoint["state_dict"], "layer.bias": torch.full((2,), 3.0)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_network_that_setup_builds_for_its_data_is_exported_as_its_hook_loads_it(tmp_path):
    trained = BuiltForItsData()
    trainer = Trainer(max_epochs=1, callbacks=[ConstraintCallback()], default_root_dir=tmp_path, **QUIET)
    trainer.fit(trained, datamodule=Data())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    command = CommandTrainer(**QUIET)
    command.export(BuiltForItsData(), str(tmp_path / "run.ckpt"), str(tmp_path / "m.pt"), "", datamodule=Data())
    exported = torch.load(tmp_path / "m.pt")
    assert torch.equal(exported["layer.weight"], trained.layer.weight)
    assert exported["layer.bias"].eq(3).all()
