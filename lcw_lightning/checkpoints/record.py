"""The record of constraints that a checkpoint carries: which weights, of which kind, in which basis."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, cast

from torch import nn

from lcw_lightning.checkpoints.hyperparameters import fold_hyperparameters
from lcw_lightning.constraints.constrain import constrain_weights
from lcw_lightning.constraints.kinds import PARAMETRIZATIONS, computes_as_its_kind, constraint_of, kind_of
from lcw_lightning.constraints.projection import is_projected
from lcw_lightning.theory.zero_sum import BASIS_VERSION
from lcw_lightning.weights.selection import listed
from lcw_lightning.weights.weight_ref import named_weights

__all__ = [
    "check_basis",
    "check_kinds",
    "parametrization_key",
    "restore_constraints",
    "save_constraints",
    "saved_constraints",
    "saved_projections",
]

_KEY = "lcw_lightning"


def save_constraints(model: nn.Module, checkpoint: MutableMapping[str, Any]) -> None:
    """Write into the checkpoint which weights are constrained, in plain values that ``weights_only=True`` loads.

    Constrained networks among its hyperparameters become plain copies.
    """
    constraints = {
        name: {
            "kind": kind_of(ref),
            "weight_shape": list(constraint.weight_shape),
            "transposed_groups": constraint.transposed_groups,
        }
        for name, ref in named_weights(model, remove_duplicate=False).items()
        if (constraint := constraint_of(ref)) and computes_as_its_kind(ref)  # others are their own module's to register
    }
    record: dict[str, Any] = {"basis_version": BASIS_VERSION, "constraints": constraints}
    if projected := [name for name, ref in named_weights(model, remove_duplicate=False).items() if is_projected(ref)]:
        record["projected"] = projected
    checkpoint[_KEY] = record
    fold_hyperparameters(checkpoint)


def saved_constraints(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return kind and layout of every weight that was parametrized when the checkpoint was saved, by name.

    Raises:
        ValueError: The record is not of the form that :func:`save_constraints` writes, or has a kind of constraint
            that this version does not know.
    """
    record = checkpoint.get(_KEY, {})
    constraints: Any = record.get("constraints", {}) if isinstance(record, dict) else None
    if not (isinstance(constraints, dict) and all(map(_is_entry, constraints, constraints.values()))):
        raise _broken()
    for name, saved in constraints.items():
        if saved["kind"] not in PARAMETRIZATIONS:
            raise ValueError(
                f"the checkpoint's {name!r} has the kind {saved['kind']!r}, which this lcw_lightning does not know."
            )
    return cast("dict[str, dict[str, Any]]", constraints)


def saved_projections(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the names of the weights that were held zero-sum by projection when the checkpoint was saved.

    Raises:
        ValueError: The record is not of the form that :func:`save_constraints` writes.
    """
    record = checkpoint.get(_KEY, {})
    names: Any = record.get("projected", []) if isinstance(record, dict) else None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _broken()
    return cast("list[str]", names)


def _broken() -> ValueError:
    return ValueError(
        f"the checkpoint's record of constraints, {_KEY!r}, is broken; take another checkpoint of the run."
    )


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


def check_kinds(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Look whether weights that ``model`` and the checkpoint both constrain are of the same kind in both.

    Raises:
        ValueError: One is not: what one kind trains means nothing to another, nor coordinates to a projected weight.
    """
    saved, weights = saved_constraints(checkpoint), named_weights(model, remove_duplicate=False)
    here = {name: kind_of(weights[name]) for name in saved if name in weights}
    differing = [name for name, kind in here.items() if kind not in ("none", saved[name]["kind"])]
    if differing:
        kind, other = saved[differing[0]]["kind"], here[differing[0]]
        raise ValueError(
            f"the checkpoint's run constrained {listed(differing)} with kind={kind!r}, this one with {other!r}; take "
            f"{kind!r}, or start from its plain weights: fold(load_from_checkpoint(...))."
        )
    if projected := [name for name in here if is_projected(weights[name])]:
        raise ValueError(
            f"the checkpoint's run constrained {listed(projected)} with method='parametrize', this one with 'project'; "
            "take 'parametrize', or start from its plain weights: fold(load_from_checkpoint(...))."
        )


def _basis_versions(checkpoint: Mapping[str, Any]) -> Iterator[int]:
    """Yield the version in the record, and those that torch keeps beside the state dict."""
    in_a_basis = [name for name, saved in saved_constraints(checkpoint).items() if saved["kind"] == "lcw"]
    modules = getattr(checkpoint.get("state_dict"), "_metadata", {})
    for name in in_a_basis:
        yield checkpoint[_KEY].get("basis_version", BASIS_VERSION)
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
            does not have, has in another shape, has under another kind of constraint or cannot have constrained, or
            in a way that this version does not know. The model is then as it was.
    """
    check_basis(checkpoint)
    check_kinds(model, checkpoint)
    weights = named_weights(model, remove_duplicate=False)
    constraints, projected = saved_constraints(checkpoint), saved_projections(checkpoint)
    for name in (*constraints, *projected):
        if name not in weights:
            raise ValueError(
                f"the checkpoint constrains {name!r}, which {type(model).__name__} does not have: it was written by "
                "another model, or setup() builds that layer later."
            )
    for name, saved in constraints.items():
        shaped = constraint_of(weights[name])
        if (shape := list(shaped.weight_shape if shaped else weights[name].value.shape)) != saved["weight_shape"]:
            raise ValueError(
                f"the checkpoint does not fit {type(model).__name__}: its {name!r} has the shape "
                f"{saved['weight_shape']}, that of the model {shape}."
            )
    kinds = {name: saved["kind"] for name, saved in constraints.items()} | dict.fromkeys(projected, "lcw")
    new = {name: weights[name] for name in kinds if kind_of(weights[name]) == "none"}
    constrain_weights(model, new, kinds, projected)
