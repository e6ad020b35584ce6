"""``lcw`` as a SLURM job: its variables, a ``scontrol`` that ends it, and SLURM's signal at a chosen step.

``python slurm_job.py fit ...`` is ``lcw fit ...``.
"""

import os
import signal

from lightning.pytorch import Callback

from lcw_lightning.cli import main

# SLURM ends the job that it requeues; Lightning asks from a process of the job.
SCONTROL = """#!/bin/sh
echo "$@" >> {log}
kill -TERM $PPID
"""


def variables(folder, job=17, rank=0, nodes=1):
    """Return what ``srun`` sets for one task a node; a ``scontrol`` writes what it is asked into ``folder/asked``."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir(exist_ok=True)
    program.write_text(SCONTROL.format(log=folder / "asked"))
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": str(nodes),
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": str(nodes),
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(rank),
        "SLURM_LOCALID": "0",
        "MASTER_ADDR": "127.0.0.1",
    }


class Signal(Callback):
    """Send this process SLURM's signal in the middle of a step, in the first start of a job.

    Args:
        step: The number of steps before it; each rank gets it a step after the one before.
    """

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, pl_module, loss):
        is_first = os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
        if is_first and trainer.global_step == self.step + trainer.global_rank:
            os.kill(os.getpid(), signal.SIGUSR1)


if __name__ == "__main__":
    main()
