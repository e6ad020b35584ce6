"""Plain weights and LCW in a sigmoid RNN that reads scikit-learn's digits pixel by pixel."""

import argparse
import statistics
from functools import partial
from pathlib import Path

from tools.readme import head, made_on, row, show
from tools.reproduce.digits import METHODS, SEEDS, load, name, train_config
from tools.reproduce.runs import exit_without_runs, run_all

CONFIG = "configs/rnn_digits.yaml"


def main(arguments: argparse.Namespace) -> None:
    """Train the runs that are missing and print the table, or report."""
    if not arguments.report:
        jobs = {name(method, seed): partial(train, method, seed) for method in METHODS for seed in SEEDS}
        run_all(jobs, arguments.output, ["cpu", "cpu"])
    runs = load(arguments.output)
    if not all(runs.values()):
        exit_without_runs(arguments.output)
    show("rnn", table(runs), write=arguments.report)


def train(method: str, seed: int, folder: Path, device: str) -> dict:
    """Train, from the start; return the run's record."""
    record, _ = train_config(CONFIG, method, seed, folder, device)
    return record


def table(runs_by_method: dict[str, list[dict]]) -> str:
    """Return the Markdown table of the runs, and a line that says what made it."""
    seeds = [run["seed"] for run in runs_by_method["LCW"]]
    lines = head("recurrent weights", *(f"seed {seed}" for seed in seeds), "training: median seconds")
    for method, runs in runs_by_method.items():
        accuracies = [f"{run['test_accuracy']:.3f}" for run in runs]
        lines.append(row(method, *accuracies, round(statistics.median(run["train_seconds"] for run in runs))))
    return "\n".join([*lines, "", made_on([run for runs in runs_by_method.values() for run in runs])])
