"""A user's file that uses every public name; tools/check runs mypy --strict on it, and a test runs it."""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

import lcw_lightning
from lcw_lightning import (
    CIFAR10,
    CIFAR100,
    MLP,
    MNIST,
    VGG19,
    ClippedShiftedReLU,
    ClippedSoftThreshold,
    ConstraintCallback,
    DeepCNN,
    Digits,
    EdgeOfChaosInitCallback,
    FashionMNIST,
    GeometricDecay,
    ImageClassifier,
    ImageFolder,
    LossWatch,
    MinibatchInitCallback,
    PreActResNet18,
    RecurrentClassifier,
    ShiftedReLU,
    ShiftMonitor,
    SoftThreshold,
    analyze,
    centered_weight_norm,
    constrain,
    convert_,
    edge_of_chaos_init_,
    fold,
    linearly_constrained,
    load_from_checkpoint,
    mark_fresh,
    minibatch_init_,
    plan_constraints,
    register_layer_type,
)

if TYPE_CHECKING:
    from lcw_lightning import constrian  # type: ignore[attr-defined]  # noqa: F401  # misspelled: mypy must say so

VERSION: str = lcw_lightning.__version__

IMAGE_NETWORKS: list[nn.Module] = [
    VGG19(
        num_classes=100,
        in_channels=1,
        width=2,
        hidden_width=8,
        dropout=0.1,
        activation=nn.Tanh,
        norm="layer",
        hidden_norm="batch",
    ),
    PreActResNet18(num_classes=100, in_channels=1, width=2, activation=nn.Tanh, norm="none"),
    DeepCNN(in_channels=1, num_classes=100, depth=4, channels=8, activation=nn.Tanh),
    RecurrentClassifier(in_features=28, num_classes=10, cell="gru", layers=2, width=8),
]

SPARSE_ACTIVATIONS: list[nn.Module] = [
    ShiftedReLU(sparsity=0.7, q=2.0),
    SoftThreshold(tau=0.5),
    ClippedShiftedReLU(sparsity=0.85, slope=0.7, q=1.0, zero_sum=True),
    ClippedSoftThreshold(tau=0.5, max=1.0),
]

IMAGE_DATA = [
    MNIST("data", batch_size=64, val_size=5000),
    FashionMNIST("data", augment=True, split_seed=1),
    CIFAR10("data", augment=False, download=False),
    CIFAR100("data", workers=2, sequence="rows", permuted=True),
    ImageFolder("pictures", image_size=64, augment=True, val_fraction=0.2),
]
SHAPES: list[tuple[int, int, int]] = [data.image_shape for data in IMAGE_DATA]


class Autoencoder(LightningModule):
    """Somebody's module."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder: nn.Module = linearly_constrained(nn.Linear(64, width), name="weight")
        self.decoder = nn.Linear(width, 64)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images = batch[0].flatten(1)
        decoded: Tensor = self.decoder(self.encoder(images))
        return nn.functional.mse_loss(decoded, images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def make_sparse_network() -> nn.Module:
    """Draw the weights of a sparse network by hand."""
    network = DeepCNN(in_channels=1, num_classes=10, depth=4, channels=8, activation=lambda: ShiftedReLU(sparsity=0.7))
    drawn: nn.Module = edge_of_chaos_init_(network, torch.rand(4, 1, 8, 8), q=1.0, weights="gaussian")
    return edge_of_chaos_init_(drawn, torch.rand(4, 1, 8, 8), activation=torch.relu, weights="delta_orthogonal")


def make_classifier() -> ImageClassifier:
    """Constrain and rescale a network by hand."""
    network = MLP(in_features=64, num_classes=10, depth=2, width=8, activation=nn.Tanh, norm="batch")
    names: list[str] = constrain(network, "lcw", include=["hidden.*"], exclude=["*.1.*"])
    assert names == ["hidden.0.linear.weight"]
    output: nn.Module = centered_weight_norm(nn.Linear(8, 10), name="weight")
    network.output = output
    register_layer_type(type(network.output), weight="weight", unit_dim=0)
    left_out: dict[str, str] = plan_constraints(network, "lcw", exclude=["output.*"]).left_out
    assert left_out == {}
    mark_fresh(network)
    trained: nn.Module = convert_(
        network, torch.rand(16, 1, 8, 8), kind="lcw", method="parametrize", exclude=["output.*"]
    )
    assert trained is network
    minibatch_init_(network, torch.rand(16, 1, 8, 8), target_std=1.0, granularity="unit")
    batch = (torch.rand(16, 1, 8, 8), torch.randint(10, (16,)))
    report = analyze(network, batch, loss=nn.functional.cross_entropy, include=["*"], exclude=())
    findings: list[str] = [finding.says for finding in report.findings]
    first_row: dict[str, float] = report.statistics["hidden.0.linear"]
    assert all(findings)
    assert "shift_ratio" in first_row
    return ImageClassifier(
        network,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lr_scheduler=lambda optimizer: GeometricDecay(optimizer, factor=0.9, every_n_epochs=2, floor=0.01),
    )


def train(module: LightningModule, path: str) -> None:
    """Fit with the callbacks, and save."""
    callbacks = [
        ConstraintCallback(kind="lcw", include=["*"], exclude=()),
        MinibatchInitCallback(target_std=1.0, granularity="layer"),
        EdgeOfChaosInitCallback(weights="none", q=1.0),
        LossWatch(if_not_finite="warn"),
        ShiftMonitor(every_n_steps=10, figures=False, include=["*"], exclude=(), histograms=False),
    ]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, callbacks=[*callbacks], **quiet)  # type: ignore[arg-type]
    trainer.fit(module, datamodule=Digits(batch_size=256, split_seed=1))
    trainer.save_checkpoint(path)


def plain_autoencoder(path: str) -> nn.Module:
    """What is deployed."""
    trained: Autoencoder = load_from_checkpoint(Autoencoder, path, map_location="cpu")
    return fold(trained)
