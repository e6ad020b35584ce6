"""Which runs of a grid fit into a time, from the time of some steps of each network and method."""

import argparse
import heapq
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from tools.readme import head, row
from tools.reproduce.runs import Run, recorded, settings, train

STEPS = 390  # an epoch of CIFAR's 50,000 images in batches of 128
EPOCHS = 3  # that are measured, short ones: the first also compiles
SHORT = 100  # training steps of such an epoch, with a fifth as many batches of validation, which is CIFAR's proportion
SHORT_ON_CPU = 5  # where a step of a convolutional network takes seconds


class Pace(NamedTuple):
    """How long runs of a network and a method take.

    Attributes:
        start: Seconds that do not depend on the number of steps: the process's start, the data, compilation.
        step: Seconds of a training step, with its share of validation.
    """

    start: float
    step: float

    def seconds(self, epochs: int) -> float:
        """Return the seconds of a run."""
        return self.start + epochs * STEPS * self.step


class Cell(NamedTuple):
    """A run that is not finished: its name, the epochs that are left, its pace."""

    name: str
    epochs: int
    pace: Pace


def plan(runs: list[Run], arguments: argparse.Namespace) -> None:
    """Measure what is not finished, and print which of it fits."""
    paces: dict[tuple[str, str], Pace] = {}
    cells = []
    for run in runs:
        if (arguments.output / f"{run.name}.json").exists():
            continue
        key = run.network, run.method  # data sets differ in the logits alone
        if key not in paces:
            print(f"measuring {run.network}, {run.method}", flush=True)
            paces[key] = measure(run, arguments.device[0], arguments.data_dir)
        cells.append(Cell(run.name, epochs_left(run, arguments.output, arguments.epochs), paces[key]))
    print(table(cells, arguments.minutes, len(arguments.device)))


def measure(run: Run, device: str, data_dir: Path | None) -> Pace:
    """Train for a few short epochs in a process of its own; return the pace."""
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    steps = SHORT_ON_CPU if on_cpu else SHORT
    flags = [f"--trainer.max_epochs={EPOCHS}", f"--trainer.limit_train_batches={steps}"]
    flags += [f"--trainer.limit_val_batches={steps // 5}"]
    run = replace(run, flags=[*run.flags, *flags], variant=f"{run.variant}_measured")
    with TemporaryDirectory() as folder:
        begin = time.perf_counter()
        record = train(run, Path(folder), device, data_dir)
        return pace(time.perf_counter() - begin, record["seconds"], steps)


def pace(whole: float, seconds: list[float], steps: int) -> Pace:
    """Return the pace from the seconds of a measured run and of its epochs of so many steps."""
    epoch = statistics.median(seconds[1:] or seconds)
    return Pace(start=whole - len(seconds) * epoch, step=epoch / steps)


def epochs_left(run: Run, output: Path, epochs: int | None) -> int:
    """Return how many epochs are left after the run's checkpoint."""
    checkpoint = output / "unfinished" / run.name / "last.ckpt"
    done = len(recorded(checkpoint)) if checkpoint.exists() else 0
    return (epochs or settings(run.network, run.data)["trainer"]["max_epochs"]) - done


def table(cells: list[Cell], minutes: float, devices: int) -> str:
    """Return a Markdown table of the cells in the order in which they run, and how many fit."""
    seconds = [cell.pace.seconds(cell.epochs) for cell in cells]
    ends = [end / 60 for end in ends_of(seconds, devices)]
    lines = head("run", "epochs", "s/step", "minutes", "ends after", f"in {minutes:g} minutes")
    for cell, duration, end in zip(cells, seconds, ends, strict=True):
        fits = "yes" if end <= minutes else "no"
        step = f"{cell.pace.step:.3g}"
        lines.append(row(cell.name, cell.epochs, step, f"{duration / 60:.1f}", f"{end:.1f}", fits))
    count = sum(end <= minutes for end in ends)
    summary = f"{count} of {len(cells)} runs fit into {minutes:g} minutes on {devices} device{'s' * (devices > 1)}."
    if count < len(cells) and (epochs := most_epochs(cells, minutes, devices)):
        summary += f" All fit with --epochs={epochs}."
    return "\n".join([*lines, "", summary])


def ends_of(seconds: list[float], devices: int) -> list[float]:
    """Return when each run ends if a device that is free takes the next one."""
    free = [0.0] * devices
    return [heapq.heapreplace(free, free[0] + duration) + duration for duration in seconds]


def most_epochs(cells: list[Cell], minutes: float, devices: int) -> int:
    """Return the largest number of epochs with which all runs, from their start, fit; 0 if there is none."""
    epochs = 0
    while max(ends_of([cell.pace.seconds(epochs + 1) for cell in cells], devices)) <= 60 * minutes:
        epochs += 1
    return epochs
