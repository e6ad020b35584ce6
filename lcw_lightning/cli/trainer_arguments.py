"""What a run adds to the Trainer: the callbacks of lcw itself, a logger with the run's name, whole checkpoints."""

import os

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO

from lcw_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from lcw_lightning.cli.hyperparameters import HyperparameterLog, hyperparameters
from lcw_lightning.cli.predictions import PredictionsFile

__all__ = ["callbacks_of_run", "named_logger", "save_atomically"]


def callbacks_of_run(config: Namespace) -> list[Callback]:
    """Return the log of the run's settings, and for ``predict --output`` what writes that file."""
    settings = HyperparameterLog(hyperparameters(config.as_dict()))
    return [settings, PredictionsFile(config.output)] if config.get("output") else [settings]


def named_logger(config: Namespace) -> dict[str, TensorBoardLogger]:
    """Return the Trainer's argument ``logger`` for a named run: Lightning's default logger, with its folder so named.

    Args:
        config: Of the run. Without a ``run_name`` nothing is returned.

    Raises:
        ValueError: The Trainer is given a logger of their own.
    """
    name, trainer = config.run_name, config.trainer
    if not name:
        return {}
    if trainer.logger not in (None, True):
        raise ValueError(
            f"--run_name names the folder of the default logger, got {name!r} and --trainer.logger too; name the run "
            "in the settings of that logger."
        )
    return {"logger": TensorBoardLogger(trainer.default_root_dir or os.getcwd(), "lightning_logs", version=name)}


def save_atomically(trainer: Trainer) -> None:
    """Let the trainer write its checkpoints whole or not at all, unless the user gave it a plugin of their own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
