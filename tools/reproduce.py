"""Run a named grid of experiments, one JSON a run, and render tables and pictures from those JSONs alone.

    python tools/reproduce.py digits                        run what results/digits does not hold yet
    python tools/reproduce.py fig5 --data cifar10           the paper's Fig. 5: all methods, 100 epochs
    python tools/reproduce.py table1 --device cuda:0 cuda:1 --shard 1/4 --data-dir FOLDER
    python tools/reproduce.py fig5 --report                 tables on the screen and into README.md, curves as PNG
    python tools/reproduce.py sparse --networks sparse_mlp100 --methods 'ReLU_tau*' 'CReLU_*_0.7*' --device cpu cpu
    python tools/reproduce.py preflight                     Monte Carlo of sparse activations at initialization

sparse is the sparsity paper's Table 2 and its twins with LCW: first short runs that choose each method's learning rate,
then longer ones with several seeds. Several runs share a CPU's cores best with OMP_NUM_THREADS=1.

A finished run is never repeated. Killed at any moment and started again, an unfinished run of a grid goes on from its
last epoch and ends with the same numbers: exactly on CPUs, on GPUs as far as their kernels repeat themselves.
Delete a JSON to run it anew. Runs with --epochs or --precision have these in their names, reports too.
"""

import argparse
import sys
from pathlib import Path

import digits_grid
import reports
import sparse_preflight
import sparse_stages
from grids import GRIDS
from runs import RESULTS, ROOT, Run, environment, run_all

__all__ = ["RESULTS", "environment"]  # of other tools too

README = ROOT / "README.md"


def digits(arguments: argparse.Namespace) -> None:
    """Run the grid on scikit-learn's digits, or report."""
    folder = arguments.output or RESULTS / "digits"
    if not arguments.report:
        digits_grid.run_missing(folder)
        return
    runs = digits_grid.load(folder)
    if not all(runs.values()):
        sys.exit(f"{folder} holds no run of some method; run the grid first, without --report.")
    reports.write_between_markers(README, "digits", digits_grid.table(runs))
    digits_grid.picture(runs).savefig(folder / "digits.png", dpi=110)


def paper(arguments: argparse.Namespace) -> None:
    """Run a grid of the paper and print its tables, or report."""
    grid, folder = GRIDS[arguments.grid], arguments.output or RESULTS / arguments.grid
    runs, variant = wanted(arguments)
    if not arguments.report:
        failed = run_all(runs, folder, arguments.device, arguments.data_dir)
        if failed:
            sys.exit(f"failed: {', '.join(failed)}; what they said is above. Start again to go on with them.")
    groups = reports.load(runs, folder)
    if not groups:
        sys.exit(f"{folder} holds none of these runs; run the grid first, without --report.")
    text = reports.tables(arguments.grid, grid, groups)
    print(text)
    if arguments.report:
        name = arguments.grid + variant
        noted = reports.write_between_markers(README, name, text)
        print(f"\nThe tables are in {README.name}." if noted else f"\n{README.name} has no markers {name}.")
        for path in reports.draw(grid, groups, folder, variant):
            print(f"Curves: {path}")


def sparse(arguments: argparse.Namespace) -> None:
    """Train sparse activations, or draw them at initialization, or report."""
    tool = {"sparse": sparse_stages, "preflight": sparse_preflight}[arguments.grid]
    tool.main(arguments, arguments.output or RESULTS / "sparse", README)


def wanted(arguments: argparse.Namespace) -> tuple[list[Run], str]:
    """Return the runs that the command line names, in order, and what their names have in common."""
    grid = GRIDS[arguments.grid]
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


def shard(text: str) -> tuple[int, int]:
    """Read ``2/8``, the second of eight shares."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text} is not i/n with i from 1 to n, such as 2/8")
    return int(number), int(of)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="grid", required=True)
    works = {"digits": digits, **dict.fromkeys(GRIDS, paper), "sparse": sparse, "preflight": sparse}
    for name, work in works.items():
        command = commands.add_parser(name)
        command.set_defaults(work=work)
        command.add_argument("--report", action="store_true", help="render what is there; run nothing")
        folder = "sparse" if work is sparse else name
        command.add_argument("--output", type=Path, help=f"folder of the JSONs; unless given, results/{folder}")
        if name in GRIDS:
            add_paper_options(command, name)
        elif name == "sparse":
            sparse_stages.add_options(command)
        if name in (*GRIDS, "sparse"):
            add_options(command, seeds=[0, 1, 2] if name == "sparse" else [0])
    return parser.parse_args(arguments)


def add_paper_options(command: argparse.ArgumentParser, name: str) -> None:
    """Add what the LCW paper's grids alone have."""
    grid = GRIDS[name]
    for option, choices in (("networks", list(grid.networks)), ("data", grid.data), ("methods", list(grid.methods))):
        command.add_argument(f"--{option}", nargs="+", choices=choices, default=list(choices))
    command.add_argument("--precision", help="of Lightning's Trainer, such as bf16-mixed; unless given, float32")


def add_options(command: argparse.ArgumentParser, seeds: list[int]) -> None:
    """Add what says how a grid's runs are trained, and where."""
    command.add_argument("--seeds", type=int, nargs="+", default=seeds)
    command.add_argument("--epochs", type=int, help="unless given, the config's")
    command.add_argument(
        "--device", nargs="+", default=["auto"], help="one run at a time on each, such as cuda:0 cuda:1"
    )
    command.add_argument(
        "--data-dir", type=Path, help="in torchvision's layout, or to download into; unless given, data"
    )
    command.add_argument(
        "--shard", type=shard, default=(1, 1), metavar="i/n", help="the i-th of n shares, for job arrays"
    )


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says."""
    parsed = parse(arguments)
    parsed.work(parsed)


if __name__ == "__main__":
    main()
