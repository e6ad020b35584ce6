"""The ``config.yaml`` that lies beside the logs of a run: how it gets there, and how a checkpoint's is found."""

import argparse
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

__all__ = ["SaveConfigBesideLogs", "checkpoint_without_config", "config_of_run"]


class SaveConfigBesideLogs(SaveConfigCallback):
    """Write the run's ``config.yaml`` into its log folder; without a logger there is none, and nothing is written.

    It does not say which checkpoint the run went on from: a ``--ckpt_path`` before ``--config`` would be overridden.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers:
            self.config = self.config.clone()
            for name in ("ckpt_path", "weights_only"):
                self.config.pop(name, None)
            super().setup(trainer, pl_module, stage)


def checkpoint_without_config(flags: list[str]) -> Path | None:
    """Return what ``--ckpt_path`` names, unless a config or a model is named too."""
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
        raise FileNotFoundError(f"missing is the config of the run that wrote {checkpoint}: give it by --config.")
    return str(config)
