"""The command ``lcw``: Lightning's command line with the three callbacks as top-level groups."""

import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import shtab
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lcw_lightning.callbacks.constraint import ConstraintCallback
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.callbacks.shift_monitor import ShiftMonitor

__all__ = ["LCWCLI", "main"]

GROUPS = {"constraint": ConstraintCallback, "minibatch_init": MinibatchInitCallback, "shift_monitor": ShiftMonitor}


class LCWParser(LightningArgumentParser):
    """A parser whose errors are one message: the usage with its 200 options would bury it."""

    @override
    def print_usage(self, *args: object, **kwargs: object) -> None:
        pass


class LCWCLI(LightningCLI):
    """Any LightningModule, data module and Trainer, with LCW's callbacks in front of the user's own."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for group, callback in GROUPS.items():
            parser.add_class_arguments(callback, group)
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the final weights after fit.")
        for option in ("--model", "--data"):
            # jsonargparse would walk every module that any module can hold, without end.
            parser._option_string_actions[option].complete = shtab.FILE  # type: ignore[attr-defined]

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
        arguments = self.config[self.config.subcommand]
        if arguments.ckpt_path is None and self.config.subcommand != "fit":
            rank_zero_warn(f"lcw {self.config.subcommand} without --ckpt_path runs the weights as they are drawn.")
        if arguments.ckpt_path and arguments.ckpt_path not in ("best", "last", "hpc"):
            check_checkpoint(arguments.ckpt_path, weights_only=arguments.weights_only is not False)

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


def check_checkpoint(path: str, weights_only: bool = True) -> None:
    """Read the checkpoint before anything else happens.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no whole and safe checkpoint.
    """
    if "://" in path or Path(path).is_dir():  # remote or sharded: its strategy reads it
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path!r}; runs keep theirs in <log folder>/checkpoints.")
    try:
        checkpoint = torch.load(path, map_location="meta", weights_only=weights_only)
        whole = "state_dict" in checkpoint and "pytorch-lightning_version" in checkpoint
    except PermissionError:
        raise
    except Exception:  # torch.load raises whatever the bytes lead it to
        whole = False
    if not whole:
        raise ValueError(
            f"{path!r} is no checkpoint of Lightning that can be read: it is truncated, another kind of file, or holds "
            "more than tensors and plain values, which is never run. Take another checkpoint of the run."
        )


def main(args: ArgsType = None) -> None:
    """Run ``lcw``. An error ends in one message on stderr and exit status 1 or 2.

    ``JSONARGPARSE_DEBUG=true`` in the environment shows the traceback instead.
    """
    set_parsing_settings(add_print_completion_argument=True)
    torch.set_flush_denormal(True)  # on CPUs, vanishing gradients become denormal, which slows a step thirtyfold
    # Lightning's own call of a deprecated torch function, which would greet every user.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
    try:
        LCWCLI(
            save_config_callback=SaveConfigBesideLogs,
            parser_class=LCWParser,
            seed_everything_default=0,
            parser_kwargs={"version": version("lcw_lightning")},
            auto_configure_optimizers=False,
            args=args,
        )
    except Exception as error:
        if os.environ.get("JSONARGPARSE_DEBUG") == "true":
            raise
        sys.exit(f"lcw: error: {error or type(error).__name__}\n(JSONARGPARSE_DEBUG=true shows where)")
