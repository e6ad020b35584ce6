"""Result files: JSON, written as a whole, with the commit, the versions and the hardware that made them."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from lcw_lightning.files import written_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PACKAGES = ("lcw_lightning", "torch", "torchvision", "lightning", "torchmetrics", "scikit-learn")


def environment() -> dict:
    """Return the commit, the versions and the hardware; the commit is ``None`` outside a git checkout."""
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


def write_json(path: Path, content: dict | list) -> None:
    """Write a JSON file; tensors become lists, and numbers that are not finite are an error."""
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False, default=Tensor.tolist) + "\n")


def read_json(path: Path) -> dict:
    """Return the content of a JSON file, or an empty dict if there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}
