"""Trained networks, constrained to LCW: test accuracy as trained, projected, converted, and after one more epoch.

mlp and cnn learn scikit-learn's digits, vgg19 and resnet18 (narrow) the first 10,000 training images of CIFAR-10.
Conversion sees 256 training images. From either network, projected or converted, one epoch follows under the
constraint.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lcw_lightning import CIFAR10, VGG19, PreActResNet18, constrain, convert_
from lcw_lightning.data.augmentation import channel_mean_and_std
from tools.readme import head, made_on, row, show
from tools.records import environment
from tools.reproduce.runs import exit_without_runs, finished, run_all

SEEDS = range(5)
CALIBRATION = 256  # training images that conversion sees
STATES = ("trained", "projected", "converted", "projected, one epoch", "converted, one epoch")


class Images(NamedTuple):
    """Images and labels."""

    images: Tensor
    labels: Tensor


class Experiment(NamedTuple):
    """A network and how it is trained.

    Attributes:
        title: For the table.
        data: Returns the training and the test images, given the folder of the data.
        network: Makes the network.
        optimizer: Makes the optimizer of parameters.
        epochs: Number of epochs before conversion.
        batch_size: Images in a batch.
    """

    title: str
    data: Callable[[Path | None], tuple[Images, Images]]
    network: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    epochs: int
    batch_size: int


def digits(_: Path | None) -> tuple[Images, Images]:
    """Return 1,437 and 360 of scikit-learn's digits, with pixels from 0 to 1."""
    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(loaded.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return Images(images[train], labels[train]), Images(images[test], labels[test])


def cifar10(folder: Path | None, number: int = 10_000) -> tuple[Images, Images]:
    """Return the first training images of CIFAR-10 and all test images, normalized by channel."""
    data = CIFAR10(folder or "data", augment=False)
    data.prepare_data()
    data.setup("fit")
    mean, std = channel_mean_and_std(data.train_dataset.tensors[0])
    train, test = (
        Images((images[:number] - mean) / std, labels[:number])
        for images, labels in (data.train_dataset.tensors, data.test_dataset.tensors)
    )
    return train, test


def mlp() -> nn.Module:
    """Return four layers with ReLU."""
    hidden = [module for fan_in in (64, 256, 256) for module in (nn.Linear(fan_in, 256), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


def cnn() -> nn.Module:
    """Return two convolutions, the first with BatchNorm, and a linear layer."""
    first = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


ADAM = partial(torch.optim.Adam, lr=1e-3)
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
EXPERIMENTS = {
    "mlp": Experiment("digits, 4-layer ReLU MLP", digits, mlp, ADAM, epochs=20, batch_size=64),
    "cnn": Experiment("digits, CNN with one BatchNorm", digits, cnn, ADAM, epochs=20, batch_size=64),
    "vgg19": Experiment(
        "VGG19, width 8: 5 epochs on 10,000 images of CIFAR-10",
        cifar10,
        partial(VGG19, width=8, hidden_width=64, dropout=0.0),
        SGD,
        5,
        128,
    ),
    "resnet18": Experiment("PreActResNet18, width 8: the same", cifar10, partial(PreActResNet18, width=8), SGD, 5, 128),
}


def main(arguments: argparse.Namespace) -> None:
    """Do the runs that are missing and print the table, or report."""
    names = {name: [f"{name}_seed{seed}" for seed in SEEDS] for name in arguments.networks}
    if not arguments.report:
        torch.set_flush_denormal(True)
        jobs = {
            f"{name}_seed{seed}": partial(run, name, seed, data_dir=arguments.data_dir)
            for name in arguments.networks
            for seed in SEEDS
        }
        run_all(jobs, arguments.output, ["cpu"])
    records = {name: finished(of_network, arguments.output) for name, of_network in names.items()}
    if not any(records.values()):
        exit_without_runs(arguments.output)
    show("convert", table(records), write=arguments.report)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what this experiment alone has."""
    command.add_argument("--networks", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    command.add_argument("--data-dir", type=Path, help="of CIFAR-10, in torchvision's layout; unless given, data")


def run(name: str, seed: int, folder: Path, device: str, data_dir: Path | None) -> dict:
    """Train, constrain in both ways, and train on; return the run's record."""
    folder.mkdir(parents=True, exist_ok=True)
    start, experiment = time.perf_counter(), EXPERIMENTS[name]
    training, test = experiment.data(data_dir)
    torch.manual_seed(seed)
    network = train(experiment.network(), experiment, training, experiment.epochs)
    projected, converted = copy.deepcopy(network), copy.deepcopy(network)
    constrain(projected)
    convert_(converted, training.images[:CALIBRATION])
    accuracies = [accuracy(each, test) for each in (network, projected, converted)]
    for each in (projected, converted):
        torch.manual_seed(seed)
        accuracies.append(accuracy(train(each, experiment, training, epochs=1), test))
    return {
        **{"network": name, "seed": seed, "device": device, "epochs": experiment.epochs},
        **{"training_images": len(training.labels), "test_images": len(test.labels), "calibration_images": CALIBRATION},
        **environment(),
        "test_accuracy": dict(zip(STATES, accuracies, strict=True)),
        "seconds": time.perf_counter() - start,
    }


def train(network: nn.Module, experiment: Experiment, data: Images, epochs: int) -> nn.Module:
    """Train with a new optimizer; return the network in evaluation mode."""
    optimizer = experiment.optimizer(network.parameters())
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.labels)).split(experiment.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data.images[batch]), data.labels[batch]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: Images) -> float:
    """Return the part of the images that are classified correctly."""
    batches = zip(data.images.split(500), data.labels.split(500), strict=True)
    return sum((network(images).argmax(1) == labels).sum().item() for images, labels in batches) / len(data.labels)


def table(records: dict[str, list[dict]]) -> str:
    """Return the Markdown table of the runs, and a line that says what made it."""
    lines = head("test accuracy", "seeds", *STATES)
    for name, runs in records.items():
        if runs:
            means = (statistics.mean(record["test_accuracy"][state] for record in runs) for state in STATES)
            lines.append(row(EXPERIMENTS[name].title, len(runs), *(f"{mean:.3f}" for mean in means)))
    return "\n".join([*lines, "", f"Means over seeds. {made_on([one for runs in records.values() for one in runs])}"])
