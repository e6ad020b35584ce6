"""The README's three callbacks, unchanged, in Lightning projects that nobody here wrote, or in the shape of one.

Their checkpoints hold more than tensors and plain values, so that plain runs too load them with ``weights_only=False``.
"""

from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # Lightning's advice to these projects, also without the callbacks.
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]


class MNISTLitModule(LightningModule):
    """In the shape of lightning-hydra-template's: what hydra builds, the network among it, are its hyperparameters."""

    def __init__(self, net, optimizer, scheduler):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc, self.val_acc = MulticlassAccuracy(10), MulticlassAccuracy(10)
        self.train_loss, self.val_loss, self.val_acc_best = MeanMetric(), MeanMetric(), MaxMetric()

    def forward(self, images):
        return self.net(images)

    def on_train_start(self):
        for metric in (self.val_loss, self.val_acc, self.val_acc_best):
            metric.reset()

    def model_step(self, batch):
        images, labels = batch
        scores = self(images)
        return self.criterion(scores, labels), scores.argmax(dim=1), labels

    def training_step(self, batch, batch_idx):
        loss, predictions, labels = self.model_step(batch)
        self.train_loss(loss)
        self.train_acc(predictions, labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, predictions, labels = self.model_step(batch)
        self.val_loss(loss)
        self.val_acc(predictions, labels)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self):
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self):
        optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
        scheduler = self.hparams.scheduler(optimizer=optimizer)
        plateau = {"scheduler": scheduler, "monitor": "val/loss", "interval": "epoch", "frequency": 1}
        return {"optimizer": optimizer, "lr_scheduler": plateau}


def test_a_project_whose_hyperparameters_are_its_network_and_partial_optimizers(check):
    def make():
        torch.manual_seed(1)
        layers = [nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
        return MNISTLitModule(
            nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10)),
            partial(torch.optim.Adam, lr=0.001),
            partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="min", factor=0.1, patience=10),
        )

    images = torch.rand(96, 1, 28, 28)
    loader = DataLoader(TensorDataset(images, torch.randint(10, (96,))), batch_size=32)
    check("hydra template", make, loader, lambda module: module(images), weights_only=False)


def test_a_project_of_pytorch_lightning(check):
    lightning = pytest.importorskip("pytorch_lightning")

    class LitAutoEncoder(lightning.LightningModule):
        """Of Lightning's README."""

        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 3))
            self.decoder = nn.Sequential(nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 28 * 28))

        def forward(self, x):
            return self.encoder(x)

        def training_step(self, batch, batch_idx):
            x, _ = batch
            x = x.view(x.size(0), -1)
            loss = nn.functional.mse_loss(self.decoder(self.encoder(x)), x)
            self.log("train_loss", loss)
            return loss

        validation_step = training_step

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    images = torch.rand(96, 1, 28, 28)
    loader = DataLoader(TensorDataset(images, torch.randint(10, (96,))), batch_size=32)

    def make():
        torch.manual_seed(1)
        return LitAutoEncoder()

    def decode(module):
        return module.decoder(module(images.flatten(1)))

    check("pytorch_lightning", make, loader, decode, lightning=lightning)


def test_chemprops_message_passing_network(check):
    chemprop = pytest.importorskip("chemprop")
    smiles = ["CCO", "CCN", "c1ccccc1O", "CC(=O)O", "CCCC", "C1CCCCC1", "CC(C)N", "COC", "CC#N", "OCCO", "CCCl", "C=CC"]
    points = [chemprop.data.MoleculeDatapoint.from_smi(each, [len(each) / 10]) for each in smiles]
    data = chemprop.data.MoleculeDataset(points)

    def make():
        torch.manual_seed(1)
        message_passing = chemprop.nn.BondMessagePassing(d_h=32)
        predictor = chemprop.nn.RegressionFFN(input_dim=32, hidden_dim=32)
        return chemprop.models.MPNN(message_passing, chemprop.nn.MeanAggregation(), predictor, batch_norm=True)

    loader = chemprop.data.build_dataloader(data, batch_size=4, num_workers=0, shuffle=False)

    def predict(module):
        return torch.cat([module(batch[0]) for batch in loader])

    check("chemprop", make, loader, predict, weights_only=False)


def test_pytorch_forecastings_temporal_fusion_transformer(check):
    forecasting, pandas = pytest.importorskip("pytorch_forecasting"), pytest.importorskip("pandas")
    torch.manual_seed(0)
    times, series = torch.arange(30).repeat(4), torch.arange(4).repeat_interleave(30)
    values = (times / 5).sin() + series + 0.1 * torch.randn(120)
    table = {"time": times.numpy(), "series": [f"series {each}" for each in series], "value": values.numpy()}
    data = forecasting.TimeSeriesDataSet(
        pandas.DataFrame(table),
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=12,
        max_prediction_length=4,
        static_categoricals=["series"],
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=["value"],
    )
    loader = data.to_dataloader(train=False, batch_size=16, num_workers=0)
    batch, _ = next(iter(loader))

    def make():
        torch.manual_seed(1)
        return forecasting.TemporalFusionTransformer.from_dataset(data, hidden_size=8, attention_head_size=2)

    def predict(module):
        return module(batch).prediction

    # Each prescaler has one input, for which zero is the only zero-sum weight: it is left out.
    check("pytorch_forecasting", make, loader, predict, weights_only=False)
