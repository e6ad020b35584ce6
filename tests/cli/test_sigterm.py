"""A run that a signal ends does not look like one that has succeeded, and says how to go on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FLAGS = ["--trainer.max_epochs=1000", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
SMALL = ["--model.network.depth=2", "--model.network.width=8", "--shift_monitor.every_n_steps=0"]
CONFIG = Path(__file__).parents[2] / "configs" / "digits_mlp50.yaml"
LCW = [sys.executable, "-W", "ignore", "-c", "from lcw_lightning.cli import main; main()"]


@pytest.mark.parametrize(
    ("sent", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")], ids=["sigterm", "ctrl-c"]
)
def test_fit_ended_by_a_signal_has_its_status_and_names_the_command_that_goes_on(sent, name, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*LCW, "fit", "--config", CONFIG, *FLAGS, *SMALL]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as run:
        deadline = time.monotonic() + 90
        while (
            not list(tmp_path.glob("lightning_logs/*/checkpoints/*.ckpt"))
            and time.monotonic() < deadline
            and run.poll() is None
        ):
            time.sleep(0.2)  # until the first epoch has ended
        time.sleep(0.5)  # until the checkpoint is complete
        run.send_signal(sent)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + sent
    (last,) = re.findall(rf"lcw: ended by {re.escape(name)}; go on with: lcw fit --ckpt_path=(.*)\n", said)
    assert (tmp_path / last).is_file()
    assert "Traceback" not in said


def test_a_signal_before_the_first_checkpoint_says_so(tmp_path):
    none = ["--trainer.enable_checkpointing=false", "--trainer.callbacks=null"]
    command = [*LCW, "fit", "--config", CONFIG, *FLAGS, *SMALL, *none]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 90
        while not list(tmp_path.rglob("hparams.yaml")) and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.2)
        time.sleep(1)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.endswith("lcw: ended by Ctrl-C before the first checkpoint\n")
