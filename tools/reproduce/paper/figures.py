"""Figures 1 to 4 of the LCW paper, drawn from this code, and the numbers behind them.

PNG files of the first seed, and figures.json with the numbers, go into results/figures. Figure 2 trains by the paper's
recipe, without augmentation. The paper does not say how wide its networks are, nor whether the logits count as a layer.
Here the networks have 10 and 20 hidden layers of 256 units, and then the logits.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy

from lcw_lightning import MLP, constrain, minibatch_init_
from lcw_lightning.classifier import GeometricDecay
from lcw_lightning.data.digits import Digits
from lcw_lightning.files import written_atomically
from lcw_lightning.observation.hooks import observe
from lcw_lightning.plotting import plot_boxes_by_layer, plot_boxes_by_unit, plot_heat_maps, quantiles
from lcw_lightning.theory.zero_sum import project_zero_sum
from tools.records import environment, read_json, write_json

SEEDS = range(5)


class Images(NamedTuple):
    """Normalized training images and their labels."""

    name: str
    images: Tensor
    labels: Tensor

    def network(self, seed: int, depth: int, kind: str) -> MLP:
        """Return a sigmoid network, before any initialization from data."""
        torch.manual_seed(seed)
        network = MLP(self.images[0].numel(), num_classes=10, depth=depth, width=256)
        constrain(network, kind)
        return network

    def sample(self, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Return random images and their labels."""
        chosen = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))[:count]
        return self.images[chosen], self.labels[chosen]


def cifar10(folder: Path) -> Images:
    """Return CIFAR-10 with mean 0 and standard deviation 1 in each channel."""
    from torchvision.datasets import CIFAR10  # noqa: PLC0415  (the digits do not need it)

    try:
        dataset = CIFAR10(str(folder), train=True)
    except RuntimeError:
        sys.exit(f"--data needs a folder that holds a whole cifar-10-batches-py, which {folder} does not.")
    pixels = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).float()
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), keepdim=True)
    return Images("CIFAR-10", (pixels - mean) / std, torch.tensor(dataset.targets))


def digits() -> Images:
    """Return scikit-learn's digits with mean 0 in each pixel, divided by one standard deviation."""
    data = Digits()
    data.setup("fit")
    return Images("digits", *data.train_dataset.tensors)


def figure_1(_: Images, __: int) -> tuple[Figure, dict]:
    """Activation shift as stripes in Z = W A, which nearly vanish if the rows of W sum to zero."""
    draws = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    pairs = [(torch.empty(100, 100).uniform_(-1, 1, generator=g), torch.rand(100, 100, generator=g)) for g in draws]
    drawn = {"standard weights": pairs, "LCW": [(project_zero_sum(w), a) for w, a in pairs]}
    (w, a), (w_lcw, _) = (of_method[0] for of_method in drawn.values())
    panels = {"W": w, "A": a, "Z = W A": w @ a, "W, LCW": w_lcw, "the same A": a, "Z = W A, LCW": w_lcw @ a}
    ratios = {method: [stripes(w @ a) for w, a in of_method] for method, of_method in drawn.items()}
    return plot_heat_maps(panels), {"data": "random", "seeds": list(SEEDS), "row_mean_std_over_std_within": ratios}


def figure_2(data: Images, epochs: int) -> tuple[Figure, dict]:
    """Activations of ten layers with LCW, before and after training."""
    images, _ = data.sample(SEEDS[0], 128)
    network = minibatch_init_(data.network(SEEDS[0], depth=10, kind="lcw"), images)
    panels = activations(network, images, f"{data.name}, start")
    numbers = {"seed": SEEDS[0], "epochs": epochs, "train_accuracy": train(network, data, epochs)}
    panels |= activations(network, images, f"{data.name}, {epochs} epochs")
    return plot_boxes_by_unit(panels), numbers | {"quantiles": panels}


def figure_3(data: Images, _: int) -> tuple[Figure, dict]:
    """Activations of ten layers with standard weights from Glorot's initialization, the default of MLP."""
    network = data.network(SEEDS[0], depth=10, kind="none")
    images, _ = data.sample(SEEDS[0], 128)
    panels = activations(network, images, data.name)
    return plot_boxes_by_unit(panels), {"seed": SEEDS[0], "quantiles": panels}


def figure_4(data: Images, _: int) -> tuple[Figure, dict]:
    """Preactivations and their gradients in 20 layers, with standard weights and with LCW."""
    columns, numbers = {}, {"seeds": list(SEEDS)}
    for method, kind in (("standard weights", "none"), ("LCW", "lcw")):
        runs = [preactivations(data, seed, kind) for seed in SEEDS]
        columns[f"{method}, {data.name}"] = {quantity: quantiles(values) for quantity, values in runs[0].items()}
        stds = [{quantity: values.std(1, correction=0).tolist() for quantity, values in run.items()} for run in runs]
        ratios = [std["gradient"][0] / std["gradient"][-1] for std in stds]
        decades = [-math.log10(ratio) for ratio in ratios]
        numbers[method] = {"gradient_std_of_layer_1_over_20": ratios, "decades_of_fall": decades, "std_by_layer": stds}
    return plot_boxes_by_layer(columns), numbers


def stripes(z: Tensor) -> float:
    """Return the spread of rows' means, in units of the standard deviation within rows."""
    return (z.mean(1).std() / z.var(1).mean().sqrt()).item()


def activations(network: MLP, images: Tensor, title: str) -> dict[str, Tensor]:
    """Return quantiles of the first 20 units of layers 1, 5 and 9."""
    with torch.no_grad():
        outputs = {number: network.hidden[:number](images.flatten(1)) for number in (1, 5, 9)}
    return {f"{title}, layer {number}": quantiles(output[:, :20], dim=0) for number, output in outputs.items()}


def train(network: MLP, data: Images, epochs: int) -> float:
    """Train by the paper's recipe, without augmentation; return the accuracy on the training images."""
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = GeometricDecay(sgd)
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(data.labels)).split(128):
            loss = cross_entropy(network(data.images[batch]), data.labels[batch])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        schedule.step()
        print(f"epoch {epoch} of {epochs}, loss of the last batch {loss:.3f}", flush=True)
    with torch.no_grad():
        return (network(data.images).argmax(1) == data.labels).double().mean().item()


def preactivations(data: Images, seed: int, kind: str) -> dict[str, Tensor]:
    """Return z and dL/dz of 20 layers on 100 images, shape ``(layers, values)``."""
    images, labels = data.sample(seed, 100)
    network = minibatch_init_(data.network(seed, depth=20, kind=kind), images)
    seen = {"preactivation": {}, "preactivation_gradient": {}}

    def note(layer: str, quantity: str, values: Tensor) -> None:
        if quantity in seen:
            seen[quantity][layer] = values.flatten().double()

    layers = {name: block.linear for name, block in network.hidden.named_children()}
    with observe(layers, note):
        cross_entropy(network(images), labels).backward()
    z, gradient = (torch.stack([values[name] for name in layers]) for values in seen.values())
    return {"preactivation": z, "gradient": gradient}


def save(number: str, figure: Figure, entry: dict, folder: Path) -> Path:
    """Write the PNG file, and its entry in figures.json; return the PNG's path."""
    png = folder / f"figure{number}_{entry['data'].lower().replace('-', '')}.png"
    with written_atomically(png) as path:
        figure.savefig(path, dpi=150)
    numbers = folder / "figures.json"
    write_json(numbers, read_json(numbers) | {png.stem: entry})
    return png


FIGURES = {"1": figure_1, "2": figure_2, "3": figure_3, "4": figure_4}


def known(number: str) -> str:
    """Read the number of a figure."""
    if number not in FIGURES:
        raise argparse.ArgumentTypeError(f"the figures are {', '.join(FIGURES)}, not {number}")
    return number


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what the figures alone have."""
    command.add_argument("figures", nargs="*", type=known, default=list(FIGURES), metavar="NUMBER", help="1, 2, 3, 4")
    command.add_argument("--data", type=Path, help="folder that holds cifar-10-batches-py; unless given, the digits")
    command.add_argument("--epochs", type=int, default=10, help="of Figure 2")


def main(arguments: argparse.Namespace) -> None:
    """Draw the figures that the command line names."""
    torch.set_flush_denormal(True)  # vanishing gradients make steps slow otherwise
    data = cifar10(arguments.data) if arguments.data else digits()
    print(f"Images: {data.name}" + ("" if arguments.data else ", since no folder of CIFAR-10 was given by --data"))
    for number in arguments.figures:
        figure, numbers = FIGURES[number](data, arguments.epochs)
        entry = {"data": data.name, **environment(), **numbers}
        print(save(number, figure, entry, arguments.output), flush=True)
