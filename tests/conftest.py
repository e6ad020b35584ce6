import fcntl
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lcw_lightning.cli import main
from lcw_lightning.weights.weight_ref import named_weights

pytest_plugins = ["tests.projects", "tests.ranks"]

CONFIG = str(Path(__file__).parents[1] / "configs" / "digits_mlp50.yaml")
SMALL = ["--model.network.depth=3", "--model.network.width=16", "--trainer.max_epochs=2"]
# Figures take longer than the training.
QUIET = [
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    "--shift_monitor.figures=false",
    "--trainer.callbacks=null",  # one checkpoint, of the last epoch
]
SLOW_SECONDS = 1800


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture(autouse=True)
def denormal_numbers():
    """Let every test begin with denormal numbers, which ``lcw`` turns off in its process."""
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _lightning_speaks():
    """``lcw analyze`` silences Lightning's greeting in its process, and with it what later tests look for."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO)


@pytest.fixture(autouse=True)
def _reseed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    """``lcw`` puts the working directory in front, for good."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture(autouse=True, scope="session")
def _no_command_line():
    """LightningCLI warns where it gets arguments while pytest's own are in sys.argv."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lcw"])
        yield


@pytest.fixture(scope="session")
def residual():
    """Return a function of a module: the largest sum of a unit's weights, over their norm, of all or named weights."""

    def largest(module, names=None):
        weights = named_weights(module)
        units = (weights[name].units.detach().double() for name in (weights if names is None else names))
        return torch.cat([rows.sum(1).abs() / rows.norm(dim=1) for rows in units]).max().item()

    return largest


@pytest.fixture(scope="session")
def run_fresh():
    """Return a function that runs code in a Python process that has imported nothing: what it prints."""

    def run(code):
        command = [sys.executable, "-W", "ignore", "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return run


@pytest.fixture
def lcw(tmp_path, monkeypatch):
    """Run ``lcw`` on a small version of the digits config, in a folder of its own; .args are its arguments."""
    monkeypatch.chdir(tmp_path)

    def run(command, *flags):
        main([command, *run.args, *flags])

    run.config = CONFIG
    run.quiet = QUIET
    run.args = ["--config", CONFIG, *SMALL, *QUIET]
    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Return a function of a name and ``make``: a folder of that name, which ``make(folder)`` fills for all workers."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def folder_of(name, make):
        folder, unfinished = shared / name, shared / f"{name}.unfinished"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # which a worker that dies lets go
            if not folder.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def _small_run(once, _no_command_line):
    """The folder of a small run."""

    def fit(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            main(["fit", "--config", CONFIG, *SMALL, *QUIET])

    return once("small_run", fit)


@pytest.fixture
def small_checkpoint(lcw, _small_run):
    """The path of the last checkpoint of a small run, a copy of which lies in the test's folder."""
    shutil.copytree(_small_run, ".", dirs_exist_ok=True)
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    return str(path)


@pytest.fixture(scope="session")
def forkserver():
    """Starts processes: forked from one that has imported everything and computed nothing, so it has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "lcw_lightning.cli.app"])
    # The default number of threads is the machine's, and sums depend on it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        process = context.Process(target=os.getpid)  # which starts the server
        process.start()
        process.join()
    return context
