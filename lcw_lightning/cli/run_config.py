"""Write ``config.yaml`` beside the logs of a run, and find the one that belongs to a checkpoint."""

import argparse
from pathlib import Path

from jsonargparse import get_loader
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

__all__ = ["SaveConfigBesideLogs", "KEYWORDS", "checkpoint_without_config", "config_of_run"]


KEYWORDS = ("best", "last", "hpc", "registry")
"""What Lightning takes in place of a checkpoint's path."""


class SaveConfigBesideLogs(SaveConfigCallback):
    """Write the run's ``config.yaml`` into its log folder. Without a logger there is no folder, and nothing is written.

    A file that is there stays: it is no obstacle to evaluation, nor to a run of the same config, such as a job that its
    cluster starts again.

    The file omits the checkpoint that the run resumed from, since it would override a ``--ckpt_path`` before
    ``--config``.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers:
            self.config = self.config.clone()
            for name in ("ckpt_path", "weights_only"):
                self.config.pop(name, None)
            try:
                super().setup(trainer, pl_module, stage)
            except RuntimeError as error:
                if "to NOT exist" not in str(error):
                    raise
                if not self._may_stay(trainer):
                    raise ValueError(
                        f"the run's folder {trainer.log_dir} holds another run, with its {self.config_filename}: name "
                        "another, such as --trainer.logger.init_args.version, or move that one away."
                    ) from error

    def _may_stay(self, trainer: Trainer) -> bool:
        """Return whether the file that is there is that of the run that is evaluated, or of this very run."""
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        is_same = False
        if trainer.is_global_zero:
            there = Path(str(trainer.log_dir)) / self.config_filename
            load = get_loader("yaml")
            ours = load(self.parser.dump(self.config, skip_none=False))
            is_same = there.is_file() and load(there.read_text()) == ours
        return trainer.strategy.broadcast(is_same)


def checkpoint_without_config(flags: list[str]) -> Path | None:
    """Return the path in ``--ckpt_path``, or None if it is no path, or if a config or a model is given too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flags_of_one in (("-c", "--config"), ("--model", "--model.class_path"), ("--ckpt_path",)):
        parser.add_argument(*flags_of_one)
    known, _ = parser.parse_known_args(flags)
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
