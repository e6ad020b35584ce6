"""Constrain the weights of whole models."""

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from lcw_lightning.constraints.kinds import PARAMETRIZATIONS, Kind, Method, kind_of
from lcw_lightning.constraints.plan import plan_constraints
from lcw_lightning.constraints.projection import hold_zero_sum_, is_projected
from lcw_lightning.constraints.registration import obstacle_to, register_constraint
from lcw_lightning.weights.plan import Plan
from lcw_lightning.weights.selection import listed
from lcw_lightning.weights.ties import parameter_places, tied_to
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = ["constrain", "constrain_as_planned", "constrain_weights", "constrained_weights"]


def constrain(
    model: nn.Module,
    kind: Kind = "lcw",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    method: Method = "parametrize",
) -> list[str]:
    """Constrain the weights of ``model`` in place, starting from their present values, and return their names.

    Draw weights before you constrain them: under ``parametrize`` each reading of ``layer.weight`` computes a new
    tensor, so that a later draw into it, as by :mod:`torch.nn.init`, or a write to its ``.data`` is lost. An
    assignment, ``layer.weight = w``, is not.

    Copies and pickles of the model stay constrained. With ``method="project"`` an ``lcw`` weight stays an ordinary
    parameter: its gradient is centred per unit as it accumulates, so before clipping and before DDP reduces, and the
    weight itself after each step of a :class:`torch.optim.Optimizer`, after loading and before saving a state dict, and
    before a call of its layer if it was written to or the mode has changed since the last. The first such call in a
    process puts a hook on all its optimizers, which after each step centres the projected weights among those
    that were trained. Under SGD (momentum, weight decay, clipping by norm) weights take the path that they take under
    ``parametrize``, up to rounding. Under Adam and its like the algorithm is another one, projected Adam: moments of
    the centred gradient, weights centred after the step; the same holds for clipping by value. Names, state dicts,
    compiled and exported networks are those of the plain network. :func:`torch.autograd.grad` and
    :func:`torch.func.grad` give the gradient uncentred. If another parameter takes the weight's place, by assignment,
    conversion or ``fully_shard``, it is an ordinary one until a second call, which takes sharded ones, or until a state
    dict is loaded. Take a folded network for :func:`torch.jit.script`, which cannot compile the hook.

    Args:
        model: Any module. The weights of Linear, Bilinear, convolutions (grouped and transposed too), recurrent layers,
            MultiheadAttention and :func:`registered <lcw_lightning.register_layer_type>` types are constrained;
            embeddings and norms are left alone.
        kind: ``lcw`` (see :func:`~lcw_lightning.linearly_constrained`), ``cwn`` (centered weight normalization, see
            :func:`~lcw_lightning.centered_weight_norm`), ``wn`` and ``sn`` (torch's own
            :func:`~torch.nn.utils.parametrizations.weight_norm` by units, and
            :func:`~torch.nn.utils.parametrizations.spectral_norm` of the matrix of units), or ``none`` for nothing.
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names, of weights to leave alone.
        method: ``parametrize``, or ``project`` to hold ``lcw`` without a parametrization, at nearly no cost.

    Returns:
        The names of the weights under this constraint among those selected. A second call changes nothing.

    Raises:
        ValueError: The model is no module, unknown kind or method, ``project`` for a kind that it cannot hold, a
            pattern that matches no weight, or one under which every weight must be left out. The model is left
            unchanged.

    Warns:
        UserWarning: Weights were left out, for the reasons that :func:`~lcw_lightning.plan_constraints` gives; or
            frozen weights were taken, as those of a momentum teacher.

    Example:
        >>> network = nn.Sequential(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 10))
        >>> constrain(network, exclude=["2.*"])
        ['0.weight']
    """
    plan = plan_constraints(model, kind, include, exclude, method)
    if kind == "none":
        return []
    constrain_as_planned(model, plan, kind, method)
    if plan.left_out or plan.copies:
        warnings.warn(plan.summary, stacklevel=2)
    return list(plan.weights)


def constrain_as_planned(model: nn.Module, plan: Plan, kind: Kind, method: Method) -> None:
    """Constrain the weights of a plan, and centre again those that projection holds already.

    Raises:
        ValueError: A pattern takes no weight, or a weight is under another constraint. The model is left unchanged.
    """
    held = {name: kind_of(ref) for name, ref in named_weights(model).items() if name in plan.left_out}
    if other := [name for name, held_kind in held.items() if held_kind != "none"]:
        raise ValueError(
            f"{kind} by {method}: {listed(other)} are under {held[other[0]]} already; take a fresh module or "
            "fold(module), or name them in exclude."
        )
    plan.check()
    new = {name: ref for name, ref in plan.weights.items() if kind_of(ref) == "none"}
    constrain_weights(model, new, dict.fromkeys(new, kind), new if method == "project" else ())
    for ref in plan.weights.values():
        if is_projected(ref):
            hold_zero_sum_(ref)


def constrained_weights(model: nn.Module) -> dict[str, Kind]:
    """Return the kind of constraint of every constrained weight, by name.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 2))
        >>> names = constrain(network, "cwn")
        >>> constrained_weights(network)
        {'0.weight': 'cwn'}
    """
    return {name: kind for name, ref in named_weights(model).items() if (kind := kind_of(ref)) != "none"}


@torch.no_grad()
def constrain_weights(
    model: nn.Module, weights: Mapping[str, WeightRef], kinds: Mapping[str, str], projected: Collection[str] = ()
) -> None:
    """Constrain weights of ``model``, each by its kind, after a check that all of them can be constrained.

    Args:
        model: Owner of the weights, searched for other owners of them.
        weights: The weights to constrain.
        kinds: The kind of each.
        projected: The names of those to hold by projection.

    Raises:
        ValueError: A weight that cannot be constrained, or that several layers share. The model is left unchanged.
    """
    places = parameter_places(model)
    for name, ref in weights.items():
        obstacle = tied_to(ref, places) or obstacle_to(ref, PARAMETRIZATIONS[kinds[name]], name in projected)
        if obstacle:
            raise ValueError(f"cannot constrain {name!r}: {obstacle}.")
    for name, ref in weights.items():
        if kind_of(ref) != "none":  # constrained by this loop, under another name of its module
            continue
        if name in projected:
            hold_zero_sum_(ref)
        else:
            register_constraint(ref.layer, ref.name, PARAMETRIZATIONS[kinds[name]])
