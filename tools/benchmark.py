"""Measure what this package costs: side by side, interleaved in one process, medians.

    python tools/benchmark.py step                    print the table
    python tools/benchmark.py step --json FILE        and write its rows
    python tools/benchmark.py --report                tables from results/benchmark on the screen and into README.md

map, step, init, memory and evaluation compare constraints and their rivals; each method has its turn in every round:
map: a weight from what is trained, forward and backward; step: a training step of the paper's networks; init: minibatch
initialization against a forward pass; memory: of a step, and of a checkpoint; evaluation: a forward pass, with weights
as they were and after each step.
monitor: training steps of 50 x 256 sigmoid units, inputs of CIFAR-10's size, without ShiftMonitor, between its samples,
in a sampled step, and in one that is drawn; the last row is a step on average where every 50th is sampled, none drawn.
loader: epochs of augmented images, by torchvision's transforms in torch's DataLoader, and by this package's loader.

ratio to plain: of medians; spread: the distance of the quartiles. A busy machine moves ratios: give it more --seconds.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import benchmark_evaluation
import benchmark_init
import benchmark_loader
import benchmark_map
import benchmark_memory
import benchmark_monitor
import benchmark_report
import benchmark_step
import reports
import torch
from benchmark_timing import Settings
from reproduce import README, RESULTS, environment
from rich.console import Console
from rich.table import Table

from lcw_lightning.files import written_atomically

WORKLOADS = {
    "map": benchmark_map.measure,
    "step": benchmark_step.measure,
    "evaluation": benchmark_evaluation.measure,
    "init": benchmark_init.measure,
    "memory": benchmark_memory.measure,
    "monitor": benchmark_monitor.measure,
    "loader": benchmark_loader.measure,
}
# What may stand in a row: the heading, and the unit.
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
    """Return what is reported of each method of a case; the first is the plain one, ``spread`` the quartiles' distance.

    Where no time was measured, it is the memory that is compared.
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
    """Print a case's table."""
    columns = {name: column for name, column in COLUMNS.items() if any(row.get(name) is not None for row in rows)}
    headings = [heading for heading, _ in columns.values()]
    table = Table("method", *headings, title=f"{rows[0]['workload']}: {rows[0]['case']}")
    for row in rows:
        values = [(row.get(name), unit) for name, (_, unit) in columns.items()]
        table.add_row(row["method"], *("" if value is None else f"{value / unit:.4g}" for value, unit in values))
    Console(width=120).print(table)


def report() -> None:
    """Render the tables from the JSONs."""
    folder = RESULTS / "benchmark"
    found = benchmark_report.load(folder, WORKLOADS)
    if not found:
        sys.exit(f"{folder} holds no measurements; name a workload, and --json {folder / 'FILE.json'}.")
    text = benchmark_report.tables(found)
    print(text)
    if not reports.write_between_markers(README, "benchmark", text, tool="benchmark.py"):
        print(f"{README} has no place for them: put <!-- benchmark: made by tools/benchmark.py --> in it.")


def run(arguments: argparse.Namespace) -> None:
    """Measure a workload, show each case when it is done, and write the rows once all are."""
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's, which says when it starts
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
        with written_atomically(arguments.json) as path:
            path.write_text(json.dumps(made, indent=1, allow_nan=False) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS, nargs="?")
    parser.add_argument("--cases", nargs="+", default=["*"], help="glob patterns on cases, such as 'VGG19*'")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; unless given, as many as it chooses")
    parser.add_argument("--rounds", type=int, help="how often each method has its turn; unless given, by --seconds")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a case's rounds, of which there are 5 or more")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="step: torch.compile of the whole network")
    parser.add_argument("--precision", choices=["32", "bf16-mixed"], default="32", help="step")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--report", action="store_true", help="measure nothing: render what results/benchmark holds")
    arguments = parser.parse_args(argv)
    if arguments.report:
        report()
    elif arguments.workload:
        run(arguments)
    else:
        parser.error("name a workload, or --report.")


if __name__ == "__main__":
    main()
