"""Runs, each one JSON file: a run without a file is trained, from its last checkpoint if it has one."""

import argparse
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

import torch
import yaml

from tools.records import ROOT, environment, read_json, write_json

CONFIGS = ROOT / "configs"
QUANTITIES = {  # as the classifier logs them: it validates on the test images
    "train/loss": "train/loss",
    "train/accuracy": "train/accuracy",
    "test/loss": "val/loss",
    "test/accuracy": "val/accuracy",
    "test/sparsity": "val/sparsity",  # where ShiftMonitor is on
}


@dataclass(frozen=True)
class Run:
    """One training: a config, a method with its flags, a seed; ``variant`` names flags that all runs share."""

    network: str
    data: str
    method: str
    seed: int
    flags: list[str]
    variant: str = ""

    @property
    def name(self) -> str:
        """The name of this run's files."""
        return f"{self.network}_{self.data}_{self.method.lower()}{self.variant}_seed{self.seed}"


def settings(network: str, data: str) -> dict:
    """Return the content of a network's config."""
    return yaml.safe_load((CONFIGS / f"{network}_{data}.yaml").read_text())


def train_all(runs: list[Run], arguments: argparse.Namespace) -> None:
    """Train the runs that have no JSON file yet; with ``--report`` none."""
    if not arguments.report:
        jobs = {run.name: partial(train, run, data_dir=arguments.data_dir) for run in runs}
        run_all(jobs, arguments.output, arguments.device)


def run_all(jobs: dict[str, Callable[[Path, str], dict]], output: Path, devices: list[str]) -> None:
    """Do the jobs that have no JSON file in the folder, one at a time on each device; exit if any of them failed.

    Args:
        jobs: By the names of their JSON files. A job takes a folder for unfinished work and a device, and returns the
            file's content.
        output: The folder.
        devices: Such as ``cuda:0``.
    """
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)

    def work(number: int, name: str) -> bool:
        place = f"[{number}/{len(jobs)}] {name}"
        path, unfinished = output / f"{name}.json", output.absolute() / "unfinished" / name
        if path.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a kill between the last two lines
            print(f"{place}: there already", flush=True)
            return True
        device = free.get()
        print(f"{place}: on {device}", flush=True)
        try:
            content = jobs[name](unfinished, device)
        except subprocess.CalledProcessError as error:
            print(f"{place}: failed with exit status {error.returncode}", flush=True)
            return False
        finally:
            free.put(device)
        write_json(path, content)
        shutil.rmtree(unfinished)
        return True

    with ThreadPoolExecutor(len(devices)) as pool:
        done = list(pool.map(work, range(1, len(jobs) + 1), jobs))
    if failed := [name for name, succeeded in zip(jobs, done, strict=True) if not succeeded]:
        sys.exit(f"failed: {', '.join(failed)}; what they said is above. Start again to go on with them.")


def finished(names: list[str], folder: Path) -> list[dict]:
    """Return the records of those names that have a JSON file."""
    return [record for name in names if (record := read_json(folder / f"{name}.json"))]


def exit_without_runs(folder: Path) -> NoReturn:
    """Say that there is nothing to report."""
    sys.exit(f"{folder} holds none of these runs; run the grid first, without --report.")


def train(run: Run, folder: Path, device: str, data_dir: Path | None) -> dict:
    """Train, from the last checkpoint in the folder if there is one; return the run's record."""
    for unfinished in folder.glob(".last.ckpt.*"):
        shutil.rmtree(unfinished)  # a write that a kill cut short
    accelerator, _, index = device.partition(":")
    flags = [
        *("fit", "--config", str(CONFIGS / f"{run.network}_{run.data}.yaml")),
        *("--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *("--shift_monitor.every_n_steps=0", "--test_after_fit=false"),
        "--trainer.callbacks=null",  # those of the config, such as a best checkpoint
        "--loss_watch.if_not_finite=warn",  # the recorder ends a run that has diverged, and records it
        *("--trainer.callbacks+=tools.reproduce.training.EpochRecorder", f"--trainer.callbacks.name={run.name}"),
        *("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", f"--trainer.callbacks.dirpath={folder}"),
        *("--trainer.callbacks.filename=last", "--trainer.callbacks.enable_version_counter=false"),
        *(f"--trainer.accelerator={accelerator}", f"--trainer.devices={f'[{index}]' if index else 1}"),
        *([f"--data.init_args.data_dir={data_dir.absolute()}"] if data_dir else []),
        *run.flags,
        f"--seed_everything={run.seed}",
    ]
    checkpoint = folder / "last.ckpt"
    if checkpoint.exists():
        if diverged(epochs := recorded(checkpoint)):
            return record(run, device, epochs)
        flags.append(f"--ckpt_path={checkpoint}")
    lcw(flags)
    return record(run, device, recorded(checkpoint))


def lcw(flags: list[str]) -> None:
    """Run ``lcw`` in a process of its own; raise CalledProcessError if it fails."""
    command = [sys.executable, "-m", "tools.reproduce.training", *flags]
    # When this process ends, in whatever way, the child's standard input is closed, and then the child ends too.
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) as process:
        process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def recorded(checkpoint: Path) -> list[dict[str, float]]:
    """Return each epoch's numbers, which EpochRecorder put into the checkpoint."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]["EpochRecorder"]["epochs"]


def diverged(epochs: list[dict[str, float]]) -> bool:
    """Return whether training ended because its loss was not finite."""
    return not math.isfinite(epochs[-1]["train/loss"])


def record(run: Run, device: str, epochs: list[dict[str, float]]) -> dict:
    """Return the content of a run's JSON file; numbers that are not finite are null."""
    logged = {name: tag for name, tag in QUANTITIES.items() if tag in epochs[0]}
    values = {name: [epoch[tag] for epoch in epochs] for name, tag in logged.items()}
    finite = {name: [x if math.isfinite(x) else None for x in history] for name, history in values.items()}
    return {
        "config": f"configs/{run.network}_{run.data}.yaml",
        **{"network": run.network, "data": run.data, "method": run.method, "variant": run.variant},
        **{"flags": run.flags, "seed": run.seed, "device": device},
        **environment(),
        "diverged": any(None in history for history in finite.values()),
        "epochs": finite,
        "seconds": [epoch["seconds"] for epoch in epochs],
    }
