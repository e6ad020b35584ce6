"""Plain weights and LCW on scikit-learn's digits, with the statistics of each layer before training."""

import argparse
import shutil
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tools.readme import head, made_on, row, show
from tools.records import environment
from tools.reproduce.runs import exit_without_runs, finished, lcw, run_all

CONFIG = "configs/digits_mlp50.yaml"
METHODS = {"plain": ["--constraint.kind=none"], "LCW": ["--constraint.kind=lcw"]}
SEEDS = range(5)
AT_START = ("shift_ratio", "gradient_std")


def main(arguments: argparse.Namespace) -> None:
    """Train the runs that are missing and print the table, or report."""
    if not arguments.report:
        jobs = {name(method, seed): partial(train, method, seed) for method in METHODS for seed in SEEDS}
        run_all(jobs, arguments.output, ["cpu"])
    runs = load(arguments.output)
    if not all(runs.values()):
        exit_without_runs(arguments.output)
    show("digits", table(runs), write=arguments.report)
    if arguments.report:
        picture(runs).savefig(arguments.output / "digits.png", dpi=110)


def name(method: str, seed: int) -> str:
    """Return the name of a run's JSON file."""
    return f"{method.lower()}_seed{seed}"


def train(method: str, seed: int, folder: Path, device: str) -> dict:
    """Train, from the start; return the run's record."""
    record, values = train_config(CONFIG, method, seed, folder, device)
    return record | {"at_start": {statistic: layers_at_start(values, statistic) for statistic in AT_START}}


def train_config(
    config: str,
    method: str,
    seed: int,
    folder: Path,
    device: str,
    settings: Sequence[str] = (),
    data_dir: Path | None = None,
) -> tuple[dict, dict[str, list[float]]]:
    """Train a config by a method, from the start; return the run's record, and all that was logged, by its tag.

    Flags of the run are in its record, but for those that say where data and results lie.
    """
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    flags = [*METHODS[method], f"--seed_everything={seed}", *settings]
    here = [f"--trainer.default_root_dir={folder}", f"--trainer.accelerator={device}"]
    here += [f"--data.data_dir={data_dir.absolute()}"] if data_dir else []
    lcw(["fit", "--config", config, *flags, *here])
    events = EventAccumulator(str(folder / "lightning_logs" / "version_0"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    values = {tag: [event.value for event in history] for tag, history in scalars.items()}
    first = min(event.wall_time for history in scalars.values() for event in history)
    record = {
        "config": config,
        **{"method": method, "flags": flags, "seed": seed, "device": device},
        **environment(),
        "train_seconds": scalars["train/loss"][-1].wall_time - first,  # from the first logged step to the last epoch
        "test_accuracy": values["test/accuracy"][-1],
        "epochs": {tag: history for tag, history in values.items() if tag.startswith(("train/", "val/"))},
    }
    return record, values


def layers_at_start(values: dict[str, list[float]], statistic: str) -> list[float]:
    """Return one statistic of all layers at step 0, from the first layer to the logits."""
    tags = [tag for tag in values if tag.startswith(f"{statistic}/")]
    hidden = sorted((tag for tag in tags if ".hidden." in tag), key=lambda tag: int(tag.split(".")[-2]))
    return [values[tag][0] for tag in [*hidden, f"{statistic}/network.output"]]


def load(folder: Path) -> dict[str, list[dict]]:
    """Return the records of the finished runs by method."""
    return {method: finished([name(method, seed) for seed in SEEDS], folder) for method in METHODS}


def table(runs_by_method: dict[str, list[dict]]) -> str:
    """Return the Markdown table of the runs, and a line that says what made it."""
    lines = head("weights", "seeds", "test accuracy: mean (lowest to highest)", "training: median seconds")
    for method, runs in runs_by_method.items():
        accuracies = [run["test_accuracy"] for run in runs]
        seconds = statistics.median(run["train_seconds"] for run in runs)
        spread = f"{statistics.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f})"
        lines.append(row(method, len(runs), spread, f"{seconds:.1f}"))
    return "\n".join([*lines, "", made_on([run for runs in runs_by_method.values() for run in runs])])


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
