"""Draw the weights and biases of layers, and give their copies the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lcw_lightning.constraints.kinds import is_zero_sum
from lcw_lightning.initialization.edge_of_chaos_plan import Draw, EdgeOfChaosLayer
from lcw_lightning.initialization.outcome import Outcome
from lcw_lightning.initialization.random_weights import at_centre, gaussian_rows, orthogonal_rows
from lcw_lightning.initialization.rescaling import assign_weight_
from lcw_lightning.weights.copies import copies_of, copy_layer_
from lcw_lightning.weights.weight_ref import WeightRef, named_weights, units_first

__all__ = ["draw_with_copies_"]


def draw_with_copies_(
    model: nn.Module, layers: dict[str, EdgeOfChaosLayer], weights: Draw, exclude: Sequence[str], outcome: Outcome
) -> dict[str, str]:
    """Draw the weights of layers, and the biases that are trained; their copies in momentum teachers get the same.

    All ranks get the draws of rank 0.

    Args:
        model: Owner of the layers.
        layers: By the names of their weights; the copies are added.
        weights: How to draw.
        exclude: Glob patterns, of copies to leave as they are.
        outcome: Has left the copies, which are frozen, and is told that they are not left.

    Returns:
        By the name of each copy, that of its original.

    Raises:
        ValueError: A parametrization changes the value.
    """
    copies = copies_of(model, layers, exclude)
    _draw(layers, weights)
    refs = named_weights(model)
    for copy, original in copies.items():
        copy_layer_(layers[original].ref.layer, refs[copy].layer)
        layers[copy] = layers[original]._replace(ref=refs[copy])
        outcome.left.pop(copy, None)
        outcome.copies.add(copy)
    return copies


@torch.no_grad()
def _draw(layers: Mapping[str, EdgeOfChaosLayer], weights: Draw) -> None:
    drawn: set[int] = set()
    for name, (ref, sigma_w, sigma_b) in layers.items():
        parameters = {id(parameter) for parameter in ref.parameters}
        if drawn.isdisjoint(parameters):  # otherwise it is tied to a weight that is already drawn
            drawn |= parameters
            assign_weight_(ref, name, sigma_w * _of_rank_zero(_unit_weight(ref, weights)))
        bias = getattr(ref.layer, "bias", None)
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            bias.copy_(sigma_b * _of_rank_zero(torch.randn(bias.shape, **_precise(bias))))


def _unit_weight(ref: WeightRef, weights: Draw) -> Tensor:
    """Draw a weight whose units have mean square norm 1."""
    groups = ref.transposed_groups
    if weights == "delta_orthogonal":
        rows = orthogonal_rows(ref.num_units, ref.num_channels, is_zero_sum(ref), **_precise(ref.value))
        by_unit = at_centre(rows, *getattr(ref.layer, "kernel_size", ()))
    else:
        rows = gaussian_rows(ref.num_units, ref.fan_in, is_zero_sum(ref), **_precise(ref.value))
        by_unit = rows.view((units_first(ref.value, groups) if groups else ref.value).shape)
    return units_first(by_unit, groups) if groups else by_unit  # which is its own inverse


def _of_rank_zero(draw: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(draw, src=0)
    return draw


def _precise(like: Tensor) -> dict[str, Any]:
    return {"dtype": torch.promote_types(like.dtype, torch.float32), "device": like.device}
