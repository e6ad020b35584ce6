"""Plan which weights of a model a constraint takes, before anything is altered."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from lcw_lightning.constraints.kinds import PARAMETRIZATIONS, Kind, Method, check_constraint, kind_of
from lcw_lightning.constraints.projection import is_projected
from lcw_lightning.constraints.registration import obstacle_to
from lcw_lightning.weights.plan import Plan, general_obstacle, plan_weights
from lcw_lightning.weights.settings import check_model
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["plan_constraints"]


def plan_constraints(
    model: nn.Module,
    kind: Kind = "lcw",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    method: Method = "parametrize",
) -> Plan:
    """Return which weights of ``model`` :func:`~lcw_lightning.constrain` would constrain, and why it leaves others out.

    The plan prints as a table. ``plan.weights`` are the weights to constrain, those that are already constrained in
    this way among them, ``plan.left_out`` the reasons for the others, and ``plan.share`` is the part of the numbers in
    the model's matrices that is constrained. A weight is left out that

    - is frozen now, even if it thaws later, or lazy. (A momentum teacher, a frozen copy of one trained submodule, is
      constrained as its original is.)
    - has fan_in 1, under ``lcw`` and ``cwn``: zero is its only zero-sum value;
    - is tied to another;
    - is zero, under ``sn``;
    - has complex numbers;
    - is parametrized, pruned, sharded, or held by another constraint already;
    - belongs to a layer of unknown type: see :func:`~lcw_lightning.register_layer_type`.

    Args:
        model: Any module; it is not changed.
        kind: As in :func:`~lcw_lightning.constrain`.
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names, of weights to leave alone.
        method: As in :func:`~lcw_lightning.constrain`.

    Raises:
        ValueError: The model is no module, unknown kind or method, ``project`` for a kind that it cannot hold, or a
            pattern that matches no weight.

    Example:
        >>> print(plan_constraints(nn.Sequential(nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 2)), exclude=["2.*"]))
        weight    layer   shape   plan
        1.weight  Linear  (3, 8)  lcw
        2.weight  Linear  (2, 3)  excluded
        lcw: 1 of 2 weights, 80 % of the numbers in the model's matrices
    """
    check_model(model)
    check_constraint("constraint", kind, method, include, exclude)
    return plan_weights(model, kind, include, exclude, partial(_obstacle, kind, method == "project"))


def _obstacle(kind: Kind, project: bool, ref: WeightRef) -> str | None:
    held = kind_of(ref)
    if held != "none":
        is_same = held == kind and is_projected(ref) == project
        return None if is_same else f"under {held} already; see fold"
    if kind == "none":
        return "kind none"
    obstacle = general_obstacle(ref)
    if obstacle == "frozen":
        return "frozen, and plain if it thaws"
    return obstacle or obstacle_to(ref, PARAMETRIZATIONS[kind], may_be_sharded=project)
