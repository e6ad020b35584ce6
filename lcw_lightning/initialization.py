"""Initial weights from data: each layer rescales itself to the minibatch that it sees first (paper, Section 4.3)."""

from collections.abc import Iterator, KeysView
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle

from lcw_lightning.layers import WeightRef, named_weights, split_channels
from lcw_lightning.recording import eager_mode

__all__ = ["Granularity", "is_initialized", "mark_initialized", "minibatch_init_", "rescale_on_first_forward"]

Granularity = Literal["layer", "unit"]


@contextmanager
def rescale_on_first_forward(
    model: nn.Module, target_std: float = 1.0, granularity: Granularity = "layer"
) -> Iterator[KeysView[str]]:
    r"""Arm every layer of ``model``: the first input it gets within the block rescales it, before it uses its weight.

    The layer's bias becomes zero and its weight is multiplied so that the preactivation :math:`z = W a` has standard
    deviation ``target_std`` over the minibatch (paper, Section 4.3). As layers run in forward order, each one sees
    inputs that the already rescaled layers produce, through any graph; of a layer that is called several times the
    first call counts, and of layers with a tied weight the first layer. Granularity ``layer`` pools the variance over
    units and samples (and positions) around one mean, activation shift included; ``unit`` gives each unit its own std
    around its own mean.

    Only weights that require a gradient are touched. Under an initialized :mod:`torch.distributed` default group every
    rank must take part, and the statistics are those of the union of their minibatches. Compiled networks run eagerly.

    Args:
        model: Any module; its Linear layers and convolutions are armed. Recurrent layers, attention and Bilinear keep
            their weights, since hooks do not see their preactivations.
        target_std: Standard deviation that preactivations get, in units of the preactivation.
        granularity: ``layer`` or ``unit``.

    Yields:
        The names of the weights still armed: empty once every layer was reached.

    Raises:
        ValueError: At once for a bad setting or a sharded weight; within the forward pass for a layer whose
            preactivation is constant or not finite, or whose parametrization cannot hold a rescaled weight.
    """
    _check_settings(target_std, granularity)
    rescaling = _Rescaling(model, target_std, granularity)
    try:
        for name, ref in rescaling.waiting.items():
            hook = partial(rescaling.rescale, name)
            rescaling.handles[name] = ref.layer.register_forward_pre_hook(hook, with_kwargs=True)
        with eager_mode:
            yield rescaling.waiting.keys()
    finally:
        for handle in rescaling.handles.values():
            handle.remove()


def minibatch_init_(
    model: nn.Module, *inputs: Any, target_std: float = 1.0, granularity: Granularity = "layer"
) -> nn.Module:
    r"""Rescale the weights of ``model`` in place so that preactivations have ``target_std`` on this minibatch.

    One call ``model(*inputs)`` without gradients, in the modes that the modules are in; see
    :func:`rescale_on_first_forward` for what happens to each layer. Modes, buffers (BatchNorm statistics among them)
    and the random number generators are left as they were.

    Args:
        model: Any module; draw its weights first. Constrained weights stay constrained.
        inputs: What the model's forward takes.
        target_std: Standard deviation that preactivations get.
        granularity: ``layer``: one factor a layer. ``unit``: one a unit.

    Returns:
        The model itself.

    Raises:
        ValueError: As :func:`rescale_on_first_forward` says.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer, images = nn.Linear(64, 100), torch.rand(128, 64)
        >>> print(f"{minibatch_init_(layer, images)(images).std():.3f}")
        1.000
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), rescale_on_first_forward(model, target_std, granularity):
            model(*inputs)
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    return model


def mark_initialized(model: nn.Module) -> None:
    """Say that the weights of ``model`` are not freshly drawn: they were rescaled, trained or loaded."""
    vars(model)["_lcw_initialized"] = True


def is_initialized(model: nn.Module) -> bool:
    """Return whether :func:`mark_initialized` was called on ``model``."""
    return "_lcw_initialized" in vars(model)


class _Rescaling:
    """The layers still armed, and the hook that rescales each."""

    def __init__(self, model: nn.Module, target_std: float, granularity: Granularity) -> None:
        self.target_std = target_std
        self.granularity = granularity
        self.waiting = {
            name: ref
            for name, ref in named_weights(model).items()
            if ref.is_observable and any(parameter.requires_grad for parameter in ref.parameters)
        }
        for name, ref in self.waiting.items():
            if any(hasattr(parameter, "device_mesh") for parameter in ref.parameters):
                raise ValueError(f"{name!r} is sharded; call minibatch_init_() before fully_shard().")
        # Known now: a training step may freeze a network for a while, as adversaries do in turn.
        self.biases = {
            name: bias
            for name, ref in self.waiting.items()
            if isinstance(bias := ref.layer.bias, Tensor) and bias.requires_grad
        }
        self.handles: dict[str, RemovableHandle] = {}
        self.rescaled: set[int] = set()

    @torch.no_grad()
    def rescale(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.handles.pop(name).remove()
        ref = self.waiting.pop(name)
        if name in self.biases:
            self.biases[name].zero_()
        parameters = {id(parameter) for parameter in ref.parameters}
        if not self.rescaled.isdisjoint(parameters):
            return  # tied to a layer that came before
        self.rescaled |= parameters
        std = _preactivation_std(layer.forward(*args, **kwargs), ref.channel_dim, self.granularity)
        _check_std(std, name)
        _scale_(ref, name, self.target_std / std)


def _check_settings(target_std: float, granularity: Granularity) -> None:
    if not target_std > 0:
        raise ValueError(f"minibatch initialization needs target_std > 0, got {target_std}.")
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity is one of {get_args(Granularity)}, got {granularity!r}.")


def _check_std(std: Tensor, name: str) -> None:
    if not std.isfinite().all():
        raise ValueError(
            f"minibatch initialization needs finite preactivations, but those of {name!r} are NaN or infinite on the "
            "first minibatch; look for NaN or infinite values in the data and in the weights."
        )
    if not std.all():
        raise ValueError(
            f"minibatch initialization needs preactivations that vary, but {int((std == 0).sum())} of {len(std)} "
            f"standard deviations of {name!r} are zero on the first minibatch; look for constant inputs, dead units "
            "before the layer and weights that are zero."
        )


def _scale_(ref: WeightRef, name: str, factor: Tensor) -> None:
    weight = ref.value
    scaled = weight * ref.expand_to_weight(factor.to(weight.dtype))
    try:
        ref.assign_(scaled)
        held = (ref.value - scaled).norm() <= 0.02 * scaled.norm()
    except ValueError:
        held = False
    if not held:
        raise ValueError(
            f"minibatch initialization rescales weights, which the parametrization of {name!r} does not let it do; "
            "initialize without it."
        )
    torch.clear_autocast_cache()  # it may hold the old weight, which the layer has just used


def _preactivation_std(z: Tensor, channel_dim: int, granularity: Granularity) -> Tensor:
    """Return std over the union of all ranks' samples, shape ``(1,)`` or ``(units,)``, in float64."""
    z, others = split_channels(z, channel_dim)
    total = z.sum(others, dtype=torch.float64)
    squares = torch.linalg.vector_norm(z, dim=others, dtype=torch.float64).square()
    sums = torch.stack((torch.full_like(total, z.numel() // len(total)), total, squares))
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sums)
    if granularity == "layer":
        sums = sums.sum(dim=1, keepdim=True)
    count, total, squares = sums
    variance: Tensor = squares / count - (total / count).square()
    # What lies below the resolution of z is rounding, not variation.
    is_rounding = variance <= torch.finfo(z.dtype).eps ** 2 * squares / count
    return variance.masked_fill(is_rounding, 0.0).sqrt()
