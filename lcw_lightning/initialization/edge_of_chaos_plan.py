"""Plan which layers of a model are drawn at the edge of chaos, and with which standard deviations."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import nn
from torch.nn.parameter import is_lazy

from lcw_lightning.constraints.kinds import constraint_class, is_zero_sum, kind_of
from lcw_lightning.initialization.outcome import Outcome, obstacle_to_initialization
from lcw_lightning.theory.edge_of_chaos import edge_of_chaos_stds
from lcw_lightning.theory.gaussian import Function
from lcw_lightning.weights.selection import by_reason, select_weights
from lcw_lightning.weights.settings import check_choice
from lcw_lightning.weights.ties import parameter_places
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["EdgeOfChaosLayer", "Draw", "edge_of_chaos_layers", "only_activation"]

Draw = Literal["gaussian", "delta_orthogonal"]


class EdgeOfChaosLayer(NamedTuple):
    """A weight, and the standard deviations of its draw (times the root of fan_in) and of its layer's bias."""

    ref: WeightRef
    sigma_w: float
    sigma_b: float


def edge_of_chaos_layers(
    model: nn.Module,
    activation: Function | None,
    q: float,
    weights: Draw,
    include: Sequence[str],
    exclude: Sequence[str],
    outcome: Outcome,
) -> dict[str, EdgeOfChaosLayer]:
    """Return the selected Linear layers and convolutions whose weights require a gradient, by their weights' names.

    ``outcome`` is told the others.

    Raises:
        ValueError: A layer cannot be drawn, for a reason that :func:`~lcw_lightning.edge_of_chaos_init_` lists.
    """
    check_choice("edge_of_chaos_init_", "weights", weights, get_args(Draw))
    if not (activation is None or callable(activation)):
        raise ValueError(
            f"edge_of_chaos_init_: activation is a function of tensors, as torch.relu or nn.ReLU(); got {activation!r}."
        )
    refs, places = select_weights(model, include, exclude), parameter_places(model)
    obstacles = {name: obstacle_to_initialization(ref, ref.is_observable, places) for name, ref in refs.items()}
    outcome.left |= {name: obstacle for name, obstacle in obstacles.items() if obstacle}
    refs = {name: ref for name, ref in refs.items() if name not in outcome.left}
    if not refs:
        held = f"{type(model).__name__} has none" + (f"; left are: {by_reason(outcome.left)}" if outcome.left else "")
        raise ValueError(f"edge_of_chaos_init_ needs a Linear or convolution that is trained, but {held}.")
    activation = only_activation(model) if activation is None else activation
    stds = {zero_sum: edge_of_chaos_stds(activation, q, zero_sum) for zero_sum in set(map(is_zero_sum, refs.values()))}
    layers = {name: EdgeOfChaosLayer(ref, *stds[is_zero_sum(ref)]) for name, ref in refs.items()}
    for name, layer in layers.items():
        obstacle = _obstacle(layer, q) or (weights == "delta_orthogonal" and _obstacle_to_delta_orthogonal(layer.ref))
        if obstacle:
            raise ValueError(f"edge_of_chaos_init_ cannot draw {name!r}: {obstacle}; exclude leaves it out.")
    return layers


def only_activation(model: nn.Module) -> nn.Module:
    """Return the activation module of ``model``, the first of several that are alike.

    Raises:
        ValueError: There is none, or they differ.

    Example:
        >>> only_activation(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh()))
        Tanh()
    """
    found: dict[Any, nn.Module] = {}
    for module in model.modules():
        of_torch = type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)
        if of_torch or hasattr(module, "thresholded"):
            learned = [parameter.tolist() for parameter in module.parameters()]
            found.setdefault((repr(module), getattr(module, "thresholded", None), str(learned)), module)
    if len(found) != 1:
        given = ", ".join(map(repr, found.values())) or "none"
        raise ValueError(
            f"edge_of_chaos_init_ needs the one activation of the network, but the activation modules in "
            f"{type(model).__name__} are: {given}; give the one that the weights are for, "
            "edge_of_chaos_init_(model, inputs, activation=...)."
        )
    return next(iter(found.values()))


def _obstacle(layer: EdgeOfChaosLayer, q: float) -> str | None:
    ref, _, sigma_b = layer
    if is_lazy(ref.value):
        return "it is lazy; run one forward first"
    if any(hasattr(parameter, "device_mesh") for parameter in ref.parameters):
        return "it is sharded; call edge_of_chaos_init_() before fully_shard()"
    if constraint_class(ref).has_fixed_norm:
        return f"under {kind_of(ref)} its norm is always 1; use another kind of constraint, or none"
    if sigma_b**2 >= q:
        return f"at its edge of chaos biases have all of the preactivations' variance q={q:.4g}"
    if getattr(ref.layer, "bias", None) is None and sigma_b > 1e-6:
        return f"its layer has no bias, which needs standard deviation {sigma_b:.4g}; make the layer with bias=True"
    return None


def _obstacle_to_delta_orthogonal(ref: WeightRef) -> str | None:
    kernel_size, groups = getattr(ref.layer, "kernel_size", ()), getattr(ref.layer, "groups", 1)
    if ref.transposed_groups and kernel_size:
        why = "it is a transposed convolution's"
    elif groups > 1:
        why = f"its convolution has groups={groups}"
    elif not all(size % 2 for size in kernel_size):
        why = f"its kernel size {kernel_size} is even, so that there is no centre tap"
    elif is_zero_sum(ref) and ref.num_channels == 1:
        why = "with one input channel the only zero-sum centre tap is zero"
        return f"{why}; use weights='gaussian', or leave the layer unconstrained"
    else:
        return None
    return f"{why}; delta-orthogonal weights are for Linear and plain convolutions, so use weights='gaussian'"
