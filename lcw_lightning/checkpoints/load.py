"""Load a checkpoint of a constrained run, safely and bit for bit, into a module that is constrained or plain.

Plain checkpoints load into constrained modules by :mod:`lcw_lightning.constraints.plain_weights`.
"""

import copy
import os
import tempfile
import textwrap
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lcw_lightning.checkpoints.all_or_nothing import describe_misfit
from lcw_lightning.checkpoints.read import read_checkpoint
from lcw_lightning.checkpoints.record import Record, parametrization_key, read_record
from lcw_lightning.constraints.kinds import PARAMETRIZATIONS, computes_as_its_kind
from lcw_lightning.constraints.plain_weights import right_inverse
from lcw_lightning.weights.freshness import mark_initialized
from lcw_lightning.weights.weight_ref import named_weights

__all__ = [
    "load_from_checkpoint",
]

_Module = TypeVar("_Module", bound=LightningModule)


def load_from_checkpoint(
    module_class: type[_Module],
    path: str | os.PathLike[str],
    map_location: Any = None,
    weights_only: bool = True,
    **kwargs: Any,
) -> _Module:
    """Load a LightningModule with its weights and constraints, bit for bit as they were saved.

    It replaces ``module_class.load_from_checkpoint``, which fails on constrained weights unless the class itself
    restores them. Plain checkpoints load too. :func:`~lcw_lightning.fold` turns the result into a plain module, and
    :class:`~lcw_lightning.MinibatchInitCallback` does not rescale its weights.

    Args:
        module_class: The class that was trained, which needs no code for constraints.
        path: The checkpoint, a local path or a URL.
        map_location: The device of the tensors, as in :func:`torch.load`.
        weights_only: If False, the whole file is unpickled, which may run code that it contains.
        kwargs: Arguments of the class, which override its saved hyperparameters, and Lightning's ``strict`` and
            ``hparams_file``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No class of LightningModule; the file is not a complete and safe checkpoint, has another basis, or
            belongs to another model.

    Example:
        >>> import tempfile
        >>> from lcw_lightning import constrain
        >>> from lcw_lightning.checkpoints.record import save_record
        >>> from torch import nn
        >>> class Project(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, 2)
        >>> project = Project()
        >>> names = constrain(project)
        >>> checkpoint = {"state_dict": project.state_dict(), "pytorch-lightning_version": "2.6.4"}
        >>> save_record(project, checkpoint)  # as ConstraintCallback does in every checkpoint of a Trainer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(checkpoint, f"{folder}/run.ckpt")
        ...     loaded = load_from_checkpoint(Project, f"{folder}/run.ckpt")
        >>> torch.equal(loaded.layer.weight, project.layer.weight)
        True
    """
    # By name: pytorch_lightning has a class of its own.
    is_class = isinstance(module_class, type)
    if not is_class or all(base.__name__ != LightningModule.__name__ for base in module_class.__mro__):
        raise ValueError(f"load_from_checkpoint takes a class of LightningModule, then a path; got {module_class!r}.")
    checkpoint = read_checkpoint(path, map_location, weights_only)
    record = read_record(checkpoint)
    plain = _plain_state_dict(record, checkpoint["state_dict"])
    try:
        with _file_for_class(path, record, {**checkpoint, "state_dict": plain}) as file:
            module = _make(module_class, file, weights_only, map_location=map_location, **kwargs)
    except RuntimeError as error:
        if not (problems := describe_misfit(error)):
            raise
        raise ValueError(
            f"{os.fspath(path)!r} does not fit this {module_class.__name__}: {problems} Give the arguments of its run. "
            "Layers that setup() builds, and constraints of runs without ConstraintCallback, must be there once the "
            "module is made."
        ) from error
    record.restore(module)
    _restore_exactly(module, record, checkpoint["state_dict"], plain)
    mark_initialized(module)
    return module


def _make(module_class: type[_Module], path: str | Path, weights_only: bool, **kwargs: Any) -> _Module:
    try:
        return _load_by_class(module_class, path, weights_only, **kwargs)
    except (ArgumentError, TypeError) as error:
        if isinstance(error, TypeError) and "__init__() missing" not in str(error):
            raise
        raise ValueError(
            f"the checkpoint's hyperparameters do not make a {module_class.__name__} "
            f"({textwrap.shorten(str(error), 300, placeholder=' ...')}); give the arguments of its run by name."
        ) from error


def _load_by_class(module_class: type[_Module], path: str | Path, weights_only: bool, **kwargs: Any) -> _Module:
    try:
        return module_class.load_from_checkpoint(path, weights_only=weights_only, **kwargs)
    except TypeError as error:
        if "weights_only" not in str(error):
            raise
        # If the class overrides load_from_checkpoint, that may not accept this argument, or may pass its own to
        # Lightning. The file is as safe as weights_only asks, since it was read with that setting before.
        return module_class.load_from_checkpoint(path, **kwargs)


@contextmanager
def _file_for_class(
    path: str | os.PathLike[str], record: Record, plain_checkpoint: Mapping[str, Any]
) -> Iterator[str | Path]:
    """Yield the path of a file with the plain checkpoint, which the class may read twice."""
    as_given = Path if isinstance(path, Path) else os.fspath
    if not record.parametrized:
        yield as_given(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        torch.save(plain_checkpoint, temporary)
        yield as_given(temporary)


@torch.no_grad()
def _plain_state_dict(record: Record, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with the weights in place of their trained coordinates, as far as those were saved."""
    plain: dict[str, Tensor] = copy.copy(state_dict)  # copy.copy keeps the versions of modules
    for name, saved in record.parametrized.items():
        key = f"{parametrization_key(name)}."
        held = {held.removeprefix(key): plain.pop(held) for held in list(plain) if held.startswith(key)}
        if not held:
            continue  # modules may save no frozen weights
        weight = torch.empty(saved.weight_shape, device="meta")
        constraint = PARAMETRIZATIONS[saved.kind](weight, saved.transposed_groups).eval()
        originals, buffers = right_inverse(constraint, weight), dict(constraint.named_buffers())
        wanted = {**originals, **{f"0.{buffer}": value for buffer, value in buffers.items()}}
        if not all(isinstance(value, Tensor) for value in held.values()) or (
            {part: value.shape for part, value in held.items()} != {part: value.shape for part, value in wanted.items()}
        ):
            shape = list(saved.weight_shape)
            raise ValueError(f"the checkpoint is broken: its coordinates of {name!r} give no weight of shape {shape}.")
        constraint.load_state_dict({buffer: held[f"0.{buffer}"] for buffer in buffers}, assign=True)
        plain[name] = constraint(*(held[original] for original in originals))
    return plain


@torch.no_grad()
def _restore_exactly(
    model: nn.Module, record: Record, state_dict: Mapping[str, Tensor], plain: Mapping[str, Tensor]
) -> None:
    """Copy the trained coordinates exactly, since loading through the plain weight has rounded them."""
    weights = named_weights(model, remove_duplicate=False)
    for name in record.parametrized:
        if name not in plain or not computes_as_its_kind(weights[name]):
            continue
        held: Any = weights[name].layer.parametrizations[weights[name].name]  # type: ignore[index]
        originals = dict(held.named_parameters(recurse=False))
        like = next(iter(originals.values()))
        rounded = right_inverse(held[0], plain[name].to(like))
        # If it differs, the module's on_load_checkpoint has changed the weight on purpose.
        if all(torch.allclose(originals[key], rounded[key], rtol=0, atol=0, equal_nan=True) for key in originals):
            for key, value in {**originals, **dict(held.named_buffers())}.items():
                value.copy_(state_dict[f"{parametrization_key(name)}.{key}"])
