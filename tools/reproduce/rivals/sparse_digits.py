"""30 layers of sparse activations on scikit-learn's digits: plain weights and LCW, both at every rate of one grid.

The network is that of configs/sparse_mlp30_digits.yaml. At each rate three seeds are trained; the best rate is that of
the highest mean accuracy on held-out images, and the grid is extended where it lies at an edge.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lcw_lightning import MLP, constrain, edge_of_chaos_init_
from tools.readme import head, made_on, row, show
from tools.records import environment, read_json, write_json
from tools.reproduce.rivals.choosing import Axis, choose
from tools.reproduce.rivals.report import FAILED
from tools.reproduce.rivals.training import INITIALIZATION, Data, Recipe, digits, train
from tools.reproduce.runs import exit_without_runs, run_all
from tools.reproduce.sparse.grid import Method

DEPTH, WIDTH, SPARSITY, SEEDS = 30, 300, 0.7, range(3)
RATES = Axis("rate", 0.005, 2.0, number=5)
RECIPE = Recipe(64, images=40 * 1200, choosing_images=0, clip=1.0)
METHODS = {"plain": Method("ReLU_tau", SPARSITY), "LCW": Method("ReLU_tau", SPARSITY, lcw=True)}


def main(arguments: argparse.Namespace) -> None:
    """Train the runs that are missing and print the table, or report."""
    if not arguments.report:
        run_all({file_name(name): partial(run, name) for name in METHODS}, arguments.output, ["cpu", "cpu"])
    records = {name: read_json(arguments.output / f"{file_name(name)}.json") for name in METHODS}
    if not all(records.values()):
        exit_without_runs(arguments.output)
    show("sparse_digits", table(records), write=arguments.report)


def file_name(method: str) -> str:
    """Return the name of a method's JSON file."""
    return f"digits_{method.lower()}"


def run(name: str, folder: Path, device: str) -> dict:  # noqa: ARG001
    """Train three seeds at every rate of the grid; return the method's record, the best rate first."""
    torch.set_flush_denormal(True)
    tried = choose((RATES,), partial(attempt, name, digits(), folder))
    return {
        **{"method": name, "device": "cpu", **environment(), "recipe": RECIPE._asdict()},
        **{"sparsity": SPARSITY, "initialization_images": INITIALIZATION, "tried": tried},
    }


def attempt(name: str, data: Data, folder: Path, settings: dict[str, float]) -> dict:
    """Train all seeds at one rate; return their runs, and the means by which rates are compared."""
    path = folder / f"{settings['rate']:g}.json"
    if not (runs := read_json(path)):
        runs = [{"seed": seed, **train(partial(build, name), data, settings, RECIPE, seed)} for seed in SEEDS]
        write_json(path, runs)
    print(f"{name} at rate {settings['rate']:g}: {[found['test_accuracy'] for found in runs]}", flush=True)
    finite = not any(found["diverged"] for found in runs)
    means = {
        quantity: [statistics.mean(found[quantity][-1] for found in runs)] if finite else []
        for quantity in ("held_out_accuracy", "held_out_loss")
    }
    return {"diverged": not finite, **means, "runs": runs}


def build(name: str, settings: dict[str, float], images: Tensor) -> nn.Module:  # noqa: ARG001
    """Return the network before training, drawn at the edge of chaos."""
    method = METHODS[name]
    network = MLP(64, 10, DEPTH, WIDTH, activation=method.activation_module)
    if method.lcw:
        constrain(network)
    return edge_of_chaos_init_(network, images)


def table(records: dict[str, dict]) -> str:
    """Return the Markdown table of rates and methods, the gain at equal and at best rates, and what made it."""
    tried = {
        name: {attempt["rate"]: attempt["runs"] for attempt in record["tried"]} for name, record in records.items()
    }
    titles = [f"{name}, {images}" for name in records for images in ("held out", "test")]
    lines = head("rate", *titles, "LCW - plain, test")
    for rate in sorted({rate for runs in tried.values() for rate in runs}):
        runs = {name: found.get(rate) for name, found in tried.items()}
        cells = [
            cell(found, quantity) for found in runs.values() for quantity in ("held_out_accuracy", "test_accuracy")
        ]
        both = all(runs.values())
        lines.append(row(f"{rate:g}", *cells, f"{gain(runs['plain'], runs['LCW']):+.3f}" if both else "-"))
    chosen = {name: record["tried"][0] for name, record in records.items()}
    best = " and ".join(f"{name} {found['rate']:g}" for name, found in chosen.items())
    lead = gain(*(found["runs"] for found in chosen.values()))
    return "\n".join([*lines, "", f"{best_line(best, lead)} Made on {made_on(list(records.values()))}"])


def best_line(best: str, lead: float) -> str:
    """Return the sentence on the best rates."""
    return f"The best rates on held-out images are {best}; at these the test accuracy with LCW differs by {lead:+.3f}."


def cell(runs: list[dict] | None, quantity: str) -> str:
    """Return the mean over seeds, the lowest and the highest, and how many runs failed in which way."""
    if runs is None:
        return "-"
    values = [value[-1] if isinstance(value := run[quantity], list) else value for run in runs if not run["diverged"]]
    failed = {"not finite": len(runs) - len(values), "near chance": sum(value < FAILED for value in values)}
    said = "".join(f"; {number} {what}" for what, number in failed.items() if number)
    if not values:
        return said.removeprefix("; ")
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}{said})"


def gain(plain: list[dict], lcw: list[dict]) -> float:
    """Return by how much the mean test accuracy with LCW is higher."""
    means = [statistics.mean(run["test_accuracy"] for run in runs) for runs in (plain, lcw)]
    return means[1] - means[0]
