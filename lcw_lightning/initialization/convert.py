"""Constrain a trained network, and keep what it does: biases take what the constraint takes from the weights."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lcw_lightning.constraints.constrain import constrain_as_planned
from lcw_lightning.constraints.kinds import PARAMETRIZATIONS, Kind, Method, kind_of
from lcw_lightning.constraints.plain_weights import right_inverse
from lcw_lightning.constraints.plan import plan_constraints
from lcw_lightning.initialization.mean_restoration import MeanRestoration, exchanged
from lcw_lightning.observation.compiled import eager_mode
from lcw_lightning.weights.failing_layer import run_network
from lcw_lightning.weights.freshness import mark_initialized
from lcw_lightning.weights.restoring import restored, undisturbed
from lcw_lightning.weights.selection import by_reason
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["convert_"]


def convert_(
    model: nn.Module,
    *inputs: Any,
    kind: Kind = "lcw",
    method: Method = "parametrize",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> nn.Module:
    r"""Constrain a trained network in place, and give each bias what the constraint takes from the mean preactivation.

    :func:`~lcw_lightning.constrain` projects the weights, :math:`W \to \tilde W`, which moves the mean of every
    preactivation :math:`z = W a + b`: a trained network no longer does what it did. Here the model runs twice as
    ``model(*inputs)``. The first run, as it is, gives the mean :math:`E[z_i]` of each unit over samples and positions.
    In the second, with constrained weights, each layer gets its new bias just before it runs:

    .. math:: b_i \leftarrow b_i + E[z_i] - E[\tilde z_i], \qquad \tilde z = \tilde W \tilde a + b,

    where :math:`\tilde a` is its input in the second run, which layers that are converted already compute. So the bias
    takes :math:`(w_i - \tilde w_i)^\top E[a]`, the work of the layer's own projection, and
    :math:`\tilde w_i^\top (E[a] - E[\tilde a])`. The latter is there because the layers before keep the means of their
    preactivations, but not the means of nonlinear functions of them, which are this layer's inputs. With the mean input
    of the untouched network alone these differences would remain. On these inputs every mean preactivation of a layer
    that is converted is then that of the untouched network; layers that are excluded or frozen are not touched, and see
    inputs whose means may have moved. The deviations from it are what projected weights make of the inputs.

    Both runs are in evaluation mode, since it is there that a trained network is used: BatchNorm takes its running
    statistics, and dropout is off. Both draw the same random numbers. Modes, buffers (except running means, see below)
    and random number generators do not change. If a run fails, nothing changes. A second call changes nothing.

    - *BatchNorm.* The running mean of one that is not frozen follows the mean of its input, where that still moves:
      behind a layer without a bias, a sum of such layers' outputs, or an activation.
    - *A layer that is called several times*, such as a recurrent cell: no bias restores the mean of each call. It gets
      the mean over all calls of what the projection takes from them, on the inputs of the untouched network.
    - *Attention*: the biases of query, key, value and output. *Bilinear*: by its output. *RNN, LSTM, GRU*: the input's
      and the recurrent part of each gate have a bias each, in every layer and direction; means are over all steps,
      padding included unless sequences are packed. As the state follows its bias, that is found by iteration.
    - *Kinds*: ``cwn`` takes what ``lcw`` does, ``wn`` nothing. ``sn`` divides by the largest singular value: means are
      restored, deviations from them remain divided.

    :class:`~lcw_lightning.MinibatchInitCallback` does not rescale a converted network. Under an initialized
    :mod:`torch.distributed` default group every rank must call this function; the means are those
    over all ranks' inputs.

    Args:
        model: A trained network. Frozen weights and biases stay as they are.
        inputs: Inputs of the model's forward; a few hundred samples of the training data.
        kind: As in :func:`~lcw_lightning.constrain`.
        method: As in :func:`~lcw_lightning.constrain`.
        include: Glob patterns on names ``layer.weight``.
        exclude: Glob patterns on the same names, of layers to leave alone.

    Returns:
        The model itself.

    Raises:
        ValueError: In the cases of :func:`~lcw_lightning.constrain`, or a mean preactivation is NaN or infinite. The
            model is not changed then.

    Warns:
        UserWarning: Weights were left out, as by ``constrain``; or weights were constrained whose layer has no bias
            that could restore the mean, with their names.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network, images = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(128, 64)
        >>> before = network(images).mean(dim=0)
        >>> torch.allclose(convert_(network, images)(images).mean(dim=0), before, atol=1e-6)
        True
    """
    plan = plan_constraints(model, kind, include, exclude, method)
    if kind == "none":
        return model
    plan.check()
    weights = {name: ref for name, ref in plan.weights.items() if name not in plan.copies}
    values = {ref: _value_under(ref, kind) for ref in weights.values() if kind_of(ref) == "none"}
    means = MeanRestoration(model, weights, values)
    if values:
        with torch.no_grad(), restored(model), _evaluating(model), eager_mode:
            with undisturbed(model), _hooked(means.shown, means.record):
                run_network("convert_", model, inputs)
            with undisturbed(model), exchanged(values), _hooked(means.shown, means.restore, means.note_output):
                model(*inputs)
    constrain_as_planned(model, plan, kind, method)
    means.apply_changes()
    plan.renew_copies_()
    mark_initialized(model)
    if plan.left_out or plan.copies:
        warnings.warn(plan.summary, stacklevel=2)
    if lacking := by_reason(means.unrestored):
        warnings.warn(f"convert_: mean preactivations are not restored of {lacking}.", stacklevel=2)
    return model


@torch.no_grad()
def _value_under(ref: WeightRef, kind: Kind) -> Tensor:
    """Return the value that a plain weight will have under a constraint, which starts from its present one."""
    constraint = PARAMETRIZATIONS[kind](ref.value, ref.transposed_groups)
    value: Tensor = constraint(*right_inverse(constraint, ref.value).values())
    return value.clone()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put all modules in evaluation mode within the block, without calls of their own ``train`` or ``eval``."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _hooked(
    layers: Iterable[nn.Module], before: Callable[..., None], after: Callable[..., None] | None = None
) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers if after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
