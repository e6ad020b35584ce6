"""The tables of what the constraints cost, from the JSON files alone."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from tools.readme import head, made_on, row, unique

NOTE = (
    "Each cell is the ratio to the first column, whose median is given. `memory` compares the most bytes held in a "
    "step, `init` a minibatch initialization with one forward pass, `map` the weight alone with a copy of it."
)


def load(folder: Path, workloads: Iterable[str]) -> list[dict]:
    """Return the measurements of all files in the folder, in the order of the workloads."""
    found = [entry for path in sorted(folder.glob("*.json")) for entry in json.loads(path.read_text())]
    return [entry for workload in workloads for entry in found if entry["workload"] == workload]


def tables(measured: list[dict]) -> str:
    """Return a Markdown table for each workload, and a line that says what made them."""
    parts = []
    for workload in unique(entry["workload"] for entry in measured):
        mine = [entry for entry in measured if entry["workload"] == workload]
        methods = unique(entry["method"] for entry in mine)
        parts += head(f"`{workload}`", *methods)
        for key in unique(place(entry) for entry in mine):
            cells = {entry["method"]: cell(entry, methods[0]) for entry in mine if place(entry) == key}
            parts.append(row(", ".join(key), *(cells.get(method, "-") for method in methods)))
        parts.append("")
    commits = ", ".join(unique(str(entry["git"]) for entry in measured))
    return "\n".join([*parts, f"{NOTE} {noise(measured)} Made on {made_on(measured)} Commits: {commits}."])


def noise(measured: list[dict]) -> str:
    """Return by how much the times of one method differ, where they were measured more than once."""
    spreads = [entry["spread"] / entry["median_seconds"] for entry in measured if entry["spread"]]
    if not spreads:
        return ""
    return f"The quartiles of a method's times lie {median(spreads):.0%} apart (median; {max(spreads):.0%} at most)."


def place(entry: dict) -> tuple[str, ...]:
    """Return the case, and the device: a GPU, or the threads of the CPU."""
    threads = "1 thread" if entry["threads"] == 1 else f"{entry['threads']} threads"
    return entry["case"], threads if entry["device"] == "cpu" else entry["hardware"]["gpu"]


def cell(entry: dict, first: str) -> str:
    """Return the ratio to the first method, or for the first one its time or its memory."""
    if entry["method"] != first:
        return f"{entry['ratio_to_plain']:.2f}"
    if entry["median_seconds"] is None:
        return f"{entry['peak_bytes'] / 1e6:.3g} MB"
    seconds = entry["median_seconds"]
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
