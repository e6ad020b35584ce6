"""The command ``lcw``: Lightning's command line with the three callbacks as top-level groups."""

import os
import pickle
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

from lcw_lightning.callbacks.constraint import ConstraintCallback
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.callbacks.shift_monitor import ShiftMonitor

__all__ = ["LCWCLI", "main"]

GROUPS = {"constraint": ConstraintCallback, "minibatch_init": MinibatchInitCallback, "shift_monitor": ShiftMonitor}


class LCWCLI(LightningCLI):
    """Any LightningModule, data module and Trainer, with LCW's callbacks in front of the user's own."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for group, callback in GROUPS.items():
            parser.add_class_arguments(callback, group)
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the final weights after fit.")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    @override
    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        ours = [self._get(self.config_init, group) for group in GROUPS]
        users = self._get(self.config_init, "trainer").callbacks or []
        # Ours first: weight averaging copies what the constraint has made.
        callbacks = [*ours, *(users if isinstance(users, list) else [users])]
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    @override
    def _parse_ckpt_path(self) -> None:
        # Lightning's own version lets the checkpoint's hyperparameters override explicit flags, without a word.
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and path not in ("best", "last", "hpc", "registry"):
            check_checkpoint(path)

    def after_fit(self) -> None:
        """Test the weights that training ended with, if ``--test_after_fit`` says so."""
        if self._get(self.config, "test_after_fit"):
            self.trainer.test(self.model, datamodule=self.datamodule)

    def after_predict(self) -> None:
        """Write this rank's predictions where the run's other files are."""
        path = Path(self.trainer.log_dir or ".") / f"predictions_rank{self.trainer.global_rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.trainer.predict_loop.predictions, path)
        sys.stdout.write(f"predictions, a list with one entry a batch: {path}\n")


class SaveConfigBesideLogs(SaveConfigCallback):
    """Write the run's ``config.yaml`` into its log folder; without a logger there is none, and nothing is written."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


def check_checkpoint(path: str) -> None:
    """Read the checkpoint before anything else happens.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no whole and safe checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path!r}; runs keep theirs in <log folder>/checkpoints.")
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"the checkpoint {path!r} cannot be read: it is truncated, no checkpoint, or holds more than plain data. "
            f"Take an older one of the run. ({str(error).splitlines()[0]})"
        ) from error


def main(args: ArgsType = None) -> None:
    """Run ``lcw``. A mistake ends in one message on stderr and exit status 1 or 2.

    ``JSONARGPARSE_DEBUG=1`` in the environment shows the traceback instead.
    """
    set_parsing_settings(add_print_completion_argument=True)
    torch.set_flush_denormal(True)  # on CPUs, vanishing gradients become denormal, which slows a step thirtyfold
    try:
        LCWCLI(
            LightningModule,
            LightningDataModule,
            save_config_callback=SaveConfigBesideLogs,
            seed_everything_default=0,
            parser_kwargs={"version": version("lcw_lightning")},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
        )
    except (ValueError, OSError, MisconfigurationException) as error:
        if os.environ.get("JSONARGPARSE_DEBUG"):
            raise
        sys.exit(f"lcw: error: {error}")
