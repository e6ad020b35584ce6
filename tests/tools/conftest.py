import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
TIMING = ("seconds", "git", "hardware")


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """The modules behind tools/reproduce.py, with a README of their own and a grid ``small`` of two networks."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.syspath_prepend(str(ROOT / "tools"))
        import digits_grid
        import grids
        import reports
        import reproduce
        import runs
        import small_grid
        import sparse_grid
        import sparse_preflight
        import sparse_report
        import sparse_stages
        import training
    monkeypatch.setattr(reproduce, "README", tmp_path / "README.md")
    monkeypatch.setattr(runs, "CONFIGS", runs.CONFIGS)
    monkeypatch.setattr(grids, "GRIDS", grids.GRIDS)
    monkeypatch.setitem(grids.GRIDS, "small", None)
    small_grid.install(tmp_path)
    return SimpleNamespace(
        digits_grid=digits_grid,
        grids=grids,
        preflight=sparse_preflight,
        reports=reports,
        reproduce=reproduce,
        runs=runs,
        sparse_grid=sparse_grid,
        sparse_report=sparse_report,
        stages=sparse_stages,
        training=training,
    )


@pytest.fixture
def small(tools, tmp_path):
    """Runs of the grid ``small`` with three epochs, here or in a process of its own, which may be killed."""
    script = Path(__file__).with_name("small_grid.py")

    def command(output, flags):
        return ["small", "--epochs=3", "--device=cpu", f"--output={tmp_path / output}", *flags]

    def run(output, *flags):
        tools.reproduce.main(command(output, flags))

    def start(output, *flags):
        line = [sys.executable, str(script), str(tmp_path), *command(output, flags)]
        return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)

    def kill(process):
        """Kill it, wait until its child, which holds the same standard output, has ended too; return what they said."""
        process.kill()
        return process.communicate(timeout=30)[0]

    def results(output):
        records = {path.name: json.loads(path.read_text()) for path in (tmp_path / output).glob("*.json")}
        return {name: {key: record[key] for key in record if key not in TIMING} for name, record in records.items()}

    def epochs(checkpoint):
        return torch.load(checkpoint)["callbacks"]["EpochRecorder"]["epochs"]

    return SimpleNamespace(run=run, start=start, kill=kill, results=results, epochs=epochs)
