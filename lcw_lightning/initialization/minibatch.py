"""Initial weights from data: each layer rescales itself to the minibatch that it sees first (paper, Section 4.3)."""

from collections.abc import Iterator, KeysView
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

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
    r"""Arm every layer of ``model``: the first input it gets within the block rescales it, before it uses its weight.

    The layer's bias becomes zero and its weight is multiplied so that the preactivation :math:`z = W a` has standard
    deviation ``target_std`` over the minibatch (paper, Section 4.3). As layers run in forward order, each one sees
    inputs that the already rescaled layers produce, through any graph; of a layer that is called several times the
    first call counts, and of layers with a tied weight the first layer. Granularity ``layer`` pools the variance over
    units and samples (and positions) around one mean, activation shift included; ``unit`` gives each unit its own std
    around its own mean.

    Weights under ``wn`` and ``cwn`` have a gain for each unit. These are set as Salimans & Kingma do, whatever the
    granularity: :math:`g_i \leftarrow g_i / \sigma_i` and :math:`b_i = -\mu_i / \sigma_i` (times ``target_std``), so
    that every unit has mean zero too, if its layer has a bias. The directions are multiplied by what the gains are
    multiplied by, so that they keep the length :math:`\|v_i\| = g_i` which they start with: a learning rate means for
    them what it means for other kinds. Weights under ``sn`` have a norm of 1 for good: they are left alone, and so are
    their layers' biases.

    Layers send, and their hooks see, the rescaled preactivation. Without gradients a layer runs once: torch's own are
    linear in their weights, so what they send is scaled as the weight is. With gradients it runs again for the graph of
    the new weight, but sends the same numbers: so weights end the same, bit for bit. Layers whose class computes
    something of its own, or whose bias is frozen, always run again.

    Only weights that require a gradient are touched. Under an initialized :mod:`torch.distributed` default group every
    rank must take part, and the statistics are those of the union of their minibatches. Compiled networks run eagerly.

    Args:
        model: Any module; its Linear layers and convolutions are armed. Recurrent layers, attention and Bilinear keep
            their weights, since hooks do not see their preactivations.
        target_std: Standard deviation that preactivations get, in units of the preactivation.
        granularity: ``layer`` or ``unit``; says nothing to weights with trained gains.

    Yields:
        The names of the weights still armed: empty once every layer was reached.

    Raises:
        ValueError: At once for a bad setting or a sharded weight; within the forward pass for a layer whose
            preactivation is constant or not finite, or whose parametrization cannot hold a rescaled weight.
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

    One call ``model(*inputs)`` without gradients, in the modes that the modules are in; see
    :func:`rescale_on_first_forward` for what happens to each layer. Modes, buffers (BatchNorm statistics among them)
    and the random number generators are left as they were.

    Args:
        model: Any module; draw its weights first. Constrained weights stay constrained.
        inputs: What the model's forward takes.
        target_std: Standard deviation that preactivations get.
        granularity: ``layer``: one factor a layer. ``unit``: one a unit, as ``wn`` and ``cwn`` always have.

    Returns:
        The model itself.

    Raises:
        ValueError: As :func:`rescale_on_first_forward` says. The model is then as it was.

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


class _ExchangedValue(Function):
    """The value of one tensor with the gradient of another, as autograd's tensors must not change in place."""

    @staticmethod
    @override
    def forward(ctx: Any, recorded: Tensor, value: Tensor) -> Tensor:
        return value.clone()  # a view could not be changed in place later

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Rescaling:
    """The layers still armed, and the hooks that rescale each."""

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
        # Known now: a training step may freeze a network for a while, as adversaries do in turn.
        self.biases = {
            name: bias
            for name, ref in self.waiting.items()
            if isinstance(bias := ref.layer.bias, Tensor) and bias.requires_grad
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
        is_trained, is_linear = torch.is_grad_enabled(), self.is_linear(name)
        with torch.no_grad():
            if name in self.biases:
                self.biases[name].zero_()
            if not self.rescaled.isdisjoint(self.parameters(name)):
                self.disarm(name)  # it is tied to a layer that came before
            elif is_trained or not is_linear:
                # Not recorded for a backward pass, since checkpointing counts what is.
                z = layer.forward(*args, **kwargs)
                self.outputs[name] = self.rescale(name, z if is_linear else z.clone())

    def after(self, name: str, _layer: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        is_linear = self.is_linear(name)
        with torch.no_grad():
            scaled = self.outputs.pop(name) if name in self.outputs else self.rescale(name, output)
            scaled = scaled.to(output.dtype)
        self.disarm(name)
        if not is_linear:
            return output
        return cast(Tensor, _ExchangedValue.apply(output, scaled)) if output.requires_grad else scaled

    def parameters(self, name: str) -> set[int]:
        return {id(parameter) for parameter in self.waiting[name].parameters}

    def is_linear(self, name: str) -> bool:
        """Return whether a layer multiplies its output, its bias being zero, by what its weight is multiplied by."""
        ref = self.waiting[name]
        return computes_as_torch(ref) and (ref.layer.bias is None or name in self.biases)

    def rescale(self, name: str, z: Tensor) -> Tensor:
        ref = self.waiting[name]
        self.rescaled |= self.parameters(name)
        return rescale_layer_(ref, name, z, self.biases.get(name), self.target_std, self.granularity == "unit")


def _check_settings(target_std: float, granularity: Granularity) -> None:
    if not target_std > 0:
        raise ValueError(f"minibatch initialization needs target_std > 0, got {target_std}.")
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity is one of {get_args(Granularity)}, got {granularity!r}.")
