"""The grid on scikit-learn's digits: with what its layers do before training."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from runs import ROOT, environment, write_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = "configs/digits_mlp50.yaml"
METHODS = {"plain": ["--constraint.kind=none"], "LCW": ["--constraint.kind=lcw"]}
SEEDS = range(5)
AT_START = ("shift_ratio", "gradient_std")


def run(method: str, seed: int) -> dict:
    """Train once in a process of its own; return what is known of the run."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*METHODS[method], f"--seed_everything={seed}"]
        command = [sys.executable, "-c", "from lcw_lightning.cli import main; main()", "fit", "--config", CONFIG]
        subprocess.run([*command, *flags, f"--trainer.default_root_dir={folder}"], check=True, cwd=ROOT)
        events = EventAccumulator(f"{folder}/lightning_logs/version_0", size_guidance={"scalars": 0})
        events.Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    values = {tag: [event.value for event in history] for tag, history in scalars.items()}
    first = min(event.wall_time for history in scalars.values() for event in history)
    return {
        "config": CONFIG,
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


def run_missing(folder: Path) -> None:
    """Run what the folder lacks, saying how far it is."""
    wanted = [(method, seed) for method in METHODS for seed in SEEDS]
    for number, (method, seed) in enumerate(wanted, start=1):
        path = folder / f"{method.lower()}_seed{seed}.json"
        done = path.exists()
        print(f"[{number}/{len(wanted)}] {path.stem}{': there already' if done else ''}", flush=True)
        if not done:
            write_json(path, run(method, seed))


def load(folder: Path) -> dict[str, list[dict]]:
    """Return the folder's finished runs by method."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {method: [run for run in runs if run["method"] == method] for method in METHODS}


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


def picture(runs_by_method: dict[str, list[dict]]) -> Figure:
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
    return figure
