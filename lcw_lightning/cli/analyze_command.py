"""Run one config several times: with several kinds of constraint and with several draws of the weights."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from rich.progress import Progress

from lcw_lightning.analysis.preflight import Preflight
from lcw_lightning.analysis.report import Report
from lcw_lightning.callbacks.overrides import Overrides
from lcw_lightning.cli.command_trainer import CommandTrainer

__all__ = ["check_redraws", "prepare_one_step", "reports_of"]


ONE_STEP: dict[str, Any] = {
    "strategy": "auto",
    "devices": 1,
    "num_nodes": 1,
    "callbacks": None,
    "logger": False,
    "profiler": None,
    "accumulate_grad_batches": 1,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "fast_dev_run": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Settings of a trainer that runs one training step on one device and writes no files."""


def prepare_one_step(trainer: MutableMapping[str, Any]) -> None:
    """Let the settings of a trainer be those for one step, and keep Lightning's advice about runs and greetings away.

    This comes before any object is made: a logger may start a run, and a strategy's library may be missing here.
    """
    for name, value in ONE_STEP.items():
        trainer[name] = value
    warnings.simplefilter("ignore", PossibleUserWarning)
    for package in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{package}").setLevel(logging.ERROR)


def check_redraws(kinds: Sequence[str], draws: int, seed: int | bool, ckpt_path: str | None) -> None:
    """Raise if the weights cannot be drawn as --compare and --draws need.

    Raises:
        ValueError: The weights come from a checkpoint, or there is no seed.
    """
    for asked, flag, action in (
        (kinds, "--compare", "draws the same weights for each kind"),
        (draws > 1, "--draws", "draws weights of one seed after the other"),
    ):
        if asked and ckpt_path is not None:
            raise ValueError(f"{flag} draws the weights anew, so it takes no --ckpt_path.")
        if asked and seed is False:
            raise ValueError(f"{flag} {action}, so it needs a seed: --seed_everything=0.")


def reports_of(
    make: Callable[[str, int], tuple[CommandTrainer, dict[str, Any]]], kinds: Sequence[str], draws: int
) -> dict[str, Report]:
    """Return the report of each kind's first draw; with several draws it has a pre-flight check.

    Args:
        make: Returns a trainer and the arguments of its analyze for a kind of constraint and a draw's number.
        kinds: Kinds of constraint; ``""`` stands for the kind in the config.
        draws: Number of weight draws for each kind. All draws use the same data.
    """
    with Progress(console=Console(stderr=True), transient=True, disable=draws == 1) as progress:
        return {
            kind: _report(partial(make, kind), draws, partial(progress.track, description=f"{kind} draws".strip()))
            for kind in kinds
        }


def _report(
    make: Callable[[int], tuple[CommandTrainer, dict[str, Any]]],
    draws: int,
    track: Callable[[Iterable[int]], Iterable[int]],
) -> Report:
    trainer, arguments = make(0)
    if draws == 1:
        report, _ = trainer.analyze(**arguments)
        return report
    with Overrides() as overrides:
        reused = ReusedData(arguments["datamodule"], overrides)
        reused.give_to(trainer, arguments)
        report, profile = trainer.analyze(**arguments)
        layers = profile.hidden_layers(report.statistics)
        rows = [profile.rows(layers)]
        for draw in track(range(1, draws)):
            trainer, arguments = make(draw)
            reused.give_to(trainer, arguments)
            # The profile is dropped, since it references the whole network.
            rows.append(trainer.analyze(**arguments)[1].rows(layers))
    return replace(report, preflight=Preflight.of(rows, layers))


class ReusedData:
    """Data that several runs share: the first run prepares and reads the data, and all runs get its first batch.

    Args:
        datamodule: The data module of the first run.
        overrides: Hold the methods that share the data; after their removal every run reads its own.
    """

    def __init__(self, datamodule: LightningDataModule | None, overrides: Overrides) -> None:
        self.datamodule = datamodule
        self._overrides = overrides
        self._found: dict[str, Any] = {}
        for name in ("prepare_data", "setup", "train_dataloader"):
            if datamodule is not None and is_overridden(name, datamodule):
                overrides.add(datamodule, name, partial(self._once, name))

    def give_to(self, trainer: Trainer, arguments: dict[str, Any]) -> None:
        """Give a run that is about to start this data module, and the first run's batch on its device."""
        arguments["datamodule"] = self.datamodule
        self._overrides.add(trainer.strategy, "batch_to_device", self._first_batch)

    def _once(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name not in self._found:
            self._found[name] = method(*args, **kwargs)
        return self._found[name]

    def _first_batch(self, to_device: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return copy.deepcopy(self._once("batch", to_device, *args, **kwargs))  # a step may change it in place
