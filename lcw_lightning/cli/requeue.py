"""A SLURM job that is requeued goes on by itself, from its own checkpoint."""

import os
import re
import signal
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import fsspec
import torch
from fsspec.core import url_to_fs
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lcw_lightning.callbacks.overrides import Overrides
from lcw_lightning.cli.run_config import text_of_run
from lcw_lightning.compat import find_requeued_by, requeue_method

__all__ = ["Requeue", "attach_requeue"]

MARK = "slurm_run"


class Requeue(Callback):
    """Requeue at the end of a training step, and go on from a checkpoint of the same run alone.

    In an epoch's last step it waits for the first step of the next epoch, or for the end of the training.

    Lightning alone saves wherever a process is when SLURM's signal comes: the batch that it works on is then lost, and
    ranks that the signal finds at different places wait for each other without end. And it goes on from the newest
    ``hpc_ckpt_*`` of the root folder, whichever job wrote it, also where a network is to be tested.

    Args:
        run: What tells this run from others: its job and its config.
        weights_only: False unpickles whole checkpoints, which may run code that they contain.
    """

    def __init__(self, run: str, weights_only: bool = True) -> None:
        self.run = sha256(run.encode()).hexdigest()
        self.weights_only = weights_only
        self._requeue: Callable[[int, None], None]
        self._is_training = False
        self._is_asked = False
        self._is_done = False

    def attach(self, trainer: Trainer) -> None:
        """Make the trainer requeue and resume in this way; the callback comes last."""
        instance, name = requeue_method(trainer)
        self._requeue = getattr(instance, name)
        Overrides().add(instance, name, self._ask)
        find_requeued_by(trainer, lambda: self.own_checkpoint(str(trainer.default_root_dir)))
        trainer.callbacks.append(self)  # type: ignore[attr-defined]

    def own_checkpoint(self, folder: str) -> str | None:
        """Return the path of the newest checkpoint in the folder that a requeue of this run wrote."""
        fs, local = url_to_fs(folder)
        names = [str(path).rpartition("/")[2] for path in fs.glob(f"{local}/hpc_ckpt_*.ckpt")]
        numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"hpc_ckpt_(\d+)\.ckpt", name)))
        paths = [os.path.join(folder, f"hpc_ckpt_{number}.ckpt") for number in reversed(numbers)]
        own = next((path for path in paths if self._run_of(path) == self.run), None)
        if paths and own is None:
            rank_zero_info(
                f"{paths[0]} is of another run, so this run leaves it alone; to go on from it, give it by --ckpt_path."
            )
        return own

    def _run_of(self, path: str) -> Any:
        sharded = os.path.join(path, "meta.pt")
        with fsspec.open(sharded if os.path.isdir(path) else path, "rb") as file:
            return torch.load(file, map_location="meta", weights_only=self.weights_only).get(MARK)

    def _ask(self, requeue: Callable[[int, Any], None], signum: int, frame: Any) -> None:
        if self._is_training:
            self._is_asked = not self._is_done
        else:
            requeue(signum, frame)

    def _requeue_if_asked(self, trainer: Trainer) -> None:
        # The ranks get the signal at different steps.
        if trainer.strategy.reduce_boolean_decision(self._is_asked, all=False):
            self._is_asked, self._is_done = False, True
            self._requeue(signal.SIGUSR1, None)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_training = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch:  # Lightning would leave out the validation that follows it, and its checkpoint
            self._requeue_if_asked(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._requeue_if_asked(trainer)
        self._is_training = False

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[MARK] = self.run


def attach_requeue(trainer: Trainer, parser: LightningArgumentParser, config: Namespace) -> None:
    """Give the trainer of a SLURM job a :class:`Requeue`; other trainers are left as they are."""
    if SLURMEnvironment.detect():
        Requeue(text_of_run(parser, config), config.weights_only is not False).attach(trainer)
