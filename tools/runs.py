"""Runs of a grid, each one JSON: what has none yet is trained, from its last checkpoint where there is one."""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

import torch

from lcw_lightning.files import written_atomically

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
RESULTS = ROOT / "results"
PACKAGES = ("lcw_lightning", "torch", "torchvision", "lightning", "torchmetrics", "scikit-learn")
QUANTITIES = {  # as the classifier logs them: validation is on the test images
    "train/loss": "train/loss",
    "train/accuracy": "train/accuracy",
    "test/loss": "val/loss",
    "test/accuracy": "val/accuracy",
    "test/sparsity": "val/sparsity",  # where ShiftMonitor is on
}


@dataclass(frozen=True)
class Run:
    """One training: a config, a method with its flags, a seed; ``variant`` are flags of all runs, and their name."""

    network: str
    data: str
    method: str
    seed: int
    flags: list[str]
    variant: str = ""

    @property
    def name(self) -> str:
        """What this run's files are called."""
        return f"{self.network}_{self.data}_{self.method.lower()}{self.variant}_seed{self.seed}"


def environment() -> dict:
    """Return what a number depends on beside the code's arguments; without a git checkout no commit."""
    commit, changed = (
        subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for arguments in (
            ["rev-parse", "--short", "HEAD"],
            ["status", "--porcelain", "lcw_lightning", "configs", "tools"],
        )
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "git": commit + "-dirty" * bool(changed) if commit else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu},
    }


def write_json(path: Path, content: dict) -> None:
    """Put a JSON file in place, whole."""
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def run_all(runs: list[Run], folder: Path, devices: list[str], data_dir: Path | None) -> list[str]:
    """Train the runs that have no JSON in the folder, one at a time on each device; return the names that failed."""
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)

    def work(number: int, run: Run) -> bool:
        place = f"[{number}/{len(runs)}] {run.name}"
        path, unfinished = folder / f"{run.name}.json", folder / "unfinished" / run.name
        if path.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a kill between the last two lines
            print(f"{place}: there already", flush=True)
            return True
        device = free.get()
        print(f"{place}: on {device}", flush=True)
        try:
            content = train(run, unfinished, device, data_dir)
        except subprocess.CalledProcessError as error:
            print(f"{place}: failed with exit status {error.returncode}", flush=True)
            return False
        finally:
            free.put(device)
        write_json(path, content)
        shutil.rmtree(unfinished)
        return True

    with ThreadPoolExecutor(len(devices)) as pool:
        done = list(pool.map(work, range(1, len(runs) + 1), runs))
    return [run.name for run, succeeded in zip(runs, done, strict=True) if not succeeded]


def train(run: Run, folder: Path, device: str, data_dir: Path | None) -> dict:
    """Train in a process of its own, on from its last checkpoint if there is one; return what is known of the run."""
    for unfinished in folder.glob(".last.ckpt.*"):
        shutil.rmtree(unfinished)  # a write that a kill cut short
    config = CONFIGS / f"{run.network}_{run.data}.yaml"
    accelerator, _, index = device.partition(":")
    command = [
        *(sys.executable, str(Path(__file__).with_name("training.py")), "fit", "--config", str(config)),
        *("--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *("--shift_monitor.every_n_steps=0", "--test_after_fit=false"),
        *("--trainer.callbacks+=training.EpochRecorder", f"--trainer.callbacks.name={run.name}"),
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
        command.append(f"--ckpt_path={checkpoint}")
    # Its standard input is closed when this process ends in whatever way, and then it ends too.
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return record(run, device, recorded(checkpoint))


def recorded(checkpoint: Path) -> list[dict[str, float]]:
    """Return what EpochRecorder put into a checkpoint: each epoch's numbers."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]["EpochRecorder"]["epochs"]


def diverged(epochs: list[dict[str, float]]) -> bool:
    """Return whether training ended because its loss was not finite."""
    return not math.isfinite(epochs[-1]["train/loss"])


def record(run: Run, device: str, epochs: list[dict[str, float]]) -> dict:
    """Return what a run's JSON holds; numbers that are not finite are null."""
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
