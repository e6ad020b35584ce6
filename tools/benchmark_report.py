"""The README's tables of what the constraints cost, from the JSONs alone."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from reports import made_by, unique

NOTE = (
    "Each cell is the ratio to the first column, whose median is given. `memory` compares the most bytes held in a "
    "step, `init` a minibatch initialization with one forward pass, `map` the weight alone with a copy of it."
)


def load(folder: Path, workloads: Iterable[str]) -> list[dict]:
    """Return the rows of all files in the folder, by workload in this order."""
    rows = [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())]
    return [row for workload in workloads for row in rows if row["workload"] == workload]


def tables(rows: list[dict]) -> str:
    """Return a Markdown table a workload, and a line that says what made them."""
    parts = []
    for workload in unique(row["workload"] for row in rows):
        mine = [row for row in rows if row["workload"] == workload]
        methods = unique(row["method"] for row in mine)
        parts += [f"| `{workload}` | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
        for key in unique(place(row) for row in mine):
            cells = {row["method"]: cell(row, row["method"] == methods[0]) for row in mine if place(row) == key}
            parts.append(f"| {', '.join(key)} | {' | '.join(cells.get(method, '-') for method in methods)} |")
        parts.append("")
    commits = ", ".join(unique(str(row["git"]) for row in rows))
    return "\n".join([*parts, f"{NOTE} {noise(rows)} {made_by(rows)} Commits: {commits}."])


def noise(rows: list[dict]) -> str:
    """Return how far times of one method lie apart, where they were measured more than once."""
    spreads = [row["spread"] / row["median_seconds"] for row in rows if row["spread"]]
    if not spreads:
        return ""
    return f"The quartiles of a method's times lie {median(spreads):.0%} apart (median; {max(spreads):.0%} at most)."


def place(row: dict) -> tuple[str, ...]:
    """Return what was measured, and on which device: a GPU, or so many threads of the CPU."""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return row["case"], threads if row["device"] == "cpu" else row["hardware"]["gpu"]


def cell(row: dict, is_plain: bool) -> str:
    """Return the ratio, or for the first method what others are compared with."""
    if not is_plain:
        return f"{row['ratio_to_plain']:.2f}"
    if row["median_seconds"] is None:
        return f"{row['peak_bytes'] / 1e6:.3g} MB"
    seconds = row["median_seconds"]
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
