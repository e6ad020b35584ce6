"""analyze: send one minibatch through any network and loss, and report on every layer before training."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence

from lcw_lightning.analysis.condition import condition_of
from lcw_lightning.analysis.judged import Judged, judged
from lcw_lightning.analysis.losses import check_loss, cross_entropy_of_logits, has_loss, loss_value, own_loss
from lcw_lightning.analysis.preflight import DepthProfile, monte_carlo
from lcw_lightning.analysis.report import Report
from lcw_lightning.observation.observed_layers import ObservedLayer, observed_layers
from lcw_lightning.observation.snapshot import Snapshot
from lcw_lightning.weights.failing_layer import run_network
from lcw_lightning.weights.plan import Plan, plan_weights
from lcw_lightning.weights.restoring import restored, undisturbed
from lcw_lightning.weights.selection import listed
from lcw_lightning.weights.settings import check_model

__all__ = ["analyze", "report_of"]


def analyze(
    network: nn.Module,
    batch: Any,
    loss: Callable[..., Tensor] | None = None,
    *,
    redraw: Callable[[nn.Module], object] | None = None,
    draws: int = 100,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Report:
    """Send one minibatch through a network, forward and backward, and report on every layer.

    The network is left as it was: weights, gradients, modes, buffers (BatchNorm statistics among them) and torch's
    random number generators. It runs in the modes that its modules are in; put it in training mode to see what
    training will see. Your own hooks run as they would in training, except for those on accumulated gradients.

    Args:
        network: Any module with a layer of the kinds that :func:`~lcw_lightning.constrain` knows.
        batch: A pair ``(inputs, targets)``, or inputs alone. Inputs are what the network takes: a tensor or a packed
            sequence, a tuple or list of arguments, a mapping of keyword arguments. Give several samples, because the
            statistics are about what varies between them.
        loss: Maps ``(outputs, targets)``, or without targets the outputs, to a scalar. The default is the
            cross-entropy of logits and class numbers; without targets it is the ``loss`` of the outputs, which networks
            of transformers have if they are given labels. Otherwise there is no backward pass.
        redraw: Draws the network's weights anew, in place. If given, the report includes a pre-flight check, which
            follows q and gradients through the hidden layers (those before the last one) over ``draws`` draws.
        draws: Number of draws of the weights.
        include: Glob patterns on weight names ``layer.weight``.
        exclude: Glob patterns of weights to leave out.

    Returns:
        The report: print it, read its ``statistics`` and ``findings``, ``save(folder)`` it as JSON and figures.

    Raises:
        ValueError: The network is no module, is lazy or complex, or cannot take the inputs, a pattern matches no
            weight, the network calls none of its layers, cross-entropy does not take the outputs and targets, or the
            loss is not a scalar or does not depend on the network; for a pre-flight check also if there is no loss, no
            draw, or fewer than two hidden layers.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.Sigmoid())])
        >>> report = analyze(network, (torch.rand(128, 64), torch.randint(10, (128,))))
        >>> [finding.says.split(":")[0] for finding in report.findings]
        ['Gradients vanish', 'Preactivations vanish', 'Activation shift in 20 of 20 layers']
    """
    _check(network, loss)
    layers, facts = _chosen_layers(network, include, exclude), judged(network, batch)
    if facts.samples == 0:
        raise ValueError("analyze() needs a batch of samples, got one of 0 samples.")
    inputs, *targets = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch,)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    snapshot = Snapshot(layers, device, with_values=True, over_time=True)
    reached: set[int] = set()
    step = partial(_step, network, inputs, targets, loss, reached)
    with torch.inference_mode(False), torch.enable_grad():
        with undisturbed(network), snapshot.watching():
            value = step()
        plan = plan_weights(network, "seen", include, exclude)
        report = report_of(network, snapshot, value, plan, facts, reached)
        if redraw is None:
            return report
        with restored(network):
            hidden = _hidden_layers(network, step, layers)
            return replace(report, preflight=monte_carlo(hidden, partial(redraw, network), step, draws))


def _chosen_layers(network: nn.Module, *patterns: Sequence[str]) -> dict[str, ObservedLayer]:
    if layers := observed_layers(network, *patterns):
        return layers
    raise ValueError(f"analyze() needs real weights, but those chosen of {type(network).__name__} are complex.")


def _step(
    network: nn.Module, inputs: Any, targets: list[Any], loss: Callable[..., Tensor] | None, reached: set[int]
) -> float | None:
    """Run the batch forward and backward, and return the loss; the ids of parameters with a gradient are added."""
    args, kwargs, leaves = _arguments(inputs)  # new copies, since a network may change its inputs in place
    outputs = run_network("analyze", network, args, kwargs)
    if loss is None and not targets:
        if not has_loss(outputs):
            return None
        loss = own_loss
    value = loss_value(loss or cross_entropy_of_logits, outputs, targets)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = _backward(value, [*trained, *leaves])
    reached.update(id(p) for p, gradient in zip(trained, gradients, strict=False) if gradient is not None)
    return value.item()


def _hidden_layers(
    network: nn.Module, step: Callable[[], object], chosen: Mapping[str, ObservedLayer]
) -> dict[str, nn.Module]:
    profile = DepthProfile({name: layer.layer for name, layer in observed_layers(network).items()})
    with profile.watching():
        step()
    return {name: profile.layers[name] for name in profile.hidden_layers(chosen)}


def report_of(
    network: nn.Module, snapshot: Snapshot, loss: float | None, plan: Plan, facts: Judged, reached: Collection[int]
) -> Report:
    """Return the report on a snapshot, once its step is done.

    Args:
        network: What was observed.
        snapshot: Of its layers.
        loss: Of the batch.
        plan: Knows the layers that cannot be seen.
        facts: Which network this is.
        reached: The ids of the parameters that the gradient has reached.

    Raises:
        ValueError: None of its layers was called.
    """
    statistics = snapshot.statistics()
    if not statistics:
        raise ValueError(
            f"none of the layers {listed(snapshot.layers)} was called in this forward pass, and a layer whose weights "
            "are read without calling it cannot be watched."
        )
    condition = condition_of(network, snapshot, statistics, plan, reached)
    return Report(statistics, condition, loss, snapshot.values(), judged=facts, recurrence=snapshot.recurrence())


def _arguments(inputs: Any) -> tuple[list[Any], dict[str, Any], list[Tensor]]:
    """Return positional and keyword arguments, and the leaf tensors among them that take a gradient."""
    leaves: list[Tensor] = []

    def differentiable(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return value._replace(data=differentiable(value.data))
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1].clone()  # unlike a leaf, a network may change it in place

    if isinstance(inputs, Mapping):
        return [], {name: differentiable(value) for name, value in inputs.items()}, leaves
    several = isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence)
    return [differentiable(value) for value in (inputs if several else [inputs])], {}, leaves


def _check(network: nn.Module, loss: object) -> None:
    check_model(network)
    check_loss(loss)
    if lazy := [name for name, parameter in network.named_parameters() if is_lazy(parameter)]:
        raise ValueError(
            f"analyze() needs a network that is built, but {listed(lazy)} are lazy; run one forward first."
        )


def _backward(value: Tensor, leaves: list[Tensor]) -> Sequence[Tensor | None]:
    # Unlike backward(), this does not touch the .grad of parameters, nor fire hooks on it.
    gradients = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else ()
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "analyze() needs a loss that depends on the network's inputs or on weights that require a gradient, and "
            "this one does not; look for detach(), no_grad() and argmax()."
        )
    return gradients
