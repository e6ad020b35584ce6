"""Initial weights from data: each layer is rescaled on its first minibatch (paper, Section 4.3)."""

from collections.abc import Iterator, KeysView
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lcw_lightning.compat import is_transformed
from lcw_lightning.initialization.rescaling import computes_as_torch, is_scalable, rescale_layer_
from lcw_lightning.observation.compiled import eager_mode
from lcw_lightning.weights.restoring import undisturbed, unless_it_fails
from lcw_lightning.weights.weight_ref import named_weights

__all__ = ["Granularity", "minibatch_init_", "rescale_on_first_forward"]

Granularity = Literal["layer", "unit"]


@contextmanager
def rescale_on_first_forward(
    model: nn.Module, target_std: float = 1.0, granularity: Granularity = "layer"
) -> Iterator[KeysView[str]]:
    r"""Rescale every layer of ``model`` on the first input that it gets within the block.

    The layer's bias becomes zero and its weight is multiplied so that the preactivation :math:`z = W a` has standard
    deviation ``target_std`` over the minibatch (paper, Section 4.3). Layers run in forward order, so each layer sees
    inputs from layers that are already rescaled, in any graph. If a layer is called several times, its first call
    counts; if layers share a weight, the first layer counts. Granularity ``layer`` pools the variance over units and
    samples (and positions) around one mean, activation shift included; ``unit`` gives each unit its own std around its
    own mean.

    Weights under ``wn`` and ``cwn`` have a gain for each unit. With both granularities the gains are set as in Salimans
    & Kingma: :math:`g_i \leftarrow g_i / \sigma_i` and :math:`b_i = -\mu_i / \sigma_i` (times ``target_std``), so that
    every unit has mean zero too, if its layer has a bias. The directions are multiplied by the same factors, so that
    :math:`\|v_i\| = g_i` still holds and a learning rate has the same effect as for other kinds. Weights under ``sn``,
    whose norm is always 1, and their layers' biases do not change.

    Layers return the rescaled preactivation, which their hooks see too. Without gradients a layer runs once: torch's
    own layers are linear in their weights, so the output is scaled with the weight. With gradients the layer runs
    again, for the graph of the new weight, but returns the same numbers, so that the weights are bit for bit the same.
    Layers of a class with its own forward, or with a frozen bias, always run again.

    Only weights that require a gradient are rescaled. Under an initialized :mod:`torch.distributed` default group every
    rank must call this function, and the statistics are those of the union of all ranks' minibatches. Compiled networks
    run eagerly.

    Args:
        model: Any module; its Linear layers and convolutions are rescaled. Recurrent layers, attention and Bilinear
            keep their weights, since hooks do not see their preactivations.
        target_std: Standard deviation of the preactivations after rescaling.
        granularity: ``layer`` or ``unit``; without effect on weights with trained gains.

    Yields:
        The names of the weights not yet rescaled; empty once every layer has run.

    Raises:
        ValueError: At once for an invalid setting or a sharded weight; within the forward pass for a layer whose
            preactivation is constant or not finite, or whose parametrization cannot represent a rescaled weight.
    """
    _check_settings(target_std, granularity)
    rescaling = _Rescaling(model, target_std, granularity)
    try:
        for name in rescaling.waiting:
            rescaling.arm(name)
        with eager_mode:
            yield rescaling.waiting.keys()
    finally:
        for name in list(rescaling.waiting):
            rescaling.disarm(name)


def minibatch_init_(
    model: nn.Module, *inputs: Any, target_std: float = 1.0, granularity: Granularity = "layer"
) -> nn.Module:
    r"""Rescale the weights of ``model`` in place so that preactivations have ``target_std`` on this minibatch.

    The model runs once, as ``model(*inputs)``, without gradients and in the current modes of its modules;
    :func:`rescale_on_first_forward` describes how each layer is rescaled. Modes, buffers (such as BatchNorm statistics)
    and the random number generators do not change.

    Args:
        model: Any module; draw its weights first. Constrained weights stay constrained.
        inputs: Inputs of the model's forward.
        target_std: Standard deviation of the preactivations after rescaling.
        granularity: ``layer`` for one factor per layer, or ``unit`` for one factor per unit, as ``wn`` and ``cwn``
            always have.

    Returns:
        The model itself.

    Raises:
        ValueError: In the cases of :func:`rescale_on_first_forward`. The model is not changed then.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer, images = nn.Linear(64, 100), torch.rand(128, 64)
        >>> print(f"{minibatch_init_(layer, images)(images).std():.3f}")
        1.000
    """
    rescaling = rescale_on_first_forward(model, target_std, granularity)
    with unless_it_fails(model), undisturbed(model), torch.no_grad(), rescaling:
        model(*inputs)
    return model


class _ValueWithGradientOf(Function):
    """The value of one tensor with the gradient of another, since tensors in a graph must not change in place."""

    @staticmethod
    @override
    def forward(ctx: Any, recorded: Tensor, value: Tensor) -> Tensor:
        return value.clone()  # a view could not be changed in place by later layers

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Rescaling:
    """The layers that are not yet rescaled, and the hooks that rescale them."""

    def __init__(self, model: nn.Module, target_std: float, granularity: Granularity) -> None:
        self.target_std = target_std
        self.granularity = granularity
        self.waiting = {
            name: ref
            for name, ref in named_weights(model).items()
            if ref.is_observable and is_scalable(ref) and any(parameter.requires_grad for parameter in ref.parameters)
        }
        for name, ref in self.waiting.items():
            if any(hasattr(parameter, "device_mesh") for parameter in ref.parameters):
                raise ValueError(f"{name!r} is sharded; call minibatch_init_() before fully_shard().")
        # Decided now, since a training step may freeze a network for a while, as in adversarial training.
        self.biases = {
            name: bias
            for name, ref in self.waiting.items()
            if isinstance(bias := getattr(ref.layer, "bias", None), Tensor) and bias.requires_grad
        }
        self.handles: dict[str, list[RemovableHandle]] = {}
        self.rescaled: set[int] = set()
        self.outputs: dict[str, Tensor] = {}

    def arm(self, name: str) -> None:
        layer = self.waiting[name].layer
        self.handles[name] = [
            layer.register_forward_pre_hook(partial(self.before, name), with_kwargs=True),
            layer.register_forward_hook(partial(self.after, name), prepend=True),
        ]

    def disarm(self, name: str) -> None:
        del self.waiting[name]
        for handle in self.handles.pop(name, ()):
            handle.remove()

    def before(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_transformed():  # by torch.func, where nothing can be written: the layer waits for another call
            return
        is_trained, is_linear = torch.is_grad_enabled(), self.is_linear(name)
        with torch.no_grad():
            if name in self.biases:
                self.biases[name].zero_()
            if not self.rescaled.isdisjoint(self.parameters(name)):
                self.disarm(name)  # its weight is tied to one that is already rescaled
            elif is_trained or not is_linear:
                # Without gradients, since activation checkpointing counts the tensors that autograd saves.
                z = layer.forward(*args, **kwargs)
                self.outputs[name] = self.rescale(name, z if is_linear else z.clone())

    def after(self, name: str, _layer: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        if is_transformed():
            return output
        is_linear = self.is_linear(name)
        with torch.no_grad():
            scaled = self.outputs.pop(name) if name in self.outputs else self.rescale(name, output)
            scaled = scaled.to(output.dtype)
        self.disarm(name)
        if not is_linear:
            return output
        return cast(Tensor, _ValueWithGradientOf.apply(output, scaled)) if output.requires_grad else scaled

    def parameters(self, name: str) -> set[int]:
        return {id(parameter) for parameter in self.waiting[name].parameters}

    def is_linear(self, name: str) -> bool:
        """Return whether, with zero bias, the output of a layer scales in proportion to its weight."""
        ref = self.waiting[name]
        return computes_as_torch(ref) and (getattr(ref.layer, "bias", None) is None or name in self.biases)

    def rescale(self, name: str, z: Tensor) -> Tensor:
        ref = self.waiting[name]
        self.rescaled |= self.parameters(name)
        return rescale_layer_(ref, name, z, self.biases.get(name), self.target_std, self.granularity == "unit")


def _check_settings(target_std: float, granularity: Granularity) -> None:
    if not target_std > 0:
        raise ValueError(f"minibatch initialization needs target_std > 0, got {target_std}.")
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity is one of {get_args(Granularity)}, got {granularity!r}.")
