"""Train the grids of the paper, fig5 and table1, and report."""

import argparse

from tools.readme import show
from tools.reproduce.paper import report
from tools.reproduce.paper.grids import GRIDS, Grid
from tools.reproduce.runs import Run, exit_without_runs, train_all


def main(arguments: argparse.Namespace) -> None:
    """Train the runs that are missing and print the tables, or report."""
    grid, folder = GRIDS[arguments.experiment], arguments.output
    runs, variant = wanted(arguments)
    train_all(runs, arguments)
    groups = report.load(runs, folder)
    if not groups:
        exit_without_runs(folder)
    show(arguments.experiment + variant, report.tables(arguments.experiment, grid, groups), write=arguments.report)
    if arguments.report:
        for path in report.draw(grid, groups, folder, variant):
            print(f"Curves: {path}")


def wanted(arguments: argparse.Namespace) -> tuple[list[Run], str]:
    """Return the runs that the command line names, in order, and their variant."""
    grid = GRIDS[arguments.experiment]
    variant, flags = "", []
    if arguments.epochs:
        variant, flags = f"_{arguments.epochs}epochs", [f"--trainer.max_epochs={arguments.epochs}"]
    if arguments.precision:
        variant, flags = f"{variant}_{arguments.precision}", [*flags, f"--trainer.precision={arguments.precision}"]
    runs = [
        Run(network, data, method, seed, [*grid.methods[method], *flags], variant)
        for seed in arguments.seeds
        for data in arguments.data
        for network in arguments.networks
        for method in arguments.methods
    ]
    shard, shards = arguments.shard
    return runs[shard - 1 :: shards], variant


def add_options(command: argparse.ArgumentParser, grid: Grid) -> None:
    """Add what these grids alone have."""
    for option, choices in (("networks", list(grid.networks)), ("data", grid.data), ("methods", list(grid.methods))):
        command.add_argument(f"--{option}", nargs="+", choices=choices, default=list(choices))
    command.add_argument("--precision", help="of Lightning's Trainer, such as bf16-mixed; unless given, float32")
