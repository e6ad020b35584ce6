"""Say which layer of a network could not take its input, in place of torch's message, which names none."""

import inspect
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence

from lcw_lightning.weights.selection import listed

__all__ = ["describe_failing_layer", "failing_layer_named", "run_network"]

_PACKAGE = str(Path(__file__).parents[1])
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Of the base classes, whose forward raises an error; a module of Lightning may have training_step alone.
_NO_FORWARD = ("_forward_unimplemented", "LightningModule.forward")
_FIT = (Tensor, PackedSequence, bool, int, float, str, type(None))  # what a network may take
_MISFITS = (TypeError, RuntimeError, ValueError, IndexError)  # exactly these: torch's lack of memory is a subclass


def run_network(
    owner: str, model: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Return ``model(*inputs, **named)``, or say that the inputs do not fit the model.

    Args:
        owner: The function that runs the network, for the message.
        model: The network.
        inputs: Its positional arguments, as the user gave them.
        named: Its keyword arguments.

    Raises:
        ValueError: The model has no forward, or takes other arguments; something else than tensors that the network
            cannot take; or a layer of torch's cannot take its input.

    Example:
        >>> run_network("minibatch_init_", nn.Linear(3, 2), ())
        Traceback (most recent call last):
        ValueError: minibatch_init_ runs model(*inputs), but Linear.forward(input: ...) got 0 inputs: missing a ...
    """
    try:
        with failing_layer_named():
            return model(*inputs, **named)
    except (AttributeError, KeyError, NotImplementedError, TypeError) as error:
        if not (reason := _reason(model, inputs, named, error)):
            raise
        raise ValueError(f"{owner} runs model({'**' if named else '*'}inputs), {reason}.") from error


def _reason(model: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any], error: Exception) -> str:
    """Return why a model could not be called with these inputs; an empty string if the fault is in its code."""
    name, said = type(model).__name__, str(error)
    if type(model).forward.__qualname__ in _NO_FORWARD and "forward" not in vars(model):
        return f"but {name} has no forward; define it, or give a network that the module holds"
    if isinstance(error, TypeError) and (misfit := _misfit_of_call(model, inputs, named)):
        return f"but {name}.forward{misfit}"
    values = [*inputs, *named.values()]
    if isinstance(error, NotImplementedError) or all(isinstance(value, _FIT) for value in values):
        return ""
    given = ", ".join(type(value).__name__ for value in values)
    return f"and {name} could not take ({given}): {said}; {_TENSORS}"


def _misfit_of_call(model: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> str:
    """Return by which arguments forward differs from those given; an empty string if it takes them."""
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # of code that is not Python's
        return ""
    try:
        signature.bind(*inputs, **named)
    except TypeError as error:
        given = f"inputs named {listed(named)}" if named else f"{len(inputs)} input{'s' * (len(inputs) != 1)}"
        return f"{str(signature).partition(' ->')[0]} got {given}: {error}"
    return ""


@contextmanager
def failing_layer_named() -> Iterator[None]:
    """Turn torch's error within the block into a ValueError that names the layer which could not take its input.

    Raises:
        ValueError: In the words of :func:`describe_failing_layer`.
    """
    try:
        yield
    except _MISFITS as error:
        if message := describe_failing_layer(error):
            raise ValueError(message) from error
        raise


def describe_failing_layer(error: BaseException) -> str:
    """Return which of torch's layers raised ``error`` in its forward, and why; an empty string for other errors.

    The layer has its name within the outermost module that was called.

    Example:
        >>> import torch
        >>> try:
        ...     nn.Sequential(nn.Linear(3, 2))(torch.rand(5, 4))
        ... except RuntimeError as error:
        ...     print(describe_failing_layer(error))
        '0', Linear(in_features=3, out_features=2, bias=True), cannot take an input of shape (5, 4): it takes 3
        features, and got 4.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    frames = [frame for frame in frames if frame.f_code.co_name != "__torch_function__"]  # which hands all calls on
    if type(error) not in _MISFITS or not frames or frames[-1].f_code.co_filename.startswith(_PACKAGE):
        return ""
    calls = [frame.f_locals for frame in frames if isinstance(frame.f_locals.get("self"), nn.Module)]
    given = next((calls[-1][name] for name in ("input", "query") if name in calls[-1]), None) if calls else None
    if given is None or type(calls[-1]["self"]).__module__.partition(".")[0] != "torch":
        return ""
    layer = calls[-1]["self"]
    name = next((name for name, module in calls[0]["self"].named_modules() if module is layer), "")
    what = f"an input of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
    reason = _misfit(layer, given) or str(error).rstrip(".")
    described = f"{type_before_parametrizations(layer).__name__}({layer.extra_repr()})"
    named = f"{name!r}, {described}," if name else described
    return f"{named} cannot take {what}: {reason}."


_TENSORS = "give tensors, one for each argument, such as torch.from_numpy(array), or model(*inputs) of a tuple"


def _misfit(layer: Any, given: Any) -> str:
    if not isinstance(given, Tensor):
        return _TENSORS
    weight = next((p for p in layer.parameters() if p.is_floating_point()), given)
    if given.dtype != weight.dtype and not isinstance(layer, nn.Embedding):
        return f"it takes {weight.dtype}, and got {given.dtype}"
    if isinstance(layer, nn.Embedding) and given.numel() and not 0 <= given.min() <= given.max() < layer.num_embeddings:
        return f"it has numbers 0 to {layer.num_embeddings - 1}, and got {int(given.min())} to {int(given.max())}"
    if given.device != weight.device:
        return f"it is on {weight.device}, and its input on {given.device}"
    return _wrong_size(layer, given.shape)


def _wrong_size(layer: Any, shape: Sequence[int]) -> str:
    if isinstance(layer, nn.Linear) and tuple(shape[-1:]) != (layer.in_features,):
        return f"it takes {layer.in_features} features, and got {shape[-1] if shape else 'a single number'}"
    is_norm = isinstance(layer, _BATCH_NORMS)
    channels = layer.num_features if is_norm else getattr(layer, "in_channels", None)
    if channels and len(shape) > 1 and shape[1] != channels:
        return f"it takes {channels} channels, and got {shape[1]}"
    if is_norm and math.prod(shape) == channels:
        return "in training it takes two samples or more; make batches larger, and leave out a last one of one sample"
    return ""
