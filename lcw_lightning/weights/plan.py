"""Plan what is done to the weights of a model: which are taken, and which are left out for what reason."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lcw_lightning.weights.copies import copies_of, copy_layer_
from lcw_lightning.weights.layer_types import is_embedding_or_norm, layer_type_of
from lcw_lightning.weights.restoring import at_rest
from lcw_lightning.weights.selection import listed, select_names
from lcw_lightning.weights.ties import parameter_places, tied_to
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = ["EXCLUDED", "Plan", "PlannedWeight", "general_obstacle", "plan_weights"]

EXCLUDED = "excluded"
"""The obstacle of a weight that the user excludes."""


class PlannedWeight(NamedTuple):
    """A row of a plan.

    Attributes:
        name: ``layer.weight``.
        layer: Name of the layer's class.
        shape: Of the weight; empty while it is lazy.
        ref: The weight; None in a layer of unknown type.
        obstacle: Why the weight is left out; None if it is taken.
        numbers: How many numbers of the model's matrices it holds; 0 for a weight that is tied to another row's.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    ref: WeightRef | None
    obstacle: str | None
    numbers: int


@dataclass(frozen=True)
class Plan:
    """Which weights of a model are taken, and why the others are left out; it prints as a table.

    A matrix is a parameter with at least two dimensions above 1 that belongs to neither an embedding nor a norm. A
    weight that is tied to an embedding counts as the embedding's.

    Attributes:
        action: What is done to the weights that are taken, for messages, such as the kind of a constraint.
        rows: One for each weight, and one for each matrix in a layer of unknown type.
        include: The patterns that were asked for.
        copies: By the name of each weight of a momentum teacher, that of the student's weight, with which it is taken.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).requires_grad_(False))
        >>> print(plan_weights(network, "lcw"))
        weight    layer   shape   plan
        0.weight  Linear  (3, 4)  lcw
        1.weight  Linear  (2, 3)  frozen
        lcw: 1 of 2 weights, 66.7 % of the numbers in the model's matrices; left out: '1.weight' (frozen)
    """

    action: str
    rows: Sequence[PlannedWeight]
    include: Sequence[str] = ("*",)
    copies: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, WeightRef]:
        """The weights that are taken, by name."""
        return {row.name: row.ref for row in self.rows if row.obstacle is None and row.ref is not None}

    @property
    def left_out(self) -> dict[str, str]:
        """Why each of the other weights is left out, but for those that ``exclude`` names."""
        return {row.name: row.obstacle for row in self.rows if row.obstacle not in (None, EXCLUDED)}

    @property
    def share(self) -> float:
        """Part of the numbers in the model's matrices that is taken; 1 for a model without matrices."""
        total = sum(row.numbers for row in self.rows)
        return sum(row.numbers for row in self.rows if row.obstacle is None) / total if total else 1.0

    @property
    def summary(self) -> str:
        """What is taken, and what is left out for what reasons, in one line."""
        rest = f"; left out: {self._obstacles()}" if self.left_out else ""
        if self.copies:
            rest += f"; frozen, but taken as copies of trained ones: {listed(self.copies)} (exclude leaves them alone)"
        return (
            f"{self.action}: {len(self.weights)} of {len(self.rows)} weights, "
            f"{100 * self.share:.3g} % of the numbers in the model's matrices{rest}"
        )

    def check(self) -> None:
        """Raise if a weight that ``include`` names cannot be taken, or a pattern of it takes nothing.

        Raises:
            ValueError: With all obstacles.
        """
        for pattern in self.include:
            matching = [r for r in self.rows if r.obstacle != EXCLUDED and fnmatchcase(r.name, pattern)]
            if matching and all(row.obstacle for row in matching):
                raise ValueError(f"{self.action}: the pattern {pattern!r} takes no weight: {self._obstacles()}.")

    def renew_copies_(self) -> None:
        """Give momentum teachers the values that their students have now."""
        for copy, original in self.copies.items():
            copy_layer_(self.weights[original].layer, self.weights[copy].layer)

    def __str__(self) -> str:
        table = [("weight", "layer", "shape", "plan")]
        table += [(row.name, row.layer, str(row.shape), row.obstacle or self.action) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        return "\n".join([*(line.rstrip() for line in lines), self.summary])

    def _obstacles(self) -> str:
        groups: dict[str, dict[str, list[str]]] = {}
        for row in self.rows:
            if obstacle := self.left_out.get(row.name):
                groups.setdefault(obstacle, {}).setdefault(row.layer, []).append(row.name)
        return ", ".join(
            f"{', '.join(_counted(layer, names) for layer, names in by_layer.items())} ({obstacle})"
            for obstacle, by_layer in groups.items()
        )


def _counted(layer: str, names: Sequence[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{len(names)} {layer}"


def general_obstacle(ref: WeightRef) -> str | None:
    """Return that a weight is complex, frozen or has no shape yet, if so, as an obstacle for :func:`plan_weights`."""
    if ref.is_complex:
        return "complex numbers"
    if any(map(is_lazy, ref.parameters)):
        return "lazy; run one forward first"
    is_frozen = ref.parameters and not any(parameter.requires_grad for parameter in ref.parameters)
    return "frozen" if is_frozen else None


@torch.no_grad()
def plan_weights(
    model: nn.Module,
    action: str,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    obstacle: Callable[[WeightRef], str | None] = general_obstacle,
) -> Plan:
    """Plan what is done to the weights that match a glob of ``include`` and none of ``exclude``.

    Left out are tied weights, matrices in layers of unknown type, and those for which ``obstacle`` gives a reason. The
    frozen weights of a momentum teacher are taken with those of its student, unless ``exclude`` names them.

    Args:
        model: Any module; it is not changed.
        action: What is done, for messages, such as the kind of a constraint.
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names.
        obstacle: Returns why a weight must be left out, or None.

    Raises:
        ValueError: As :func:`~lcw_lightning.weights.selection.select_names` says.
    """
    known = named_weights(model)
    unknown = dict(_unknown_matrices(model, known))
    chosen = select_names([*known, *unknown], include, exclude, type(model).__name__)
    places, counted, rows = parameter_places(model), set[int](), []
    reasons = {n: (tied_to(r, places) or obstacle(r)) if n in chosen else EXCLUDED for n, r in known.items()}
    copies = copies_of(model, [name for name, reason in reasons.items() if reason is None], exclude)
    for name, ref in known.items():
        reason = None if name in copies else reasons[name]
        shape = _shape(ref)
        of_embedding = any(is_embedding_or_norm(module) for p in ref.parameters for _, module in places[id(p)])
        is_counted = not of_embedding and counted.isdisjoint(map(id, ref.parameters))
        counted.update(map(id, ref.parameters))
        rows.append(PlannedWeight(name, _class_name(ref.layer), shape, ref, reason, is_counted * _numbers(shape)))
    for name, (module, parameter) in unknown.items():
        reason = _why_unknown(module) if name in chosen else EXCLUDED
        rows.append(PlannedWeight(name, _class_name(module), tuple(parameter.shape), None, reason, parameter.numel()))
    return Plan(action, rows, include, copies)


def _unknown_matrices(
    model: nn.Module, known: Mapping[str, WeightRef]
) -> Iterator[tuple[str, tuple[nn.Module, nn.Parameter]]]:
    seen = {id(parameter) for ref in known.values() for parameter in ref.parameters}
    for prefix, module in model.named_modules():
        if is_embedding_or_norm(module) or isinstance(module, parametrize.ParametrizationList):
            continue
        for name, parameter in module._parameters.items():
            path = f"{prefix}.{name}" if prefix else name
            if parameter is None or is_lazy(parameter) or id(parameter) in seen or path.rpartition("_")[0] in known:
                continue  # a hook computes 'weight' from 'weight_orig'
            if _numbers(parameter.shape):
                seen.add(id(parameter))
                yield path, (module, parameter)


def _shape(ref: WeightRef) -> tuple[int, ...]:
    with at_rest([ref.layer]):
        return () if is_lazy(ref.value) else tuple(ref.value.shape)


def _numbers(shape: Sequence[int]) -> int:
    """Return how many numbers a matrix of this shape has; 0 for what is no matrix."""
    return math.prod(shape) if sum(size > 1 for size in shape) > 1 else 0


def _why_unknown(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "in a module of torch.jit, which cannot be changed"
    known = layer_type_of(module)
    return "unknown layer type; see register_layer_type" if known is None else "not the weight of its layer type"


def _class_name(module: nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__
