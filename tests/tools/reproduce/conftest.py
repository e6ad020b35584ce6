import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from tools.records import ROOT
from tools.reproduce import __main__ as reproduce
from tools.reproduce import runs
from tools.reproduce.paper.grids import GRIDS, Grid

TIMING = ("seconds", "git", "hardware")
METHODS = {method: GRIDS["table1"].methods[method] for method in ("plain", "LCW")}
SMALL = Grid({"mlp": "MLP", "vgg": "VGG19"}, ("digits",), METHODS, last=2)
NETWORKS = {
    "mlp": ("lcw_lightning.MLP", {"in_features": 64, "num_classes": 10, "depth": 2, "width": 8}),
    "vgg": ("lcw_lightning.VGG19", {"in_channels": 1, "width": 1, "hidden_width": 8}),  # with dropout
}
# The command line of tools.reproduce with the grid ``small``: the folder of its configs, then the arguments.
PROGRAM = f"""
import sys
from pathlib import Path
from tools.reproduce import __main__ as reproduce, runs
from tools.reproduce.paper.grids import GRIDS, Grid
runs.CONFIGS, GRIDS["small"] = Path(sys.argv[1]), {SMALL!r}
reproduce.main(sys.argv[2:])
"""


@pytest.fixture
def small_grid(tmp_path, monkeypatch):
    """A grid ``small`` of two networks on the digits; return the folder of its configs."""
    for name, (class_path, settings) in NETWORKS.items():
        config = yaml.safe_load((ROOT / "configs" / "digits_mlp50.yaml").read_text())
        config["model"]["init_args"]["network"] = {"class_path": class_path, "init_args": settings}
        (tmp_path / f"{name}_digits.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(runs, "CONFIGS", tmp_path)
    monkeypatch.setitem(GRIDS, "small", SMALL)
    return tmp_path


@pytest.fixture
def small(small_grid):
    """Runs of the grid ``small`` with three epochs, here or in a process of its own, which may be killed."""

    def command(output, flags):
        return ["small", "--epochs=3", "--device=cpu", f"--output={small_grid / output}", *flags]

    def run(output, *flags):
        reproduce.main(command(output, flags))

    def start(output, *flags):
        line = [sys.executable, "-c", PROGRAM, str(small_grid), *command(output, flags)]
        return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def kill(process):
        """Kill it, wait until its child, which holds the same standard output, has ended too; return what they said."""
        process.kill()
        return process.communicate(timeout=30)[0]

    def results(output):
        records = {path.name: json.loads(path.read_text()) for path in (small_grid / output).glob("*.json")}
        return {name: {key: record[key] for key in record if key not in TIMING} for name, record in records.items()}

    def epochs(checkpoint):
        return torch.load(checkpoint)["callbacks"]["EpochRecorder"]["epochs"]

    return SimpleNamespace(run=run, start=start, kill=kill, results=results, epochs=epochs)
