"""Initial weights from data: each layer is rescaled on its first minibatch (paper, Section 4.3)."""

import warnings
from collections.abc import Collection, Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

from lcw_lightning.constraints.kinds import kind_of
from lcw_lightning.constraints.projection import put_back_
from lcw_lightning.initialization.first_forward import Rescaling
from lcw_lightning.initialization.inner_forward import InnerRescaling, inner_layers
from lcw_lightning.initialization.outcome import Outcome, obstacle_to_initialization
from lcw_lightning.initialization.ranks import END_OF_FORWARD, Meet, alone, in_step
from lcw_lightning.initialization.rescaling import is_scalable
from lcw_lightning.initialization.uncalled import RescaleUncalled
from lcw_lightning.observation.compiled import eager_mode
from lcw_lightning.weights.copies import copies_of
from lcw_lightning.weights.failing_layer import run_network
from lcw_lightning.weights.restoring import undisturbed, unless_it_fails
from lcw_lightning.weights.selection import select_weights
from lcw_lightning.weights.settings import check_choice, check_model, check_positive
from lcw_lightning.weights.ties import Places, parameter_places
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = ["BY_HAND", "Granularity", "minibatch_init_", "new_outcome", "rescale_on_first_forward"]

Granularity = Literal["layer", "unit"]

BY_HAND = "rescale them with minibatch_init_(module, inputs)"
"""How to do without the callback, as advice in messages."""


@contextmanager
def rescale_on_first_forward(
    model: nn.Module,
    target_std: float = 1.0,
    granularity: Granularity = "layer",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    outcome: Outcome | None = None,
    meet: Meet = alone,
    recurrent_share: float = 0.5,
) -> Iterator[KeysView[str]]:
    r"""Rescale every layer of ``model`` on the first input that it gets within the block.

    The layer's bias becomes zero and its weight is multiplied so that the preactivation :math:`z = W a` has standard
    deviation ``target_std`` over the minibatch (paper, Section 4.3). Layers run in forward order, so each layer sees
    inputs from layers that are already rescaled, in any graph. If a layer is called several times, its first call
    counts; if layers share a weight, the first layer counts. Granularity ``layer`` pools the variance over units and
    samples (and positions) around one mean, activation shift included; ``unit`` gives each unit its own std around its
    own mean.

    Weights under ``wn`` and ``cwn`` have a gain for each unit. With both granularities gains and biases are those of
    Salimans & Kingma: :math:`g_i \leftarrow g_i / \sigma_i` and :math:`b_i = -\mu_i / \sigma_i` (times
    ``target_std``), so that every unit has mean zero too, if its layer has a bias. The directions, which they leave as
    drawn, are multiplied by the same factors, so that :math:`\|v_i\| = g_i` still holds and a learning rate has the
    same effect as for other kinds. With directions as drawn, 50 sigmoid layers under ``cwn`` need a tenth of the
    learning rate: tried on the digits, they stay at chance at the rate at which these train, and do as well at a tenth
    of it. Weights under ``sn``, whose norm is always 1, and their layers' biases do not change.

    Layers return the rescaled preactivation, which their hooks see too. Without gradients a layer runs once: torch's
    own layers are linear in their weights, so the output is scaled with the weight. With gradients the layer runs
    again, for the graph of the new weight, but returns the same numbers, so that the weights are bit for bit the same.
    Layers of a class with its own forward, or with a frozen bias, always run again, with the same random numbers. A
    weight that the network multiplies without a call of its layer, as in ``F.linear(x, self.qkv.weight)``, is rescaled
    by that product.

    *RNN, LSTM, GRU.* The preactivation of a gate is :math:`W_{ih} x_t + W_{hh} h_{t-1}`, for the candidate of a GRU
    :math:`W_{in} x_t + r_t (W_{hn} h_{t-1})`. Each gate of each layer and direction has a factor for either matrix, so
    that this sum has ``target_std`` (to 1e-3) and its recurrent part the share

    .. math:: \rho = V[W_{hh} h] / (V[W_{hh} h] + V[W_{ih} x])

    (to 1e-2), with all variances over sequences and steps. Steps of packed sequences count, padding does not. The
    first step counts too: from :math:`h_0 = 0` its recurrent part is zero, so in short sequences later steps have more
    than the share. As states follow the factors, both are found by iteration. The projection of an LSTM
    (``proj_size``), whose output is the state, has ``target_std`` as well. Upper layers see the outputs of rescaled
    ones, after dropout in training mode. All biases become zero, the forget gate's too; a bias that is frozen keeps its
    value, and counts in the states. Where only one of the two matrices is rescaled, it alone gives the sum its std. A
    layer that runs one step from :math:`h_0 = 0` shows no recurrent part: its recurrent weights are left as they are.
    So are those of a *cell* whose first call is given no state, as one that is called in a loop: its first call counts,
    in which :math:`W_{ih} x` has ``target_std``.

    *MultiheadAttention* is rescaled by the projections of query, key and value, each by factors of its own, and by its
    output; *Bilinear* by its output.

    Layers that cannot be rescaled are left as they are, weight and bias: those whose weight is tied to an embedding's,
    with which the inputs of earlier layers would change; those with zero weights, zero inputs or an empty batch; those
    whose preactivations do not vary, apart from rounding errors; those whose output stays the same when the weight is
    scaled, since their class standardizes it; those whose rescaled weight would leave the range of its dtype, or would
    be changed by a foreign parametrization. With a factor for each unit, units that do not vary are left alone.

    Only weights that require a gradient are rescaled, and with them their copies in momentum teachers: see
    :func:`~lcw_lightning.weights.copies.momentum_copies`. Under an initialized :mod:`torch.distributed` default group
    every rank must call this function, and the statistics are those of the union of all ranks' minibatches. Compiled
    networks run eagerly.

    Args:
        model: Any module. Its Linear and Bilinear layers, convolutions, registered types, recurrent layers, cells and
            attention are rescaled; recurrent layers and attention of a class with its own forward are not.
        target_std: Standard deviation of the preactivations after rescaling.
        granularity: ``layer`` or ``unit``; without effect on weights with trained gains.
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names, of weights to leave as they are.
        outcome: Is told what becomes of each layer; :func:`new_outcome` makes one.
        meet: Compares the ranks' places before a layer is rescaled; :func:`in_step` yields one.
        recurrent_share: :math:`\rho`, between 0 and 1. With shares far above one half states become chaotic, so that
            factors for each unit may not be found.

    Yields:
        The names of the weights not yet rescaled; empty once every layer has run.

    Raises:
        ValueError: At once for an invalid setting, a pattern that matches no weight, or a sharded weight; within the
            forward pass for preactivations that are NaN or infinite, or if no factors are found for a gate of a
            recurrent layer, which the message names.
    """
    _check_settings(target_std, granularity, recurrent_share)
    outcome = new_outcome() if outcome is None else outcome
    inner = inner_layers(model)
    seen_inside = set().union(*(weights.values() for weights in inner.values()))
    waiting, copies = _refs_to_rescale(model, include, exclude, seen_inside, outcome)
    for ref in waiting.values():
        put_back_(ref)  # torch does not count writes by .data, as some functions that draw weights make them
    rescaling = Rescaling(waiting, outcome, target_std, granularity == "unit", meet, copies)
    try:
        _arm(rescaling, inner, recurrent_share)
        with eager_mode, RescaleUncalled(rescaling):
            yield rescaling.waiting.keys()
    finally:
        outcome.left |= dict.fromkeys(rescaling.waiting, "its layer was not called")
        for name in list(rescaling.waiting):
            rescaling.disarm(name)


def minibatch_init_(
    model: nn.Module,
    *inputs: Any,
    target_std: float = 1.0,
    granularity: Granularity = "layer",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    recurrent_share: float = 0.5,
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
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names, of weights to leave as they are.
        recurrent_share: Share of the recurrent part in the variance of each gate of RNN, LSTM and GRU.

    Returns:
        The model itself.

    Raises:
        ValueError: In the cases of :func:`rescale_on_first_forward`, and if no layer can be rescaled. The model is not
            changed then.
        RuntimeError: On all ranks, if they take different layers. The model is not changed then.

    Warns:
        UserWarning: Some layers were left as they are, for the reasons that it gives.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer, images = nn.Linear(64, 100), torch.rand(128, 64)
        >>> print(f"{minibatch_init_(layer, images)(images).std():.3f}")
        1.000
    """
    check_model(model)
    outcome = new_outcome()
    with unless_it_fails(model), in_step(BY_HAND) as meet:
        settings = target_std, granularity, include, exclude, outcome, meet, recurrent_share
        with undisturbed(model), torch.no_grad(), rescale_on_first_forward(model, *settings):
            run_network("minibatch_init_", model, inputs)
        meet(END_OF_FORWARD)
        outcome.check()
    if outcome.left or outcome.partly or outcome.copies:
        warnings.warn(outcome.summary, stacklevel=2)
    return model


def new_outcome() -> Outcome:
    """Return an empty record for :func:`rescale_on_first_forward`."""
    return Outcome("minibatch initialization", "rescaled")


def _refs_to_rescale(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], inner: Collection[WeightRef], outcome: Outcome
) -> tuple[dict[str, WeightRef], dict[str, str]]:
    refs = select_weights(model, include, exclude)
    copies, weights = copies_of(model, refs, exclude), named_weights(model)
    refs |= {copy: weights[copy] for copy in copies}
    originals = {name: refs[copies.get(name, name)] for name in refs}
    places = parameter_places(model)
    obstacles = {name: _obstacle(ref, ref in inner, places) for name, ref in originals.items()}
    outcome.left |= {name: obstacle for name, obstacle in obstacles.items() if obstacle}
    waiting = {name: ref for name, ref in refs.items() if name not in outcome.left}
    for name, ref in waiting.items():
        if any(hasattr(parameter, "device_mesh") for parameter in ref.parameters):
            raise ValueError(f"{name!r} is sharded; call minibatch_init_() before fully_shard().")
    return waiting, {copy: original for copy, original in copies.items() if copy in waiting}


def _arm(rescaling: Rescaling, inner: Mapping[nn.Module, Mapping[str, WeightRef]], recurrent_share: float) -> None:
    names = {ref: name for name, ref in rescaling.waiting.items()}
    for layer, weights in inner.items():
        if own := {own: names.pop(ref) for own, ref in weights.items() if ref in names}:
            InnerRescaling(rescaling, layer, own, recurrent_share).arm()
    for name in names.values():
        rescaling.arm(name)


def _obstacle(ref: WeightRef, is_inner: bool, places: Places) -> str | None:
    is_seen = is_inner or ref.is_observable or isinstance(ref.layer, nn.Bilinear)
    is_stuck = ref.parameters and not is_scalable(ref)
    obstacle = obstacle_to_initialization(ref, is_seen, places)
    return obstacle or (f"under {kind_of(ref)} its norm is always 1" if is_stuck else None)


def _check_settings(target_std: float, granularity: Granularity, recurrent_share: float) -> None:
    check_positive("minibatch initialization", "target_std", target_std)
    check_choice("minibatch initialization", "granularity", granularity, get_args(Granularity))
    if not 0 < recurrent_share < 1:
        raise ValueError(f"minibatch initialization needs 0 < recurrent_share < 1, got {recurrent_share}.")
