"""Measure what this package costs: side by side, interleaved in one process, medians.

    python tools/benchmark.py monitor                 print the table
    python tools/benchmark.py loader --json FILE      and write its rows

monitor: training steps of 50 x 256 sigmoid units, inputs of CIFAR-10's size, without ShiftMonitor, between its samples,
in a sampled step, and in one that is drawn; the last row is a step on average where every 50th is sampled, none drawn.
loader: epochs of augmented images, by torchvision's transforms in torch's DataLoader, and by this package's loader.
"""

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path

import benchmark_loader
import benchmark_monitor
import torch
from reproduce import environment
from rich.console import Console
from rich.table import Table

from lcw_lightning.files import written_atomically

WORKLOADS = {"monitor": benchmark_monitor.measure, "loader": benchmark_loader.measure}


def rows(measured: list[dict], device: str) -> list[dict]:
    """Return what is reported of each method; the first is the plain one, ``spread`` the quartiles' distance."""
    plain = statistics.median(measured[0]["seconds"])
    made = []
    for entry in measured:
        times = entry.pop("seconds")
        quartiles = statistics.quantiles(times) if len(times) > 1 else [times[0]] * 3
        made.append(
            entry
            | {
                "device": device,
                "threads": torch.get_num_threads(),
                "median_seconds": statistics.median(times),
                "ratio_to_plain": statistics.median(times) / plain,
                "spread": quartiles[2] - quartiles[0],
                "repeats": len(times),
                "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
                **environment(),
            }
        )
    return made


def show(rows: list[dict]) -> None:
    """Print a table."""
    table = Table("method", "median ms", "ratio to plain", "spread ms", "repeats", "held MB", title=rows[0]["workload"])
    for row in rows:
        held = row.get("held_bytes")
        numbers = [1e3 * row["median_seconds"], row["ratio_to_plain"], 1e3 * row["spread"]]
        formatted = [f"{number:.4g}" for number in numbers]
        table.add_row(row["method"], *formatted, str(row["repeats"]), "" if held is None else f"{held / 1e6:.3f}")
    Console(width=120).print(table)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; unless given, as many as it chooses")
    parser.add_argument("--rounds", type=int, default=5, help="how often each method has its turn")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    measured = rows(WORKLOADS[arguments.workload](arguments.device, arguments.rounds), arguments.device)
    show(measured)
    if arguments.json:
        with written_atomically(arguments.json) as path:
            path.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
