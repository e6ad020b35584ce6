"""Sparse activations: for each method the best learning rate of a grid, in short runs, then longer runs with it."""

import argparse
import json
import sys
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import reports
import sparse_report
from runs import Run, run_all
from sparse_grid import METHODS, NETWORKS, RATES

NO_CLIPPING = "_noclipping"  # in names
SELECTION_SEED = 0  # whatever --seeds says, so that shares with other seeds choose alike


def main(arguments: argparse.Namespace, folder: Path, readme: Path) -> None:
    """Run both stages and print the tables, or report."""
    names = methods(arguments.methods)
    shard, shards = arguments.shard
    pairs = [(network, name) for network in arguments.networks for name in names][shard - 1 :: shards]
    rates, epochs, seeds = sorted(arguments.rates), arguments.epochs, arguments.seeds
    run_at = partial(at, clipping=not arguments.no_gradient_clipping)

    def train(runs: list[Run]) -> None:
        failed = [] if arguments.report else run_all(runs, folder, arguments.device, arguments.data_dir)
        if failed:
            sys.exit(f"failed: {', '.join(failed)}; what they said is above. Start again to go on with them.")

    tried = {pair: [run_at(pair, rate, arguments.select_epochs, SELECTION_SEED) for rate in rates] for pair in pairs}
    train([run for runs in tried.values() for run in runs])
    chosen = {pair: rate for pair, runs in tried.items() if (rate := best_rate(rates, runs, folder)) is not None}
    train([run_at(pair, rate, epochs, seed) for seed in seeds for pair, rate in chosen.items()])
    rows = [
        sparse_report.Row(pair[0], METHODS[pair[1]], rate, records)
        for pair, rate in chosen.items()
        if (records := finished([run_at(pair, rate, epochs, seed) for seed in seeds], folder))
    ]
    if not rows:
        sys.exit(f"{folder} holds none of these runs; run the grid first, without --report.")
    text = sparse_report.tables(rows, rates, arguments.select_epochs, not arguments.no_gradient_clipping)
    print(text)
    if arguments.report:
        name = "sparse" + NO_CLIPPING * arguments.no_gradient_clipping + f"_{epochs}epochs" * bool(epochs)
        noted = reports.write_between_markers(readme, name, text)
        print(f"\nThe tables are in {readme.name}." if noted else f"\n{readme.name} has no markers {name}.")


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
    """Return the rate with the highest last training accuracy, of equals the lower; the lowest of all if all diverged.

    ``None`` as long as a run is missing. An epoch's mean loss would not do: of a run whose first steps explode it says
    nothing else.
    """
    records = finished(runs, folder)
    if len(records) < len(runs):
        return None
    ends = [(record["epochs"]["train/accuracy"][-1], -rate) for rate, record in zip(rates, records, strict=True)]
    finite = [end for end, record in zip(ends, records, strict=True) if not record["diverged"]]
    return -max(finite)[1] if finite else min(rates)


def finished(runs: list[Run], folder: Path) -> list[dict]:
    """Return what the JSONs of those runs hold that have one."""
    paths = [folder / f"{run.name}.json" for run in runs]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def methods(globs: list[str]) -> list[str]:
    """Return the names of methods that match any glob; one that matches none ends the program."""
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
    command.add_argument(
        "--select-epochs", type=int, default=2, help="of the runs that choose the rate; 2 unless given"
    )
