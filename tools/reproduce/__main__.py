"""Run experiments, each run one JSON file, and make tables and pictures from those files alone.

    python -m tools.reproduce digits                        run what results/digits does not hold yet
    python -m tools.reproduce rnn                           the recurrent network of configs/rnn_digits.yaml
    python -m tools.reproduce rnn_mnist --data-dir FOLDER   the same for MNIST, by rows and by pixels
    python -m tools.reproduce fig5 --data cifar10           the paper's Fig. 5: all methods, 100 epochs
    python -m tools.reproduce table1 --device cuda:0 cuda:1 --shard 1/4 --data-dir FOLDER
    python -m tools.reproduce fig5 --report                 print tables, put them into the pages, draw curves
    python -m tools.reproduce table1 --epochs 30 --precision bf16-mixed --channels-last --compile --plan --minutes 60
                                                            which runs one GPU does in an hour; then without --plan ...
    python -m tools.reproduce sparse --networks sparse_mlp100 --methods 'ReLU_tau*' 'CReLU_*_0.7*' --device cpu cpu
    python -m tools.reproduce preflight                     Monte Carlo of sparse activations at initialization
    python -m tools.reproduce convert --data-dir FOLDER     accuracy before and after a trained network is converted
    python -m tools.reproduce recurrent                     recurrent networks: LCW and its rivals, at chosen settings
    python -m tools.reproduce tiny_batches --data-dir FOLDER --shard 1/2        the same for batches of 1 to 32 images
    python -m tools.reproduce sparse_digits                 30 layers of sparse activations: plain weights and LCW
    python -m tools.reproduce figures --data FOLDER         the paper's Figures 1 to 4

sparse is the sparsity paper's Table 2, with plain weights and with LCW: short runs choose each method's learning rate,
then longer runs use several seeds. If several runs share a CPU's cores, set OMP_NUM_THREADS=1.

A finished run is never repeated; delete its JSON file to run it anew. If fig5, table1 or sparse is killed and started
again, an unfinished run continues from its last epoch and ends with the same numbers: exactly on CPUs, on GPUs as far
as their kernels are deterministic. Runs with --epochs, --precision, --channels-last or --compile have these in their
names; reports need them too. With --epochs table1 runs through the whole decay of the learning rate in so many epochs;
the others train the first epochs of their schedules.
"""

import argparse
from pathlib import Path
from types import ModuleType

from tools.records import RESULTS
from tools.reproduce import convert, digits, rnn, rnn_mnist
from tools.reproduce.paper import figures, train
from tools.reproduce.paper.grids import GRIDS
from tools.reproduce.rivals import recurrent, sparse_digits, tiny_batches
from tools.reproduce.sparse import preflight, stages


def shard(text: str) -> tuple[int, int]:
    """Read ``2/8``, the second of eight shares."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text} is not i/n with i from 1 to n, such as 2/8")
    return int(number), int(of)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tools.reproduce", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(dest="experiment", required=True)

    def add(name: str, module: ModuleType, folder: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=module.__doc__, formatter_class=layout)
        command.set_defaults(main=module.main)
        output = RESULTS / folder
        command.add_argument("--output", type=Path, default=output, help=f"unless given, results/{folder}")
        return command

    add_report(add("digits", digits, "digits"))
    add_report(add("rnn", rnn, "rnn"))
    command = add("rnn_mnist", rnn_mnist, "rnn_mnist")
    add_report(command)
    add_data_dir(command)
    add_report(add("preflight", preflight, "sparse"))
    command = add("convert", convert, "convert")
    convert.add_options(command)
    add_report(command)
    add_report(add("sparse_digits", sparse_digits, "sparse"))
    command = add("recurrent", recurrent, "recurrent")
    add_report(command)
    add_shard(command)
    command = add("tiny_batches", tiny_batches, "tiny_batches")
    add_report(command)
    add_shard(command)
    add_data_dir(command)
    for name, grid in GRIDS.items():
        command = add(name, train, name)
        train.add_options(command, grid)
        add_training_options(command, seeds=[0])
    command = add("sparse", stages, "sparse")
    stages.add_options(command)
    add_training_options(command, seeds=[0, 1, 2])
    figures.add_options(add("figures", figures, "figures"))
    return parser.parse_args(arguments)


def add_report(command: argparse.ArgumentParser) -> None:
    """Add the option that runs nothing."""
    command.add_argument("--report", action="store_true", help="run nothing; put what is there into the pages")


def add_training_options(command: argparse.ArgumentParser, seeds: list[int]) -> None:
    """Add what says how runs are trained, and where."""
    add_report(command)
    command.add_argument("--seeds", type=int, nargs="+", default=seeds)
    command.add_argument("--epochs", type=int, help="unless given, the config's")
    command.add_argument(
        "--device", nargs="+", default=["auto"], help="one run at a time on each, such as cuda:0 cuda:1"
    )
    add_data_dir(command)
    add_shard(command)


def add_data_dir(command: argparse.ArgumentParser) -> None:
    """Add the folder of the data."""
    command.add_argument(
        "--data-dir", type=Path, help="in torchvision's layout, or to download into; unless given, data"
    )


def add_shard(command: argparse.ArgumentParser) -> None:
    """Add the share of the runs to do."""
    command.add_argument(
        "--shard", type=shard, default=(1, 1), metavar="i/n", help="the i-th of n shares, for job arrays"
    )


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says."""
    parsed = parse(arguments)
    parsed.main(parsed)


if __name__ == "__main__":
    main()
