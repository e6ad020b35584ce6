"""Train the grids of the paper, fig5 and table1, and report."""

import argparse
import sys

from tools.readme import show
from tools.reproduce.paper import report
from tools.reproduce.paper.grids import GRIDS, Grid
from tools.reproduce.paper.plan import plan
from tools.reproduce.runs import Run, exit_without_runs, settings, train_all


def main(arguments: argparse.Namespace) -> None:
    """Train the runs that are missing and print the tables, or report, or plan."""
    grid, folder = GRIDS[arguments.experiment], arguments.output
    runs, variant = wanted(arguments)
    if arguments.plan != (arguments.minutes is not None):
        sys.exit("--plan and --minutes belong together: --plan --minutes 30 prints which runs fit into 30 minutes.")
    if arguments.plan:
        plan(runs, arguments)
        return
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
    variant, flags = shared(arguments)
    pairs = [(network, data) for network in arguments.networks for data in arguments.data]
    lengths = {pair: length(grid, *pair, arguments.epochs) for pair in pairs}
    runs = [
        Run(network, data, method, seed, [*grid.methods[method], *lengths[network, data], *flags], variant)
        for seed in arguments.seeds
        for data in arguments.data
        for network in arguments.networks
        for method in arguments.methods
    ]
    shard, shards = arguments.shard
    return runs[shard - 1 :: shards], variant


def shared(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the part of names that says what all runs share, and the flags that do not depend on the run."""
    chosen = {
        f"_{arguments.epochs}epochs": (arguments.epochs, []),
        f"_{arguments.precision}": (arguments.precision, [f"--trainer.precision={arguments.precision}"]),
        "_channels_last": (arguments.channels_last, ["--model.channels_last=true"]),
        "_compiled": (arguments.compile, ["--model.compile=true"]),
    }
    given = {name: flags for name, (value, flags) in chosen.items() if value}
    return "".join(given), [flag for flags in given.values() for flag in flags]


def length(grid: Grid, network: str, data: str, epochs: int | None) -> list[str]:
    """Return the flags of a run of so many epochs; where the grid says so, the learning rate's decay is scaled."""
    if not epochs:
        return []
    flags = [f"--trainer.max_epochs={epochs}"]
    if grid.scaled:
        config = settings(network, data)
        every = config["model"]["init_args"]["lr_scheduler"]["init_args"]["every_n_epochs"]
        flags.append(f"{report.EVERY_N_EPOCHS}={every * epochs / config['trainer']['max_epochs']}")
    return flags


def add_options(command: argparse.ArgumentParser, grid: Grid) -> None:
    """Add what these grids alone have."""
    for option, choices in (("networks", list(grid.networks)), ("data", grid.data), ("methods", list(grid.methods))):
        command.add_argument(f"--{option}", nargs="+", choices=choices, default=list(choices))
    command.add_argument("--precision", help="of Lightning's Trainer, such as bf16-mixed; unless given, float32")
    command.add_argument("--channels-last", action="store_true", help="order images and kernels for tensor cores")
    command.add_argument("--compile", action="store_true", help="compile the networks with torch.compile")
    command.add_argument("--plan", action="store_true", help="train nothing; time some steps, print which runs fit")
    command.add_argument("--minutes", type=float, help="that --plan may fill")
