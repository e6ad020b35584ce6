"""The record of constraints that a checkpoint carries: which weights, of which kind, in which basis."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, cast

from torch import nn

from lcw_lightning.constraints import VERBS, check_constrainable, kind_of
from lcw_lightning.layers import named_weights
from lcw_lightning.theory.zero_sum import BASIS_VERSION

__all__ = ["check_basis", "parametrization_key", "restore_constraints", "save_constraints", "saved_constraints"]

_KEY = "lcw_lightning"


def save_constraints(model: nn.Module, checkpoint: MutableMapping[str, Any]) -> None:
    """Write into the checkpoint which weights are constrained, in plain values that ``weights_only=True`` loads."""
    constraints = {
        name: {"kind": kind, "weight_shape": list(ref.value.shape), "transposed_groups": ref.transposed_groups}
        for name, ref in named_weights(model, remove_duplicate=False).items()
        if (kind := kind_of(ref)) != "none"
    }
    checkpoint[_KEY] = {"basis_version": BASIS_VERSION, "constraints": constraints}


def saved_constraints(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return kind and layout of every weight that was constrained when the checkpoint was saved, by name.

    Raises:
        ValueError: The record is not of the form that :func:`save_constraints` writes.
    """
    record = checkpoint.get(_KEY, {})
    constraints: Any = record.get("constraints", {}) if isinstance(record, dict) else None
    if not (isinstance(constraints, dict) and all(map(_is_entry, constraints, constraints.values()))):
        raise ValueError(
            f"the checkpoint's record of constraints, {_KEY!r}, is broken; take another checkpoint of the run."
        )
    return cast("dict[str, dict[str, Any]]", constraints)


def _is_entry(name: object, saved: object) -> bool:
    if not (isinstance(name, str) and isinstance(saved, dict) and isinstance(saved.get("kind"), str)):
        return False
    shape, groups = saved.get("weight_shape"), saved.get("transposed_groups")
    if not (isinstance(shape, list) and all(isinstance(size, int) for size in shape) and isinstance(groups, int)):
        return False
    return len(shape) > 1 and groups >= 0 and shape[0] % (groups or 1) == 0


def check_basis(checkpoint: Mapping[str, Any]) -> None:
    """Look whether this version reads the checkpoint's coordinates.

    Raises:
        ValueError: They are in another basis, or the record is broken.
    """
    for version in _basis_versions(checkpoint):
        if version != BASIS_VERSION:
            raise ValueError(
                f"the checkpoint's constrained weights are in basis version {version}, but this lcw_lightning reads "
                f"version {BASIS_VERSION}; load it with the version of lcw_lightning that wrote it."
            )


def _basis_versions(checkpoint: Mapping[str, Any]) -> Iterator[int]:
    """Yield the version in the record, and those that torch keeps beside the state dict."""
    constraints = saved_constraints(checkpoint)
    yield checkpoint.get(_KEY, {}).get("basis_version", BASIS_VERSION)
    modules = getattr(checkpoint.get("state_dict"), "_metadata", {})
    for name in constraints:
        yield modules.get(f"{parametrization_key(name)}.0", {}).get("version", BASIS_VERSION)


def parametrization_key(name: str) -> str:
    """Return the key of a constrained weight's parametrization in state dicts.

    Example:
        >>> parametrization_key("head.weight")
        'head.parametrizations.weight'
    """
    layer, dot, weight = name.rpartition(".")
    return f"{layer}{dot}parametrizations.{weight}"


def restore_constraints(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Constrain what the checkpoint says was constrained when it was saved, where ``model`` has it still plain.

    Raises:
        ValueError: The checkpoint's record is broken or in another basis, or it constrains a weight that the model
            does not have, has in another shape or cannot have constrained, or in a way that this version does not
            know. The model is then as it was.
    """
    check_basis(checkpoint)
    weights = named_weights(model, remove_duplicate=False)
    constraints = saved_constraints(checkpoint)
    for name, saved in constraints.items():
        if name not in weights:
            raise ValueError(
                f"the checkpoint constrains {name!r}, which {type(model).__name__} does not have: it was written by "
                "another model, or setup() builds that layer later."
            )
        if saved["kind"] not in VERBS:
            raise ValueError(
                f"the checkpoint's {name!r} has the kind {saved['kind']!r}, which this lcw_lightning does not know."
            )
        if (shape := list(weights[name].value.shape)) != saved["weight_shape"]:
            raise ValueError(
                f"the checkpoint does not fit {type(model).__name__}: its {name!r} has the shape "
                f"{saved['weight_shape']}, that of the model {shape}."
            )
    new = {name: weights[name] for name in constraints if kind_of(weights[name]) == "none"}
    check_constrainable(model, new)
    for name, ref in new.items():
        if kind_of(ref) == "none":  # still, as a module may stand in several places
            VERBS[constraints[name]["kind"]](ref.layer, ref.name)
