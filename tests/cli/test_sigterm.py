"""A run that SIGTERM ends does not look like one that has succeeded."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FLAGS = ["--trainer.max_epochs=1000", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
SMALL = ["--model.network.depth=2", "--model.network.width=8"]
CONFIG = Path(__file__).parents[2] / "configs" / "digits_mlp50.yaml"


def test_fit_ended_by_sigterm_has_the_status_of_the_signal_and_says_how_to_go_on(tmp_path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from lcw_lightning.cli import main; main()",
        "fit",
        "--config",
        CONFIG,
        *FLAGS,
        *SMALL,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as run:
        deadline = time.monotonic() + 90
        while not list(tmp_path.rglob("*.ckpt")) and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.2)  # until the first epoch has ended
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert "lcw: ended by SIGTERM; go on with --ckpt_path and the last checkpoint of the run" in said
