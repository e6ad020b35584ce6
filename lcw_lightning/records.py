"""The record of constraints that a checkpoint carries: which weights, of which kind, in which basis."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import nn

from lcw_lightning.constraints import VERBS, check_constrainable, constrained_weights, kind_of
from lcw_lightning.layers import named_weights
from lcw_lightning.parametrizations import ZeroSum
from lcw_lightning.theory.zero_sum import BASIS_VERSION

__all__ = ["check_basis", "parametrization_key", "restore_constraints", "save_constraints", "saved_constraints"]

_KEY = "lcw_lightning"


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
    """Return kind and layout of every weight that was constrained when the checkpoint was saved, by name.

    Raises:
        ValueError: The record is not of the form that :func:`save_constraints` writes.
    """
    try:
        constraints: dict[str, dict[str, Any]] = checkpoint.get(_KEY, {}).get("constraints", {})
        for saved in constraints.values():
            ZeroSum(tuple(map(int, saved["weight_shape"])), int(saved["transposed_groups"]))
            str(saved["kind"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's record of constraints, {_KEY!r}, is broken or of a first draft.") from error
    return constraints


def check_basis(checkpoint: Mapping[str, Any]) -> None:
    """Raise a ValueError if the checkpoint's coordinates are in a basis that this version does not read."""
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
        ValueError: The checkpoint's basis is not the one of this version, or it constrains a weight that the model
            does not have, or in a way that this version does not know. The model is then as it was.
    """
    check_basis(checkpoint)
    weights = named_weights(model)
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
        if list(weights[name].value.shape) != list(saved["weight_shape"]):
            raise ValueError(
                f"the checkpoint does not fit {type(model).__name__}: its {name!r} has the shape "
                f"{saved['weight_shape']}, that of the model {list(weights[name].value.shape)}."
            )
    new = {name: weights[name] for name in constraints if kind_of(weights[name]) == "none"}
    check_constrainable(model, new)
    for name, ref in new.items():
        VERBS[constraints[name]["kind"]](ref.layer, ref.name)
