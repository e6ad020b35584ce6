"""The command ``lcw``: Lightning's command line with the callbacks as top-level option groups."""

import inspect
import os
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import shtab
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

import lcw_lightning
from lcw_lightning.analysis.report import Format, render, save
from lcw_lightning.callbacks.constraint import ConstraintCallback
from lcw_lightning.callbacks.edge_of_chaos_init import EdgeOfChaosInitCallback
from lcw_lightning.callbacks.loss_watch import LossWatch
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.callbacks.shift_monitor import ShiftMonitor
from lcw_lightning.checkpoints.export import check_exportable
from lcw_lightning.checkpoints.read import read_checkpoint
from lcw_lightning.cli.analyze_command import check_redraws, prepare_one_step, reports_of
from lcw_lightning.cli.command_trainer import CommandTrainer, check_test_step
from lcw_lightning.cli.ending import ends_in_one_message, says_how_to_go_on, without_advertisements
from lcw_lightning.cli.first_step_report import FirstStepReport
from lcw_lightning.cli.help import DESCRIPTION
from lcw_lightning.cli.parser import LCWParser, describe_commands
from lcw_lightning.cli.predictions import check_suffix
from lcw_lightning.cli.requeue import attach_requeue
from lcw_lightning.cli.run_config import KEYWORDS, SaveConfigBesideLogs, checkpoint_without_config, config_of_run
from lcw_lightning.cli.trainer_arguments import callbacks_of_run, named_logger, save_atomically
from lcw_lightning.cli.yaml_keys import refuse_repeated_keys
from lcw_lightning.compat import option, subcommand_parser

__all__ = ["LCWCLI", "main"]

GROUPS = {
    "constraint": ConstraintCallback,
    "minibatch_init": MinibatchInitCallback,
    "edge_of_chaos_init": EdgeOfChaosInitCallback,
    "shift_monitor": ShiftMonitor,
    "loss_watch": LossWatch,
}

AS_BUILT = "as_built"
INITIALIZATIONS = {"minibatch_init": "granularity", "edge_of_chaos_init": "weights"}
"""The setting that turns each initialization off."""

# Our own subcommands, which are methods of CommandTrainer, and their arguments that are not flags.
COMMANDS = {"export": {"model", "datamodule"}, "analyze": {"model", "datamodule"}}


class LCWCLI(LightningCLI):
    """Any LightningModule, data module and Trainer, with LCW's callbacks in front of the user's own."""

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), **COMMANDS}

    @override
    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        describe_commands(self)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for group, callback in GROUPS.items():
            parser.add_class_arguments(callback, group)
        parser.set_defaults({"edge_of_chaos_init.weights": "none"})
        parser.add_argument("--run_name", type=str | None, help="Folder of the run's logs in lightning_logs.")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the final weights after fit.")
        for flag in ("--model", "--data", "--trainer.strategy"):
            # Here jsonargparse would recurse without end, through nested modules or device meshes.
            option(parser, flag).complete = shtab.FILE  # type: ignore[attr-defined]

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        given = sys.argv[1:] if args is None else args
        command, *flags = given if isinstance(given, list) and given else [""]
        if command in self.subcommands() and (checkpoint := checkpoint_without_config(flags)):
            subcommand_parser(self, command).default_config_files = [config_of_run(checkpoint)]
        super().parse_arguments(parser, args)
        if self.config.subcommand == "export":
            check_exportable(self.config.export.output)
        if self.config.subcommand == "predict" and self.config.predict.output:
            check_suffix(self.config.predict.output)

    @override
    def before_instantiate_classes(self) -> None:
        if self.subcommand == "export":
            # The run's accelerator may be missing on this machine, and its logger would start a run.
            self.config[self.subcommand].pop("trainer")
        elif self.subcommand == "analyze":
            self.save_config_callback = None
            prepare_one_step(self.config.analyze.trainer)

    @override
    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        if self.subcommand == "export":
            return CommandTrainer(devices=1, logger=False, enable_checkpointing=False)
        ours = [self._get(self.config_init, group) for group in GROUPS]
        if self.subcommand == "analyze":
            *before, monitor, _ = ours  # a loss that is not finite is part of the report
            # DummyLogger also serves modules that write to their logger's experiment.
            callbacks = [*before, FirstStepReport(monitor.include, monitor.exclude)]
            return super().instantiate_trainer(callbacks=callbacks, logger=DummyLogger())
        users = self._get(self.config_init, "trainer").callbacks or []
        config = self.config[self.subcommand]
        # Our callbacks come first, because weight averaging must copy the constrained module.
        callbacks = [*ours, *callbacks_of_run(config), *(users if isinstance(users, list) else [users])]
        trainer = super().instantiate_trainer(callbacks=callbacks, **named_logger(config), **kwargs)
        save_atomically(trainer)
        attach_requeue(trainer, subcommand_parser(self, str(self.subcommand)), config)
        return trainer

    def fit(self, **kwargs: Any) -> None:
        """Fit, and say how to go on if a signal ends the run."""
        if self._get(self.config, "test_after_fit"):
            check_test_step(self.model)
        with says_how_to_go_on(self.trainer):
            self.trainer.fit(**kwargs)

    def analyze(self, output: str, figures: Format, ckpt_path: str | None, **kwargs: Any) -> None:
        """Report on the first training step, for one or several kinds of constraint and draws of the weights."""
        settings, seed = self.config.analyze, self.config.analyze.seed_everything
        check_redraws(settings.compare, settings.draws, seed, ckpt_path)
        chosen = {group: settings[group][setting] for group, setting in INITIALIZATIONS.items()}

        def make(kind: str, draw: int) -> tuple[CommandTrainer, dict[str, Any]]:
            if kind:
                settings.constraint.kind = "none" if kind == AS_BUILT else kind
            for group, setting in INITIALIZATIONS.items():
                setattr(settings[group], setting, "none" if kind == AS_BUILT else chosen[group])
            if kind or draw:
                settings.seed_everything = seed + draw
                self._set_seed()
                self.instantiate_classes()
            made = {"model": self.model, "datamodule": self.datamodule}
            return cast(CommandTrainer, self.trainer), {**kwargs, **made, "output": output, "ckpt_path": ckpt_path}

        reports = reports_of(make, settings.compare or [""], settings.draws)
        sys.stdout.write(render(reports))
        sys.stdout.write(f"written to {save(reports, output, figures)}\n")

    @override
    def _parse_ckpt_path(self) -> None:
        # Lightning's own version silently lets the checkpoint's hyperparameters override explicit flags.
        arguments = self.config[self.config.subcommand]
        if arguments.ckpt_path is None and self.config.subcommand not in ("fit", "analyze"):
            rank_zero_warn(f"lcw {self.config.subcommand} without --ckpt_path uses freshly drawn weights.")
        path = arguments.ckpt_path or "last"
        if arguments.weights_only is None:
            arguments.weights_only = True  # Lightning would unpickle downloaded files
        elsewhere = path.partition(":")[0] in KEYWORDS or "://" in path or Path(path).is_dir()  # Lightning finds it
        if not elsewhere:
            read_checkpoint(path, map_location="meta", weights_only=arguments.weights_only)

    def after_fit(self) -> None:
        """Test the final weights if ``--test_after_fit`` is set."""
        if self._get(self.config, "test_after_fit"):
            self.trainer.test(self.model, datamodule=self.datamodule)

    def after_predict(self) -> None:
        """Say where the predictions are; without --output this rank's are written into the log folder of the run."""
        if output := self.config.predict.output:
            sys.stdout.write(f"predictions, a row for each sample: {output}\n")
            return
        path = Path(self.trainer.log_dir or ".") / f"predictions_rank{self.trainer.global_rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.trainer.predict_loop.predictions, path)
        sys.stdout.write(f"predictions, a list with one entry per batch: {path}\n")


def main(args: ArgsType = None) -> None:
    """Run ``lcw``. An error ends in one message on stderr and exit status 1 or 2, a signal in the signal's status.

    ``JSONARGPARSE_DEBUG=true`` in the environment shows the traceback instead.
    """
    sys.path.insert(0, os.getcwd())  # as python -m does; a script has its own folder first in the path
    inspect.getmembers(lcw_lightning)  # imports all classes, so that jsonargparse finds them by name: --data=Digits
    set_parsing_settings(add_print_completion_argument=True)
    torch.set_flush_denormal(True)  # on CPUs, vanishing gradients become denormal, which slows a step thirtyfold
    # Lightning itself calls a deprecated torch function, and every user would see the warning.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
    with ends_in_one_message(), without_advertisements():
        refuse_repeated_keys()
        LCWCLI(
            trainer_class=CommandTrainer,
            save_config_callback=SaveConfigBesideLogs,
            parser_class=LCWParser,
            seed_everything_default=0,
            parser_kwargs={"version": lcw_lightning.__version__, "description": DESCRIPTION, "allow_abbrev": False},
            auto_configure_optimizers=False,
            args=args,
        )
