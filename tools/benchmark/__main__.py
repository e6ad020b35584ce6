"""Measure what this package costs beside its rivals, interleaved in one process.

    python -m tools.benchmark step                 print the table
    python -m tools.benchmark step --json FILE     print the table and write its rows
    python -m tools.benchmark --report             put the tables of results/benchmark into their page

Five workloads compare constraints and their rivals. Each method has its turn in every round.
    map         the map from the trained parameters to the weight, forward and backward
    step        a training step of the paper's networks
    evaluation  a forward pass, with unchanged weights and after each step
    init        minibatch initialization, compared with a forward pass
    memory      the memory of a step, and the size of a checkpoint
Two workloads measure something else.
    monitor     training steps of 50 x 256 sigmoid units, inputs of CIFAR-10's size: without ShiftMonitor, between its
                samples, in a sampled step, and in one that is drawn; the last row is the mean step if every 50th is
                sampled and none is drawn
    loader      epochs of augmented images, by torchvision's transforms in torch's DataLoader, and by BatchLoader

Ratios are those of medians; spread is the distance of the quartiles. On a busy machine, give --seconds more.
"""

import argparse
import logging
import os
import statistics
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tools import readme
from tools.benchmark import evaluation, init, loader, maps, memory, monitor, report, step
from tools.benchmark.timing import Settings
from tools.records import RESULTS, environment, write_json

WORKLOADS = {
    "map": maps.measure,
    "step": step.measure,
    "evaluation": evaluation.measure,
    "init": init.measure,
    "memory": memory.measure,
    "monitor": monitor.measure,
    "loader": loader.measure,
}
# The numbers that a row can hold: heading and unit.
COLUMNS = {
    "median_seconds": ("median ms", 1e-3),
    "ratio_to_plain": ("ratio to plain", 1),
    "spread": ("spread ms", 1e-3),
    "repeats": ("repeats", 1),
    "peak_bytes": ("peak MB", 1e6),
    "largest_bytes": ("largest MB", 1e6),
    "held_bytes": ("held MB", 1e6),
    "checkpoint_bytes": ("checkpoint MB", 1e6),
    "extra_peak_bytes": ("extra peak MB", 1e6),
    "extra_checkpoint_bytes": ("extra checkpoint MB", 1e6),
}


def rows(measured: list[dict], workload: str, device: str) -> list[dict]:
    """Return a row for each method of a case; the first is the plain one, ``spread`` the distance of the quartiles.

    If no time was measured, memory is compared.
    """
    compared = [statistics.median(entry.get("seconds") or [entry["peak_bytes"]]) for entry in measured]
    surroundings = {"device": device, "threads": torch.get_num_threads(), **environment()}
    made = []
    for entry, median in zip(measured, compared, strict=True):
        times = entry.pop("seconds", [])
        quartiles = statistics.quantiles(times) if len(times) > 1 else [0.0] * 3
        numbers = {
            "median_seconds": median if times else None,
            "ratio_to_plain": median / compared[0],
            "spread": quartiles[2] - quartiles[0] if times else None,
            "repeats": len(times) or None,
        }
        made.append({"workload": workload, "peak_bytes": None, **entry, **numbers, **surroundings})
    return made


def show(rows: list[dict]) -> None:
    """Print the table of a case."""
    columns = {name: column for name, column in COLUMNS.items() if any(row.get(name) is not None for row in rows)}
    headings = [heading for heading, _ in columns.values()]
    table = Table("method", *headings, title=f"{rows[0]['workload']}: {rows[0]['case']}")
    for row in rows:
        values = [(row.get(name), unit) for name, (_, unit) in columns.items()]
        table.add_row(row["method"], *("" if value is None else f"{value / unit:.4g}" for value, unit in values))
    Console(width=120).print(table)


def render() -> None:
    """Put the tables of the stored results into their page."""
    folder = RESULTS / "benchmark"
    found = report.load(folder, WORKLOADS)
    if not found:
        sys.exit(f"{folder} holds no measurements; name a workload, and --json {folder / 'FILE.json'}.")
    readme.show("benchmark", report.tables(found), write=True, tool="benchmark")


def run(arguments: argparse.Namespace) -> None:
    """Measure a workload; show each case when it is done, and write all rows at the end."""
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler prints when it starts
    warnings.filterwarnings("ignore", module="lightning.*")
    settings = Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    made: list[dict] = []
    for measured in WORKLOADS[arguments.workload](settings):
        case = rows(measured, arguments.workload, arguments.device)
        show(case)
        made += case
    if not made:
        sys.exit(f"{arguments.workload} has no case {' or '.join(arguments.cases)}.")
    if arguments.json:
        write_json(arguments.json, made)


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        "python -m tools.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", choices=WORKLOADS, nargs="?")
    parser.add_argument("--cases", nargs="+", default=["*"], help="glob patterns on cases, such as 'VGG19*'")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; unless given, torch's choice")
    parser.add_argument("--rounds", type=int, help="turns of each method; unless given, by --seconds")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a case, in at least 5 rounds")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="step: torch.compile of the whole network")
    parser.add_argument("--precision", choices=["32", "bf16-mixed"], default="32", help="step")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--report", action="store_true", help="measure nothing; show what results/benchmark holds")
    arguments = parser.parse_args(argv)
    if arguments.report:
        render()
    elif arguments.workload:
        run(arguments)
    else:
        parser.error("name a workload, or --report.")


if __name__ == "__main__":
    main()
