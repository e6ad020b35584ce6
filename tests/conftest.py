import sys
from pathlib import Path

import pytest
import torch

from lcw_lightning.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _reseed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_command_line():
    """LightningCLI warns where it gets arguments while pytest's own are in sys.argv."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lcw"])
        yield


@pytest.fixture
def lcw(tmp_path, monkeypatch):
    """Run ``lcw`` on a small version of the digits config, in a folder of its own; .args are its arguments."""
    monkeypatch.chdir(tmp_path)
    small = ["--model.network.depth=3", "--model.network.width=16", "--trainer.max_epochs=2"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]

    def run(command, *flags):
        main([command, *run.args, *flags])

    run.config = str(ROOT / "configs" / "digits_mlp50.yaml")
    run.quiet = quiet
    run.args = ["--config", run.config, *small, *quiet]
    return run


@pytest.fixture
def small_checkpoint(lcw):
    """The path of the last checkpoint of a small run."""
    lcw("fit")
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    return str(path)
