"""Run a named grid of experiments, one JSON a run, and render the README's table and picture from those JSONs alone.

    python tools/reproduce.py digits            run what results/digits does not hold yet
    python tools/reproduce.py digits --report   write the table into README.md and the picture beside the JSONs

A run that was stopped leaves no JSON and is run again; a finished one is never repeated.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "results"
PACKAGES = ("lcw_lightning", "torch", "lightning", "torchmetrics", "scikit-learn")
AT_START = ("shift_ratio", "gradient_std")


@dataclass(frozen=True)
class Grid:
    """One config under several methods, each a name and its flags, and several seeds."""

    config: str
    methods: dict[str, list[str]]
    seeds: range


GRIDS = {
    "digits": Grid(
        config="configs/digits_mlp50.yaml",
        methods={"plain": ["--constraint.kind=none"], "LCW": ["--constraint.kind=lcw"]},
        seeds=range(5),
    )
}


def run(grid: Grid, method: str, seed: int) -> dict:
    """Train once in a process of its own; return what is known of the run."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*grid.methods[method], f"--seed_everything={seed}"]
        command = [sys.executable, "-c", "from lcw_lightning.cli import main; main()", "fit", "--config", grid.config]
        subprocess.run([*command, *flags, f"--trainer.default_root_dir={folder}"], check=True, cwd=ROOT)
        events = EventAccumulator(f"{folder}/lightning_logs/version_0", size_guidance={"scalars": 0})
        events.Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    values = {tag: [event.value for event in history] for tag, history in scalars.items()}
    first = min(event.wall_time for history in scalars.values() for event in history)
    return {
        "config": grid.config,
        "method": method,
        "flags": flags,
        "seed": seed,
        **environment(),
        "train_seconds": scalars["train/loss"][-1].wall_time - first,  # from the first logged step to the last epoch
        "test_accuracy": values["test/accuracy"][-1],
        "epochs": {tag: history for tag, history in values.items() if tag.startswith(("train/", "val/"))},
        "at_start": {name: layers_at_start(values, name) for name in AT_START},
    }


def layers_at_start(values: dict[str, list[float]], name: str) -> list[float]:
    """Return one statistic of all layers at step 0, from the input to the logits."""
    tags = [tag for tag in values if tag.startswith(f"{name}/")]
    hidden = sorted((tag for tag in tags if ".hidden." in tag), key=lambda tag: int(tag.split(".")[-2]))
    return [values[tag][0] for tag in [*hidden, f"{name}/network.output"]]


def environment() -> dict:
    """Return what a number depends on beside the code's arguments."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "git": git.stdout.strip(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))},
    }


def run_missing(name: str) -> None:
    """Run what the grid lacks, saying how far it is."""
    grid, folder = GRIDS[name], RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(method, seed) for method in grid.methods for seed in grid.seeds]
    for number, (method, seed) in enumerate(wanted, start=1):
        path = folder / f"{method.lower()}_seed{seed}.json"
        done = path.exists()
        print(f"[{number}/{len(wanted)}] {path.stem}{': there already' if done else ''}", flush=True)
        if not done:
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(run(grid, method, seed), indent=1) + "\n")
            unfinished.replace(path)


def load(name: str) -> dict[str, list[dict]]:
    """Return the grid's finished runs by method."""
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / name).glob("*.json"))]
    return {method: [run for run in runs if run["method"] == method] for method in GRIDS[name].methods}


def table(runs_by_method: dict[str, list[dict]]) -> str:
    """Return the Markdown table of the runs, and a line that says what made it."""
    rows = [
        "| weights | seeds | test accuracy: mean (lowest to highest) | training: median seconds |",
        "|---|---|---|---|",
    ]
    for method, runs in runs_by_method.items():
        accuracies = [run["test_accuracy"] for run in runs]
        seconds = statistics.median(run["train_seconds"] for run in runs)
        spread = f"{statistics.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f})"
        rows.append(f"| {method} | {len(runs)} | {spread} | {seconds:.1f} |")
    made = next(iter(runs_by_method.values()))[0]
    versions = ", ".join(f"{package} {number}" for package, number in made["versions"].items())
    return "\n".join(rows) + f"\n\n{made['hardware']['cores']} CPU cores ({made['hardware']['machine']}); {versions}."


def write_between_markers(name: str, text: str) -> None:
    """Put the text between the README's markers for this grid."""
    begin, end = f"<!-- {name}: made by tools/reproduce.py -->", f"<!-- /{name} -->"
    before, rest = README.read_text().split(begin)
    README.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def picture(name: str, runs_by_method: dict[str, list[dict]]) -> None:
    """Draw activation shift and gradient against depth at the start, and test accuracy against epochs."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    shift, gradient, accuracy = figure.subplots(1, 3)
    for method, color in zip(runs_by_method, ("tab:gray", "tab:blue"), strict=True):
        for number, run in enumerate(runs_by_method[method]):
            style = {"color": color, "alpha": 0.8, "label": method if number == 0 else None}
            depth = range(1, len(run["at_start"]["shift_ratio"]) + 1)
            shift.plot(depth, run["at_start"]["shift_ratio"], **style)
            gradient.plot(depth, run["at_start"]["gradient_std"], **style)
            epochs = run["epochs"]["val/accuracy"]
            accuracy.plot(range(1, len(epochs) + 1), epochs, **style)
    shift.set(title="Activation shift before training", xlabel="layer", ylabel="shift ratio", yscale="log")
    gradient.set(title="Gradient before training", xlabel="layer", ylabel="std of dL/dz", yscale="log")
    accuracy.set(title="Training 50 sigmoid layers", xlabel="epoch", ylabel="test accuracy", ylim=(0, 1))
    accuracy.legend(loc="center right")
    figure.savefig(RESULTS / name / f"{name}.png", dpi=110)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--report", action="store_true", help="render what is there; run nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        run_missing(arguments.grid)
        return
    runs = load(arguments.grid)
    if not all(runs.values()):
        sys.exit(f"results/{arguments.grid} holds no run of some method; run the grid first, without --report.")
    write_between_markers(arguments.grid, table(runs))
    picture(arguments.grid, runs)


if __name__ == "__main__":
    main()
