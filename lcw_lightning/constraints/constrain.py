"""Constrain the weights of whole models."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import get_args

import torch
from torch import nn

from lcw_lightning.constraints.kinds import PARAMETRIZATIONS, Kind, Method, check_method, kind_of
from lcw_lightning.constraints.projection import check_shards, hold_zero_sum_, is_projected
from lcw_lightning.constraints.registration import (
    constrainable_parameter,
    register_constraint,
)
from lcw_lightning.weights.selection import listed, select_weights
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = [
    "Kind",
    "Method",
    "constrain",
    "constrain_weights",
    "constrained_weights",
    "with_fan_in_1",
]


def constrain(
    model: nn.Module,
    kind: Kind = "lcw",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    method: Method = "parametrize",
) -> list[str]:
    """Constrain the weights of ``model`` in place, starting from their present values.

    Copies and pickles of the model stay constrained. With ``method="project"`` an ``lcw`` weight stays an ordinary
    parameter: its gradient is centred per unit as it accumulates, so before clipping and before DDP reduces, and the
    weight itself after each step of a :class:`torch.optim.Optimizer` and after loading a state dict. The first such
    call in a process puts a hook on all its optimizers, which after each step centres the projected weights among those
    that were trained. Under SGD (momentum, weight decay, clipping by norm) weights take the path that they take under
    ``parametrize``, up to rounding. Under Adam and its like the algorithm is another one, projected Adam: moments of
    the centred gradient, weights centred after the step; the same holds for clipping by value. Names, state dicts,
    compiled and exported networks are those of the plain network. :func:`torch.autograd.grad` and
    :func:`torch.func.grad` give the gradient uncentred. If another parameter takes the weight's place, by assignment,
    conversion or ``fully_shard``, it is an ordinary one until a second call, which takes sharded ones, or until a state
    dict is loaded.

    Args:
        model: Any module. The weights of Linear, Bilinear, convolutions (grouped and transposed too), recurrent layers
            and MultiheadAttention are constrained; embeddings and norms are left alone.
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
        ValueError: Unknown kind or method, ``project`` for a kind that it cannot hold, a pattern that matches no
            weight, a weight that several layers share or that has another constraint. The model is left unchanged.

    Warns:
        UserWarning: Weights of fan_in 1, for which zero is the only zero-sum value, were skipped (``lcw`` and ``cwn``).

    Example:
        >>> network = nn.Sequential(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 10))
        >>> constrain(network, exclude=["2.*"])
        ['0.weight']
    """
    if kind not in get_args(Kind):
        raise ValueError(f"constrain() knows the kinds {', '.join(get_args(Kind))}; got {kind!r}.")
    check_method(kind, method)
    if kind == "none":
        return []
    selected = select_weights(model, include, exclude)
    if unconstrainable := with_fan_in_1(selected, kind):
        warnings.warn(f"left unconstrained, because fan_in is 1: {listed(unconstrainable)}.", stacklevel=2)
    wanted = {name: ref for name, ref in selected.items() if name not in unconstrainable}
    project = method == "project"
    new = {name: ref for name, ref in wanted.items() if kind_of(ref) != kind or is_projected(ref) != project}
    constrain_weights(model, new, dict.fromkeys(new, kind), new if project else ())
    return list(wanted)


def with_fan_in_1(weights: Mapping[str, WeightRef], kind: Kind) -> list[str]:
    """Return the names of the weights of fan_in 1, if the kind makes units sum to zero: their only value is zero."""
    if not PARAMETRIZATIONS[kind].sums_to_zero:
        return []
    with torch.no_grad():
        return [name for name, ref in weights.items() if ref.fan_in == 1]


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
    owners: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append(f"{prefix}.{name}" if prefix else name)
    for name, ref in weights.items():
        kind = PARAMETRIZATIONS[kinds[name]]
        try:
            parameter = constrainable_parameter(ref.layer, ref.name, kind, may_be_sharded=name in projected)
            kind(parameter, ref.transposed_groups)
            check_shards(ref)
        except ValueError as error:
            raise ValueError(f"cannot constrain {name!r}: {error}") from error
        if len(tied := owners[id(parameter)]) > 1:
            to_exclude = listed(other for other in tied if other in weights)
            raise ValueError(
                f"cannot constrain {name!r}: {' and '.join(map(repr, tied))} are tied; leave {to_exclude} out."
            )
    for name, ref in weights.items():
        if kind_of(ref) != "none":  # constrained by this loop, under another name of its module
            continue
        if name in projected:
            hold_zero_sum_(ref)
        else:
            register_constraint(ref.layer, ref.name, PARAMETRIZATIONS[kinds[name]])
