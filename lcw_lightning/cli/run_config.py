"""Write ``config.yaml`` beside the logs of a run, and find the one that belongs to a checkpoint."""

import argparse
import os
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

__all__ = ["KEYWORDS", "SaveConfigBesideLogs", "checkpoint_without_config", "config_of_run", "text_of_run"]

KEYWORDS = ("best", "last", "hpc", "registry")
"""What Lightning takes in place of a checkpoint's path."""


def text_of_run(parser: LightningArgumentParser, config: Namespace) -> str:
    """Return the YAML of a run's config, with the number of its SLURM job, if it has one, in a comment.

    The checkpoint that the run resumed from is left out: in the file it would override a ``--ckpt_path`` before
    ``--config``.
    """
    config = config.clone()
    for name in ("ckpt_path", "weights_only"):
        config.pop(name, None)
    text: str = parser.dump(config, skip_none=False)
    job = SLURMEnvironment.job_id()
    return text if job is None else f"{text}# SLURM job {job}\n"


class SaveConfigBesideLogs(SaveConfigCallback):
    """Write the run's ``config.yaml`` into its log folder. Without a logger there is no folder, and nothing is written.

    A file that is there stays. It is no obstacle to evaluation, nor to a run that goes on from a checkpoint in its
    folder, nor to a SLURM job that was requeued and finds the file of its first start. Any other file is: then all
    ranks raise, and nothing is written.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.loggers:
            return
        path = os.path.join(trainer.log_dir or ".", self.config_filename)  # all ranks must ask for log_dir
        text = text_of_run(self.parser, self.config)
        here = _compare(path, text) if trainer.is_global_zero else (False, False)
        is_there, is_other = trainer.strategy.broadcast(here)
        if is_other and trainer.state.fn == TrainerFn.FITTING and not self._goes_on(trainer):
            flag = "--run_name" if self.config.get("run_name") else "--trainer.logger.init_args.version"
            raise FileExistsError(
                f"the run's folder {trainer.log_dir} holds another run, with its {self.config_filename}: name another "
                f"by {flag}, go on with that one by --ckpt_path, or move it away."
            )
        if trainer.is_global_zero and not is_there:
            with fsspec.open(path, "w", auto_mkdir=True) as file:
                file.write(text)
        self.already_saved = True

    def _goes_on(self, trainer: Trainer) -> bool:
        """Return whether a run resumes from a checkpoint in its own folder, as one with a name does."""
        checkpoint = Path(str(self.config.get("ckpt_path")))  # the trainer does not know it yet
        return checkpoint.absolute().parent.parent == Path(str(trainer.log_dir)).absolute()


def _compare(path: str, text: str) -> tuple[bool, bool]:
    """Return whether there is a file, and whether it is of another run than that of ``text``."""
    fs, local = url_to_fs(path)
    if not fs.isfile(local):
        return False, False
    return True, SLURMEnvironment.job_id() is None or fs.read_text(local) != text


def checkpoint_without_config(flags: list[str]) -> Path | None:
    """Return the path in ``--ckpt_path``, or None if it is no path, or if a config or a model is given too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flags_of_one in (("-c", "--config"), ("--model", "--model.class_path"), ("--ckpt_path",)):
        parser.add_argument(*flags_of_one)
    try:
        known, _ = parser.parse_known_args(flags)
    except argparse.ArgumentError:  # a flag without a value, which the parser of the command reports
        return None
    local = known.ckpt_path and "://" not in known.ckpt_path and known.ckpt_path.partition(":")[0] not in KEYWORDS
    return Path(known.ckpt_path) if local and not (known.config or known.model) else None


def config_of_run(checkpoint: Path) -> str:
    """Return the path of ``config.yaml`` in the folder of the run that wrote the checkpoint."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"there is no checkpoint {str(checkpoint)!r}.")
    config = checkpoint.absolute().parent.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"the config of the run that wrote {checkpoint} is missing: give it by --config.")
    return str(config)
