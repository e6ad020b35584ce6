"""Constraints in checkpoints: constrained and plain ones load into each other."""

import io
import math
import os
import textwrap
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar

import fsspec
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lcw_lightning.constraints import VERBS, constrained_weights, kind_of
from lcw_lightning.layers import named_weights
from lcw_lightning.loading import all_or_nothing
from lcw_lightning.parametrizations import ZeroSum
from lcw_lightning.theory.zero_sum import BASIS_VERSION

__all__ = [
    "check_basis",
    "load_from_checkpoint",
    "read_checkpoint",
    "restore_constraints",
    "save_constraints",
    "saved_constraints",
]

_KEY = "lcw_lightning"
_Module = TypeVar("_Module", bound=LightningModule)


def load_from_checkpoint(
    module_class: type[_Module], path: str | os.PathLike[str], map_location: Any = None, **kwargs: Any
) -> _Module:
    """Load a LightningModule with its weights and constraints, bit for bit as they were saved.

    Does what ``module_class.load_from_checkpoint`` does, which fails on constrained weights unless the class itself
    restores them; plain checkpoints load too. :func:`~lcw_lightning.fold` makes a plain module of the result. Nothing
    in the file is executed.

    Args:
        module_class: The class that was trained, which need not know of constraints.
        path: The checkpoint, a local path or a URL.
        map_location: Where tensors go, as in :func:`torch.load`.
        kwargs: Arguments of the class; they override its saved hyperparameters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no whole and safe checkpoint, is in another basis, or belongs to another model.

    Example:
        >>> import tempfile
        >>> from lcw_lightning import constrain
        >>> class Project(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, 2)
        >>> project = Project()
        >>> names = constrain(project)
        >>> checkpoint = {"state_dict": project.state_dict(), "pytorch-lightning_version": "2.6.4"}
        >>> save_constraints(project, checkpoint)  # as ConstraintCallback does in every checkpoint of a Trainer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(checkpoint, f"{folder}/run.ckpt")
        ...     loaded = load_from_checkpoint(Project, f"{folder}/run.ckpt")
        >>> torch.equal(loaded.layer.weight, project.layer.weight)
        True
    """
    checkpoint = read_checkpoint(path, map_location)
    check_basis(checkpoint)
    buffer = io.BytesIO()
    torch.save({**checkpoint, "state_dict": _plain_state_dict(checkpoint)}, buffer)
    buffer.seek(0)
    try:
        module = module_class.load_from_checkpoint(buffer, map_location=map_location, weights_only=True, **kwargs)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        problems = textwrap.shorten(str(error), 500, placeholder=" ...")
        raise ValueError(f"{os.fspath(path)!r} does not fit this {module_class.__name__}: {problems}") from error
    restore_constraints(module, checkpoint)
    with all_or_nothing(module):  # once more, since constraining the plain weights has rounded them
        module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    return module


def read_checkpoint(
    path: str | os.PathLike[str], map_location: Any = None, weights_only: bool = True
) -> dict[str, Any]:
    """Return the content of a Lightning checkpoint. Unless ``weights_only`` is off, nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no whole and safe checkpoint, or a sharded one.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise ValueError(
            f"{path!r} is a folder: a sharded checkpoint, which only the strategy that wrote it reads. Resume it there "
            "with save_distributed_checkpoint=False, which writes one file."
        )
    if "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint {path!r}; runs keep theirs in <log folder>/checkpoints.")
    with fsspec.open(path, "rb") as file:
        try:
            checkpoint: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=weights_only)
            whole = "state_dict" in checkpoint and "pytorch-lightning_version" in checkpoint
        except Exception:  # torch.load raises whatever the bytes lead it to
            whole = False
    if not whole:
        raise ValueError(
            f"{path!r} is no checkpoint of Lightning that can be read: it is truncated, another kind of file, or holds "
            "more than tensors and plain values, which is never run. Take another checkpoint of the run."
        )
    return checkpoint


def save_constraints(model: nn.Module, checkpoint: MutableMapping[str, Any]) -> None:
    """Write into the checkpoint which weights are constrained, in plain values that ``weights_only=True`` loads."""
    weights = named_weights(model)
    constraints = {
        name: {
            "kind": kind,
            "weight_shape": list(weights[name].value.shape),
            "transposed_groups": weights[name].transposed_groups,
        }
        for name, kind in constrained_weights(model).items()
    }
    checkpoint[_KEY] = {"basis_version": BASIS_VERSION, "constraints": constraints}


def saved_constraints(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return kind and layout of every weight that was constrained when the checkpoint was saved, by name."""
    constraints: dict[str, dict[str, Any]] = checkpoint.get(_KEY, {}).get("constraints", {})
    return constraints


def check_basis(checkpoint: Mapping[str, Any]) -> None:
    """Raise a ValueError if the checkpoint's coordinates are in a basis that this version does not read."""
    basis_version = checkpoint.get(_KEY, {}).get("basis_version", BASIS_VERSION)
    if basis_version != BASIS_VERSION:
        raise ValueError(
            f"the checkpoint's constrained weights are in basis version {basis_version}, but this lcw_lightning reads "
            f"version {BASIS_VERSION}; load it with the version of lcw_lightning that wrote it."
        )


def restore_constraints(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Constrain what the checkpoint says was constrained when it was saved, where ``model`` has it still plain.

    Raises:
        ValueError: The checkpoint's basis is not the one of this version, or it constrains a weight that the model
            does not have, or in a way that this version does not know. The model is then as it was.
    """
    check_basis(checkpoint)
    weights = named_weights(model)
    constraints = saved_constraints(checkpoint)
    for name, saved in constraints.items():
        if name not in weights:
            raise ValueError(
                f"the checkpoint constrains {name!r}, which {type(model).__name__} does not have: "
                "it was written by another model."
            )
        if saved["kind"] not in VERBS:
            raise ValueError(
                f"the checkpoint's {name!r} has the kind {saved['kind']!r}, which this lcw_lightning does not know."
            )
    for name, saved in constraints.items():
        if kind_of(weights[name]) == "none":
            VERBS[saved["kind"]](weights[name].layer, weights[name].name)


def _plain_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict with each constrained weight in place of its coordinates."""
    plain = dict(checkpoint["state_dict"])
    for name, saved in saved_constraints(checkpoint).items():
        prefix, _, weight = name.rpartition(".")
        key = ".".join(filter(None, (prefix, "parametrizations", weight, "original")))
        shape, coordinates = saved["weight_shape"], plain.pop(key, None)
        if coordinates is None or coordinates.numel() + len(coordinates) != math.prod(shape):
            raise ValueError(f"the checkpoint is broken: its {key!r} is missing or does not make a weight of {shape}.")
        plain[name] = ZeroSum(tuple(shape), saved["transposed_groups"])(coordinates)
    return plain
