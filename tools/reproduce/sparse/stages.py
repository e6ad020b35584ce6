"""Sparse activations: runs of one epoch choose each method's learning rate from a grid, then longer runs use it.

In its first epoch a run predicts every image before it trains on it, so that the accuracy which chooses is that of new
images; test images choose nothing.
"""

import argparse
import sys
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from tools.readme import show
from tools.reproduce.runs import Run, exit_without_runs, finished, train_all
from tools.reproduce.sparse.grid import METHODS, NETWORKS, RATES
from tools.reproduce.sparse.report import Chosen, rates_table, tables

NO_CLIPPING = "_noclipping"  # in names
SELECTION_SEED = 0  # independent of --seeds, so that shares with other seeds make the same choice
SELECTION_EPOCHS = 1  # in a second one, images would not be new


def main(arguments: argparse.Namespace) -> None:
    """Run both stages and print the tables, or report."""
    folder, names = arguments.output, methods(arguments.methods)
    shard, shards = arguments.shard
    pairs = [(network, name) for network in arguments.networks for name in names][shard - 1 :: shards]
    rates, epochs, seeds = sorted(arguments.rates), arguments.epochs, arguments.seeds
    run_at = partial(at, clipping=not arguments.no_gradient_clipping)

    tried = {pair: [run_at(pair, rate, SELECTION_EPOCHS, SELECTION_SEED) for rate in rates] for pair in pairs}
    train_all([run for runs in tried.values() for run in runs], arguments)
    chosen = {pair: rate for pair, runs in tried.items() if (rate := best_rate(rates, runs, folder)) is not None}
    train_all([run_at(pair, rate, epochs, seed) for seed in seeds for pair, rate in chosen.items()], arguments)
    found = [
        Chosen(pair[0], METHODS[pair[1]], rate, records)
        for pair, rate in chosen.items()
        if (records := finished([run_at(pair, rate, epochs, seed).name for seed in seeds], folder))
    ]
    if not found:
        exit_without_runs(folder)
    name = "sparse" + NO_CLIPPING * arguments.no_gradient_clipping + f"_{epochs}epochs" * bool(epochs)
    show(name, tables(found, rates, not arguments.no_gradient_clipping), write=arguments.report)
    first = {
        (one.network, one.method): finished([run.name for run in tried[one.network, one.method.name]], folder)
        for one in found
    }
    show(f"{name}_rates", rates_table(first, rates), write=arguments.report)


def at(pair: tuple[str, str], rate: float, epochs: int | None, seed: int, clipping: bool = True) -> Run:
    """Return the run of a network and a method at a learning rate."""
    network, name = pair
    variant, flags = f"_lr{rate:g}", [*METHODS[name].flags, f"--model.optimizer.init_args.lr={rate:g}"]
    if not clipping:
        variant, flags = variant + NO_CLIPPING, [*flags, "--trainer.gradient_clip_val=null"]
    if epochs:
        variant, flags = f"{variant}_{epochs}epochs", [*flags, f"--trainer.max_epochs={epochs}"]
    return Run(network, NETWORKS[network], name, seed, flags, variant)


def best_rate(rates: list[float], runs: list[Run], folder: Path) -> float | None:
    """Return the rate with the highest training accuracy, or ``None`` as long as a run is missing.

    Of equal rates it is the lower, and if all runs diverged, the lowest of all. An epoch's mean loss would not do: if
    the first steps explode, they dominate it.
    """
    records = finished([run.name for run in runs], folder)
    if len(records) < len(runs):
        return None
    ends = [(record["epochs"]["train/accuracy"][-1], -rate) for rate, record in zip(rates, records, strict=True)]
    finite = [end for end, record in zip(ends, records, strict=True) if not record["diverged"]]
    return -max(finite)[1] if finite else min(rates)


def methods(globs: list[str]) -> list[str]:
    """Return the names of methods that match any glob; exit if a glob matches none."""
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in METHODS):
            sys.exit(f"--methods: {glob} matches no method; there are {', '.join(METHODS)}.")
    return [name for name in METHODS if any(fnmatchcase(name, glob) for glob in globs)]


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what this grid alone has."""
    command.add_argument("--networks", nargs="+", choices=NETWORKS, default=["sparse_mlp100", "sparse_cnn50"])
    globs = "globs such as 'CReLU_*_0.7*', quoted; + stands for itself"
    command.add_argument("--methods", nargs="+", default=["*"], metavar="GLOB", help=globs)
    command.add_argument("--no-gradient-clipping", action="store_true", help="unless given, as the config says")
    command.add_argument("--rates", type=float, nargs="+", default=RATES, help="the grid of learning rates")
