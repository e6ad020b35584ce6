"""The scripts of the page on many machines run, as two nodes on this host."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TORCHRUN, SBATCH = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/many_machines.md").read_text(), flags=re.DOTALL)
SHORT = "--model.network.depth 3 --model.network.width 16 --data.batch_size 64 --trainer.max_epochs 1"
SHORT += " --trainer.accelerator cpu --shift_monitor.figures false"
# Starts its arguments on two nodes with one task each, with the variables that SLURM's gives to a task.
SRUN = """#!/bin/bash
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_NODEID=$rank SLURM_LOCALID=0 "$@" & started+=($!)
done
for process in "${started[@]}"; do wait "$process" || exit 1; done
"""
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NAME": "digits",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NODELIST": "localhost",
}

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"  # where lcw is installed
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def weights(folder, version):
    path = folder / f"runs/digits/lightning_logs/version_{version}/checkpoints/last.ckpt"
    return torch.load(path)["state_dict"]


def test_torchrun_and_slurm_start_two_nodes_that_train_the_same(environment, port, tmp_path):
    node = {**environment, "NODES": "2", "GPUS": "1", "MASTER": "127.0.0.1", "PORT": port}
    commands = [
        (TORCHRUN, [{**node, "NODE_RANK": str(rank)} for rank in range(2)]),
        (SBATCH, [{**environment, **SLURM, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}]),
    ]
    for script, environments in commands:
        command = ["bash", "-euc", f"{script.strip()} {SHORT}"]
        started = [subprocess.Popen(command, cwd=tmp_path, env=one) for one in environments]
        assert [process.wait(300) for process in started] == [0] * len(started)
    by_torchrun, by_slurm = weights(tmp_path, 0), weights(tmp_path, 17)
    assert by_slurm.keys() == by_torchrun.keys()
    assert all(torch.equal(weight, by_torchrun[name]) for name, weight in by_slurm.items())
