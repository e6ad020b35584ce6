"""Plain weights and LCW in the sigmoid RNN of configs/rnn_mnist.yaml, which reads MNIST by rows and by pixels."""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tools.readme import head, made_on, row, show
from tools.reproduce.digits import METHODS, train_config
from tools.reproduce.runs import exit_without_runs, finished, run_all

CONFIG = "configs/rnn_mnist.yaml"
SEED = 0


class Reading(NamedTuple):
    """A way to read the images.

    Attributes:
        steps: Its length.
        features: What is read at each step.
        epochs: Of training.
    """

    steps: int
    features: int
    epochs: int


SEQUENCES = {"rows": Reading(28, 28, epochs=20), "pixels": Reading(784, 1, epochs=2)}


def main(arguments: argparse.Namespace) -> None:
    """Train the runs that are missing and print the table, or report."""
    if not arguments.report:
        pairs = [(sequence, method) for sequence in SEQUENCES for method in METHODS]
        jobs = {name(*pair): partial(train, *pair, arguments.data_dir) for pair in pairs}
        run_all(jobs, arguments.output, ["cpu"])
    runs = {key: finished([name(key, method) for method in METHODS], arguments.output) for key in SEQUENCES}
    if any(len(found) < len(METHODS) for found in runs.values()):
        exit_without_runs(arguments.output)
    show("rnn_mnist", table(runs), write=arguments.report)


def name(sequence: str, method: str) -> str:
    """Return the name of a run's JSON file."""
    return f"mnist_{sequence}_{method.lower()}_seed{SEED}"


def train(sequence: str, method: str, data_dir: Path | None, folder: Path, device: str) -> dict:
    """Train, from the start; return the run's record."""
    _, features, epochs = SEQUENCES[sequence]
    flags = [f"--data.sequence={sequence}", f"--model.network.in_features={features}", f"--trainer.max_epochs={epochs}"]
    record, _ = train_config(CONFIG, method, SEED, folder, device, flags, data_dir)
    return record


def table(runs_by_sequence: dict[str, list[dict]]) -> str:
    """Return the Markdown table of the runs, and a line that says what made it."""
    columns = ("plain: test accuracy", "LCW: test accuracy", "seconds, plain and LCW")
    lines = head("sequence", "steps", "epochs", *columns)
    for key, runs in runs_by_sequence.items():
        accuracies = [f"{run['test_accuracy']:.3f}" for run in runs]
        seconds = " and ".join(f"{run['train_seconds']:.0f}" for run in runs)
        lines.append(row(key, SEQUENCES[key].steps, SEQUENCES[key].epochs, *accuracies, seconds))
    return "\n".join([*lines, "", made_on([run for runs in runs_by_sequence.values() for run in runs])])
