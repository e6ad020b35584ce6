"""Write ``config.yaml`` beside the logs of a run, and find the one that belongs to a checkpoint."""

import argparse
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

__all__ = ["SaveConfigBesideLogs", "checkpoint_without_config", "config_of_run"]


class SaveConfigBesideLogs(SaveConfigCallback):
    """Write the run's ``config.yaml`` into its log folder. Without a logger there is no folder, and nothing is written.

    The file omits the checkpoint that the run resumed from, since it would override a ``--ckpt_path`` before
    ``--config``.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers:
            self.config = self.config.clone()
            for name in ("ckpt_path", "weights_only"):
                self.config.pop(name, None)
            super().setup(trainer, pl_module, stage)


def checkpoint_without_config(flags: list[str]) -> Path | None:
    """Return the path in ``--ckpt_path``, or None if a config or a model is given too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flags_of_one in (("-c", "--config"), ("--model", "--model.class_path"), ("--ckpt_path",)):
        parser.add_argument(*flags_of_one)
    known, _ = parser.parse_known_args(flags)
    local = known.ckpt_path and "://" not in known.ckpt_path
    return Path(known.ckpt_path) if local and not (known.config or known.model) else None


def config_of_run(checkpoint: Path) -> str:
    """Return the path of ``config.yaml`` in the folder of the run that wrote the checkpoint."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"there is no checkpoint {str(checkpoint)!r}.")
    config = checkpoint.absolute().parent.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"the config of the run that wrote {checkpoint} is missing: give it by --config.")
    return str(config)
