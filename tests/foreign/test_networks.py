"""The README's three callbacks, unchanged, on networks that nobody here wrote."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from .networks import NETWORKS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


class Project(LightningModule):
    """Trains one of the networks, as somebody would who has never heard of constraints."""

    def __init__(self, name):
        super().__init__()
        self.save_hyperparameters()
        self.network = NETWORKS[name].build()
        self.loss, self.output = NETWORKS[name].loss, NETWORKS[name].output

    def training_step(self, batch, batch_idx):
        return self.loss(self.network, batch)

    def validation_step(self, batch, batch_idx):
        self.output(self.network, batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_others_networks_train_load_and_fold_under_the_three_callbacks(name, check):
    network = NETWORKS[name]
    batches = [network.batch() for _ in range(3)]

    def make():
        torch.manual_seed(1)
        return Project(name)

    loader = DataLoader(batches, batch_size=None)
    check(name, make, loader, lambda project: network.output(project.network, batches[0]), network.share)
