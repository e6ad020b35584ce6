"""Evaluation changes no network: it takes the constraints of the checkpoint, or the module as it is."""

import os
import warnings

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from lcw_lightning.checkpoints.read import read_checkpoint
from lcw_lightning.checkpoints.record import Record, impose_record, read_record
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.constraints.kinds import kind_of
from lcw_lightning.weights.plan import Plan
from lcw_lightning.weights.selection import listed

__all__ = ["follow_checkpoint", "record_of", "warn_of_constraints", "warn_of_plain_weights"]


def follow_checkpoint(record: Record, pl_module: LightningModule) -> None:
    """Constrain exactly the weights that a checkpoint's record names, and say which were made plain for that.

    Raises:
        ValueError: The record does not fit the module.
    """
    if plain := impose_record(record, pl_module):
        rank_zero_info(
            f"The constraint of {listed(plain)} was taken off, since the checkpoint holds plain weights there."
        )


def record_of(path: str | os.PathLike[str]) -> Record:
    """Return the record of a checkpoint, which may be the folder of a sharded one."""
    metadata = os.path.join(path, "meta.pt")  # where Lightning keeps all that is no tensor of the model
    if os.path.isfile(metadata):
        return read_record(torch.load(metadata, map_location="cpu", weights_only=True))
    return read_record(read_checkpoint(path, map_location="cpu"))


def warn_of_constraints(pl_module: LightningModule) -> None:
    """Warn that a module is fitted under constraints, although the settings ask for none.

    Warns:
        UserWarning: It is constrained.
    """
    if constrained := constrained_weights(pl_module):
        warnings.warn(
            f"{listed(constrained)} stay constrained although kind is none; for a plain run take a fresh module or "
            "fold(module).",
            stacklevel=2,
        )


def warn_of_plain_weights(plan: Plan) -> None:
    """Warn that weights that a run would constrain are evaluated as they are.

    Warns:
        UserWarning: There are such weights.
    """
    if plain := [name for name, ref in plan.weights.items() if kind_of(ref) == "none"]:
        warnings.warn(
            f"{listed(plain)} are plain and are evaluated as they are: ConstraintCallback(kind={plan.action!r}) "
            "constrains them when the module is fitted, or loads a checkpoint in which they are constrained.",
            stacklevel=2,
        )
