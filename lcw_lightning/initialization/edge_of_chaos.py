"""Initial weights at the edge of chaos: draw them for the activation and match the first layer to a minibatch."""

import warnings
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lcw_lightning.compat import is_transformed
from lcw_lightning.initialization.drawing import draw_with_copies_
from lcw_lightning.initialization.edge_of_chaos_plan import Draw, EdgeOfChaosLayer, edge_of_chaos_layers
from lcw_lightning.initialization.limits import Operands, UnscalableError, first_tensor
from lcw_lightning.initialization.outcome import Outcome
from lcw_lightning.initialization.ranks import END_OF_FORWARD, Meet, alone, in_step
from lcw_lightning.initialization.rescaling import (
    check_response,
    computes_as_torch,
    forget_used_weights,
    has_gains,
    preactivation_moments,
    scale_weight_,
    zeroed,
)
from lcw_lightning.observation.compiled import eager_mode
from lcw_lightning.theory.gaussian import Function
from lcw_lightning.weights.copies import copy_layer_, equals
from lcw_lightning.weights.failing_layer import run_network
from lcw_lightning.weights.restoring import undisturbed, unless_it_fails
from lcw_lightning.weights.settings import check_model
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["BY_HAND", "draw_and_match_on_first_forward", "edge_of_chaos_init_", "new_drawing"]

BY_HAND = "draw them with edge_of_chaos_init_(module, inputs)"
"""How to do without the callback, as advice in messages."""


@contextmanager
def draw_and_match_on_first_forward(
    model: nn.Module,
    activation: Function | None = None,
    q: float = 1.0,
    weights: Draw = "gaussian",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    outcome: Outcome | None = None,
    meet: Meet = alone,
) -> Iterator[KeysView[str]]:
    """Draw the weights of ``model`` at once; the first layer that runs within the block is matched to its input.

    Arguments and errors are those of :func:`edge_of_chaos_init_`; ``outcome`` is told what is drawn and matched,
    and ``meet`` compares the ranks' places before that. Compiled networks run eagerly within the block.

    Yields:
        The names of the drawn weights; empty once the first of their layers has run and is matched.
    """
    outcome = new_drawing() if outcome is None else outcome
    layers = edge_of_chaos_layers(model, activation, q, weights, include, exclude, outcome)
    copies = draw_with_copies_(model, layers, weights, exclude, outcome)
    matching = _FirstLayerHook(layers, q, outcome, meet, equals(copies))
    outcome.changed |= layers.keys()
    try:
        for name, waiting in matching.waiting.items():
            hook = partial(matching.match, name)
            matching.handles.append(waiting.ref.layer.register_forward_pre_hook(hook, with_kwargs=True))
        with eager_mode:
            yield matching.waiting.keys()
    finally:
        matching.disarm()


def edge_of_chaos_init_(
    model: nn.Module,
    *inputs: Any,
    activation: Function | None = None,
    q: float = 1.0,
    weights: Draw = "gaussian",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> nn.Module:
    r"""Draw all weights and biases of ``model`` anew, so that it starts at the edge of chaos of its activation.

    At the edge of chaos :math:`\chi_1 = \sigma_w^2 E[\varphi'(\sqrt q Z)^2] = 1` and the variance of preactivations has
    the fixed point ``q`` (Price et al., arXiv 2402.16184). Weights are drawn from
    :math:`\mathcal{N}(0, \sigma_w^2 / \mathrm{fan\_in})` and biases from :math:`\mathcal{N}(0, \sigma_b^2)` in every
    Linear layer and convolution, the output layer included.
    :func:`~lcw_lightning.theory.edge_of_chaos.edge_of_chaos_stds` computes :math:`\sigma_w` and :math:`\sigma_b`.
    Layers under ``lcw`` and ``cwn`` get zero-sum weights, with the standard deviations for zero-sum weights, which
    respond only to the deviations of their inputs from the mean.

    The first layer's weight is rescaled: the pooled mean square of :math:`W a` over samples, units and positions
    becomes :math:`q - \sigma_b^2`, so that with its biases the expected mean square of the preactivations on the
    minibatch is ``q``. The first layer is the one of these layers that is called first in one call ``model(*inputs)``,
    without gradients and in the current modes of the modules. Buffers are restored.

    Weights that require no gradient (but for those of a momentum teacher, which follow the student's), recurrent
    layers, attention, Bilinear, embeddings and norms do not change. Draws use torch's global random number generator on
    the weight's device, so ``torch.manual_seed`` repeats them. Under an initialized :mod:`torch.distributed` default
    group every rank must call this function; all ranks get the weights of rank 0, matched to the union of all ranks'
    minibatches.

    Args:
        model: Any module; constrain it first. Constrained weights stay constrained.
        inputs: Inputs of the model's forward.
        activation: The elementwise function between the layers. By default it is taken from the model's modules of
            :mod:`lcw_lightning.activations` and :mod:`torch.nn.modules.activation`, which must be alike.
        q: Variance of the preactivations, the fixed point. Sparse activations have their intended sparsity and slope
            only at the ``q`` that they were made with.
        weights: ``gaussian``, or ``delta_orthogonal`` (Xiao et al., arXiv 1806.05393): kernels that are zero except for
            the centre tap, which is :math:`\sigma_w` times a random matrix with orthonormal rows; with more output than
            input channels the matrix has orthogonal columns, and rows of mean square norm :math:`\sigma_w^2`. A Linear
            layer is treated as a 1 x 1 kernel. Zero-sum weights are orthogonal within their subspace. A constrained
            first convolution would ignore the mean over the few channels of an image, so leave it unconstrained.
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names, of weights to leave as they are.

    Returns:
        The model itself.

    Raises:
        ValueError: Before any draw: for an invalid setting; for a pattern that matches no weight; for activations that
            differ or have no edge of chaos; for a weight that is sharded, lazy, spectrally normalized or cannot be
            delta-orthogonal; for a missing bias where biases have a variance; for a model without weights to draw.
            Later: for a parametrization that cannot represent the drawn weight; for a first layer whose inputs are NaN,
            infinite, zero, a batch of 0 samples or, with zero-sum weights, constant over the inputs of each unit; whose
            output does not respond to its weight; or whose matched weight would leave the range of its dtype. In every
            case the model is not changed.
        RuntimeError: On all ranks, if the first layer is not the same on all. The model is not changed.

    Warns:
        UserWarning: Weights were left as they are, with the reasons.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network, images = nn.Sequential(nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 500)), torch.rand(128, 64)
        >>> _ = edge_of_chaos_init_(network, images)
        >>> print(f"{network[0](images).square().mean():.3f}")
        1.000
    """
    check_model(model)
    outcome = new_drawing()
    with unless_it_fails(model), in_step(BY_HAND) as meet:
        settings = activation, q, weights, include, exclude
        with draw_and_match_on_first_forward(model, *settings, outcome, meet) as waiting:
            with undisturbed(model), torch.no_grad():
                run_network("edge_of_chaos_init_", model, inputs)
            meet(END_OF_FORWARD)
            if waiting:
                kind = type(model).__name__
                raise ValueError(f"edge_of_chaos_init_ matches a layer to the inputs, but {kind} ran no drawn layer.")
    if outcome.left or outcome.copies:
        warnings.warn(outcome.summary, stacklevel=2)
    return model


def new_drawing() -> Outcome:
    """Return an empty record for :func:`draw_and_match_on_first_forward`."""
    return Outcome("edge-of-chaos initialization", "drawn")


class _FirstLayerHook:
    """The hook that scales the weight of the layer that is called first."""

    def __init__(
        self,
        waiting: dict[str, EdgeOfChaosLayer],
        q: float,
        outcome: Outcome,
        meet: Meet,
        equals: Mapping[str, list[str]],
    ) -> None:
        self.waiting = waiting
        self.equals = equals
        self.q = q
        self.outcome = outcome
        self.meet = meet
        self.handles: list[RemovableHandle] = []

    def disarm(self) -> None:
        while self.handles:
            self.handles.pop().remove()

    @torch.no_grad()
    def match(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_transformed():  # by torch.func, where nothing can be written: the layers wait for another call
            return
        self.meet(f"at {name!r}")
        self.disarm()
        ref, _, sigma_b = self.waiting[name]
        copies = [self.waiting[copy].ref.layer for copy in self.equals.get(name, ())]
        self.waiting.clear()

        def run() -> Tensor | None:
            with undisturbed(layer), zeroed(layer._parameters.get("bias")):
                return first_tensor(layer.forward(*args, **kwargs))

        try:
            factor = _matching_factor(ref, name, first_tensor((args, kwargs)), run, self.q - sigma_b**2)
            scale_weight_(ref, name, factor)
            for copy in copies:
                copy_layer_(layer, copy)
        except UnscalableError as reason:
            raise ValueError(
                f"edge_of_chaos_init_ cannot match {name!r}, the first layer, to the first minibatch: {reason}; look "
                f"for inputs that are constant, or leave the layer out: exclude=[{name!r}]."
            ) from reason
        finally:
            forget_used_weights()  # which the layer has just used
        self.outcome.add(name, factor, torch.ones_like(factor, dtype=torch.bool))


def _matching_factor(
    ref: WeightRef, name: str, inputs: Tensor | None, run: Callable[[], Tensor | None], square: float
) -> Tensor:
    """Return the factor by which a layer's preactivations get the mean square ``square``.

    Raises:
        UnscalableError: There is none, for the reason in the message.
        ValueError: Preactivations are not finite.
    """
    z = run()
    if z is None:
        raise UnscalableError("its output holds no floating-point numbers")
    drawn = preactivation_moments(z, ref.channel_dim, by_unit=False).mean_square.sqrt()
    operands = Operands.of(ref, z, inputs)
    if not drawn.isfinite():
        raise ValueError(
            f"edge_of_chaos_init_ needs finite inputs, but the preactivations of {name!r}, the first layer, are NaN or "
            "infinite on the first minibatch; look for NaN or infinite values in the data."
        )
    if drawn <= operands.resolution(z.dtype, by_unit=False):
        raise UnscalableError("its preactivations are zero up to rounding")
    factor = drawn.reciprocal() * square**0.5
    operands.check_range(factor, ref.value.dtype, has_gains(ref))
    if not computes_as_torch(ref):
        check_response(ref, z, run)
    return cast(Tensor, factor)
