"""The record of constraints that a checkpoint carries: which weights, of which kind, in which basis."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lcw_lightning.checkpoints.hyperparameters import fold_hyperparameters
from lcw_lightning.compat import module_versions
from lcw_lightning.constraints.constrain import constrain_weights
from lcw_lightning.constraints.fold import remove_constraints_
from lcw_lightning.constraints.kinds import PARAMETRIZATIONS, computes_as_its_kind, constraint_of, kind_of
from lcw_lightning.constraints.projection import is_projected
from lcw_lightning.theory.zero_sum import BASIS_VERSION
from lcw_lightning.weights.selection import listed
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = ["ParametrizedWeight", "Record", "impose_record", "parametrization_key", "read_record", "save_record"]

_KEY = "lcw_lightning"


@dataclass(frozen=True)
class ParametrizedWeight:
    """The data for parametrizing a weight again: its kind of constraint, its shape and the layout of its units."""

    kind: str
    weight_shape: tuple[int, ...]
    transposed_groups: int


@dataclass(frozen=True)
class Record:
    """The names of the weights that were constrained when a checkpoint was saved; none for a plain checkpoint."""

    parametrized: Mapping[str, ParametrizedWeight]
    projected: tuple[str, ...]

    def check(self, model: nn.Module) -> None:
        """Raise unless the record and ``model`` constrain the weights that they share in the same way.

        Raises:
            ValueError: The kinds differ, so the trained parameters have another meaning; or the record has coordinates
                of a weight that ``model`` constrains by projection.
        """
        weights = named_weights(model, remove_duplicate=False)
        here = {name: kind_of(weights[name]) for name in self.parametrized if name in weights}
        differing = [name for name, kind in here.items() if kind not in ("none", self.parametrized[name].kind)]
        if differing:
            kind, other = self.parametrized[differing[0]].kind, here[differing[0]]
            raise ValueError(
                f"the checkpoint's run constrained {listed(differing)} with kind={kind!r}, this one with {other!r}; "
                f"take {kind!r}, or start from its plain weights: fold(load_from_checkpoint(...))."
            )
        if projected := [name for name in here if is_projected(weights[name])]:
            raise ValueError(
                f"the checkpoint's run constrained {listed(projected)} with method='parametrize', this one with "
                "'project'; take 'parametrize', or start from its plain weights: fold(load_from_checkpoint(...))."
            )

    def restore(self, model: nn.Module) -> None:
        """Constrain the weights that were constrained when the checkpoint was saved and are still plain in ``model``.

        Raises:
            ValueError: The record constrains a weight that the model does not have, or that has another shape, has
                another kind of constraint or cannot be constrained. The model is not changed then.
        """
        self.check(model)
        weights = named_weights(model, remove_duplicate=False)
        for name in (*self.parametrized, *self.projected):
            if name not in weights:
                raise ValueError(
                    f"the checkpoint constrains {name!r}, which {type(model).__name__} does not have: it was written "
                    "by another model, or setup() builds that layer later."
                )
        for name, saved in self.parametrized.items():
            if (shape := _weight_shape(weights[name])) != saved.weight_shape:
                raise ValueError(
                    f"the checkpoint does not fit {type(model).__name__}: its {name!r} has the shape "
                    f"{list(saved.weight_shape)}, that of the model {list(shape)}."
                )
        kinds = {name: saved.kind for name, saved in self.parametrized.items()} | dict.fromkeys(self.projected, "lcw")
        new = {name: weights[name] for name in kinds if kind_of(weights[name]) == "none"}
        constrain_weights(model, new, kinds, self.projected)


def impose_record(record: Record, model: nn.Module) -> list[str]:
    """Constrain exactly the weights that a record names, and return the names of those made plain for that.

    Constraints of other classes than this package's own stay: they are up to the module.

    Raises:
        ValueError: As :meth:`Record.restore` says.
    """
    weights = named_weights(model, remove_duplicate=False)
    ours = {name: kind_of(ref) for name, ref in weights.items() if is_projected(ref) or computes_as_its_kind(ref)}
    wanted = {name: saved.kind for name, saved in record.parametrized.items()} | dict.fromkeys(record.projected, "lcw")
    removed = [
        name
        for name, kind in ours.items()
        if wanted.get(name) != kind or is_projected(weights[name]) != (name in record.projected)
    ]
    remove_constraints_(model, keep=set(weights) - set(removed))
    record.restore(model)
    return removed


def save_record(model: nn.Module, checkpoint: MutableMapping[str, Any]) -> None:
    """Write into the checkpoint which weights are constrained, in plain values that ``weights_only=True`` loads.

    Constrained networks among its hyperparameters become plain copies.
    """
    weights = named_weights(model, remove_duplicate=False)
    constraints = {
        name: {
            "kind": kind_of(ref),
            "weight_shape": list(constraint.weight_shape),
            "transposed_groups": constraint.transposed_groups,
        }
        for name, ref in weights.items()
        if (constraint := constraint_of(ref)) and computes_as_its_kind(ref)  # other classes are up to the module
    }
    record: dict[str, Any] = {"basis_version": BASIS_VERSION, "constraints": constraints}
    if projected := [name for name, ref in weights.items() if is_projected(ref)]:
        record["projected"] = projected
    checkpoint[_KEY] = record
    fold_hyperparameters(checkpoint)


def read_record(checkpoint: Mapping[str, Any]) -> Record:
    """Return the record of constraints in a checkpoint; it is empty for a plain checkpoint.

    Raises:
        ValueError: The record is not of the form that :func:`save_record` writes, has a kind of constraint that this
            version does not know, or has coordinates in another basis.
    """
    content = checkpoint.get(_KEY, {})
    constraints: Any = content.get("constraints", {}) if isinstance(content, dict) else None
    projected: Any = content.get("projected", []) if isinstance(content, dict) else None
    is_whole = isinstance(constraints, dict) and all(map(_is_entry, constraints, constraints.values()))
    if not (is_whole and isinstance(projected, list) and all(isinstance(name, str) for name in projected)):
        raise ValueError(
            f"the checkpoint's record of constraints, {_KEY!r}, is broken; take another checkpoint of the run."
        )
    record = Record(
        {
            name: ParametrizedWeight(saved["kind"], tuple(saved["weight_shape"]), saved["transposed_groups"])
            for name, saved in constraints.items()
        },
        tuple(projected),
    )
    for name, saved in record.parametrized.items():
        if saved.kind not in PARAMETRIZATIONS:
            raise ValueError(
                f"the checkpoint's {name!r} has the kind {saved.kind!r}, which this lcw_lightning does not know."
            )
    _check_basis(record, checkpoint)
    return record


def parametrization_key(name: str) -> str:
    """Return the key of a constrained weight's parametrization in state dicts.

    Example:
        >>> parametrization_key("head.weight")
        'head.parametrizations.weight'
    """
    layer, dot, weight = name.rpartition(".")
    return f"{layer}{dot}parametrizations.{weight}"


def _is_entry(name: object, saved: object) -> bool:
    if not (isinstance(name, str) and isinstance(saved, dict) and isinstance(saved.get("kind"), str)):
        return False
    shape, groups = saved.get("weight_shape"), saved.get("transposed_groups")
    if not (isinstance(shape, list) and all(isinstance(size, int) for size in shape) and isinstance(groups, int)):
        return False
    return len(shape) > 1 and groups >= 0 and shape[0] % (groups or 1) == 0


def _check_basis(record: Record, checkpoint: Mapping[str, Any]) -> None:
    """Raise if the record or the metadata of the state dict has a basis version that this package cannot read."""
    modules = module_versions(checkpoint.get("state_dict"))
    for name in [name for name, saved in record.parametrized.items() if saved.kind == "lcw"]:
        for version in (
            checkpoint[_KEY].get("basis_version", BASIS_VERSION),
            modules.get(f"{parametrization_key(name)}.0", {}).get("version", BASIS_VERSION),
        ):
            if version != BASIS_VERSION:
                raise ValueError(
                    f"the checkpoint's constrained weights are in basis version {version}, but this lcw_lightning "
                    f"reads version {BASIS_VERSION}; load it with the version of lcw_lightning that wrote it."
                )


def _weight_shape(ref: WeightRef) -> tuple[int, ...]:
    constraint = constraint_of(ref)
    return constraint.weight_shape if constraint else tuple(ref.value.shape)
