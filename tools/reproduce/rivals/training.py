"""One training run on images in memory, and the record of a method: settings tried on held-out images, then seeds."""

import math
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lcw_lightning import Digits
from tools.records import environment, read_json, write_json
from tools.reproduce.convert import Images, accuracy, cifar10
from tools.reproduce.rivals.choosing import Axis, choose

SEEDS = range(5)
CHOOSING_SEED = 5  # draws weights and batches of the runs that choose settings
INITIALIZATION = 128  # the first training images, on which every minibatch initialization is done

Build = Callable[[dict[str, float], torch.Tensor], nn.Module]


class Data(NamedTuple):
    """Images to train on, to choose settings by, and to report."""

    train: Images
    held_out: Images
    test: Images | None  # None in runs that choose settings


class Recipe(NamedTuple):
    """How all methods are trained alike.

    Attributes:
        batch_size: Images in a batch.
        images: Images seen in a run, images seen again counted again.
        choosing_images: The same of the runs that choose settings.
        looks: How often a run is evaluated on the held-out images, at even distances.
        weight_decay: Of SGD, whose momentum is 0.9.
        clip: Largest norm of the gradient, or None.
    """

    batch_size: int
    images: int
    choosing_images: int
    looks: int = 1
    weight_decay: float = 0.0
    clip: float | None = None


def digits(sequence: str | None = None, train: int = 1200) -> Data:
    """Return scikit-learn's digits as the package has them, with the last of its 1,437 training images held out."""
    data = Digits(sequence=sequence)
    data.setup("fit")
    images, labels = data.train_dataset.tensors
    parts = [Images(images[part], labels[part]) for part in (slice(train), slice(train, None))]
    return Data(*parts, Images(*data.test_dataset.tensors))


@cache
def cifar10_subset(folder: Path | None, train: int = 10_000, held_out: int = 2_000, test: int = 5_000) -> Data:
    """Return the first training images of CIFAR-10, the next ones held out, and the first test images."""
    (images, labels), tests = cifar10(folder, train + held_out)
    parts = [Images(images[part], labels[part]) for part in (slice(train), slice(train, None))]
    return Data(*parts, Images(tests.images[:test], tests.labels[:test]))


def record(build: Build, data: Data, recipe: Recipe, axes: tuple[Axis, ...], folder: Path) -> dict:
    """Choose the settings on held-out images, train with each seed; return what the method's JSON file holds.

    Args:
        build: Makes the network from the settings and the images of the minibatch initialization.
        data: The images.
        recipe: How to train.
        axes: The grid of settings.
        folder: Keeps the runs that are finished, so that a second call continues after them.
    """
    torch.set_flush_denormal(True)

    def run(settings: dict[str, float], seed: int, choosing: bool) -> dict:
        stage = recipe._replace(images=recipe.choosing_images, looks=1) if choosing else recipe
        path = folder / f"{'_'.join(f'{value:g}' for value in (*settings.values(), seed, stage.images))}.json"
        if not (found := read_json(path)):
            found = train(build, data if not choosing else data._replace(test=None), settings, stage, seed)
            write_json(path, found)
        return found

    tried = choose(axes, partial(run, seed=CHOOSING_SEED, choosing=True))
    chosen = {axis.name: tried[0][axis.name] for axis in axes}
    seeds = SEEDS if "cannot" not in tried[0] else ()
    return {
        **{"device": "cpu", **environment()},
        **{"recipe": recipe._asdict(), "choosing_seed": CHOOSING_SEED},
        **{f"{part}_images": len(images.labels) for part, images in data._asdict().items() if images},
        **{"initialization_images": INITIALIZATION, "tried": tried, "chosen": chosen},
        "runs": [{"seed": seed, **run(chosen, seed, choosing=False)} for seed in seeds],
    }


def train(build: Build, data: Data, settings: dict[str, float], recipe: Recipe, seed: int) -> dict:
    """Train a new network; return the run's record, which says why if the network or the batch cannot be had."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    try:
        network = build(settings, data.train.images[:INITIALIZATION])
        found = fit(network, data, settings["rate"], recipe)
    except ValueError as error:
        return {"cannot": str(error)}
    seconds = time.perf_counter() - start
    tested = {"test_accuracy": accuracy(network.eval(), data.test)} if data.test else {}
    return {**found, **tested, "seconds": seconds}


def fit(network: nn.Module, data: Data, rate: float, recipe: Recipe) -> dict:
    """Train by SGD, the last fifth of the steps at a tenth of the rate, until the loss is not finite."""
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=recipe.weight_decay, fused=True)
    steps, number = recipe.images // recipe.batch_size, len(data.train.labels)
    passes = [torch.randperm(number) for _ in range(math.ceil(recipe.images / number))]
    batches = torch.cat(passes)[: steps * recipe.batch_size].split(recipe.batch_size)
    looks = {steps * (look + 1) // recipe.looks for look in range(recipe.looks)}
    found: dict = {"diverged": False, "held_out_accuracy": [], "held_out_loss": []}
    for step, batch in enumerate(batches, 1):
        if step == steps - steps // 5 + 1:
            optimizer.param_groups[0]["lr"] = rate / 10
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(data.train.images[batch]), data.train.labels[batch])
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
        if not math.isfinite(loss.item()):
            return {**found, "diverged": True}
        if step in looks:
            look(network, data.held_out, found)
    return found


@torch.no_grad()
def look(network: nn.Module, images: Images, found: dict) -> None:
    """Add the accuracy and the loss on held-out images; a loss that is not finite counts as divergence."""
    loss = nn.functional.cross_entropy(network.eval()(images.images), images.labels).item()
    found["held_out_accuracy"].append(accuracy(network, images))
    found["held_out_loss"].append(loss if math.isfinite(loss) else None)
    found["diverged"] = not math.isfinite(loss)
    network.train()
