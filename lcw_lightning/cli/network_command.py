"""``lcw analyze --network``: the report on any network that a function or class builds, on random numbers."""

import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Literal, NoReturn, cast

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from lcw_lightning.analysis.analyze import analyze
from lcw_lightning.analysis.report import Report, render, save
from lcw_lightning.cli.error_message import message_of
from lcw_lightning.cli.near_names import near_class
from lcw_lightning.cli.plain_words import in_one_sentence
from lcw_lightning.compat import option_names
from lcw_lightning.constraints.constrain import constrain
from lcw_lightning.constraints.kinds import Kind
from lcw_lightning.initialization.minibatch import minibatch_init_

__all__ = ["main"]

DESCRIPTION = (
    "Report on a network that a class or a function builds, on random inputs and labels, before it is trained."
)
COMPARE = "as_built is the network alone; under a kind of constraint it is constrained and rescaled on the inputs."


def main(args: Sequence[str]) -> None:
    """Run ``lcw analyze --network`` with these arguments; an error ends in one message on stderr."""
    sys.path.insert(0, os.getcwd())  # as python -m does
    torch.set_flush_denormal(True)
    try:
        given = _parser().parse_args(list(args))
        output = given.pop("output")
        reports = _reports(**given.as_dict())
        sys.stdout.write(render(reports))
        sys.stdout.write(f"written to {save(reports, output)}\n")
    except Exception as error:
        if os.environ.get("JSONARGPARSE_DEBUG") == "true":
            raise
        sys.exit(f"lcw: error: {message_of(error)}\n(JSONARGPARSE_DEBUG=true shows where)")


class _Parser(ArgumentParser):
    """A parser that reports an error in one sentence, as that of the other commands does."""

    @override
    def print_usage(self, *args: object, **kwargs: object) -> None:
        pass

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(in_one_sentence(message, option_names(self)), ex)


def _parser() -> ArgumentParser:
    parser = _Parser(prog="lcw analyze", description=DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--network", type=str, required=True, help="Such as torchvision.models.resnet50 or timm.create_model.")
    add("--network_args", type=dict[str, Any], default={}, help="Its arguments, such as '{num_classes: 10}'.")
    add("--input_shape", type=PositiveInt, nargs="+", default=[3, 224, 224], help="Shape of one input.")
    add("--batch_size", type=PositiveInt, default=32, help="Number of inputs, which are standard normal.")
    add("--compare", type=Literal["as_built", Kind], nargs="+", default=["as_built"], help=COMPARE)
    add("--seed", type=int, default=0, help="Of the weights, inputs and labels.")
    add("--output", type=str, default="analysis", help="Folder for analysis.json and figures.")
    return parser


def _reports(
    network: str, network_args: dict[str, Any], input_shape: list[int], batch_size: int, compare: list[str], seed: int
) -> dict[str, Report]:
    torch.manual_seed(seed)
    built = _build(network, network_args)
    dtype = next((p.dtype for p in built.parameters() if p.is_floating_point()), torch.float32)
    inputs = torch.randn(batch_size, *input_shape).to(dtype)
    labels = torch.randint(_num_classes(built, network, inputs), (batch_size,))
    reports = {}
    for kind in compare:
        judged = copy.deepcopy(built)
        if kind != "as_built":
            constrain(judged, cast(Kind, kind))
            minibatch_init_(judged, inputs)
        report = analyze(judged, (inputs, labels))
        initialized = "not rescaled" if kind == "as_built" else "rescaled on this batch"
        reports[kind] = replace(report, judged=report.judged and report.judged._replace(initialized=initialized))
    return {"": reports[compare[0]]} if len(compare) == 1 else reports


def _build(path: str, arguments: dict[str, Any]) -> nn.Module:
    """Return the network that ``path`` builds.

    Raises:
        ValueError: There is no such function or class, it does not take the arguments, or it returns no network.
    """
    module, _, name = path.rpartition(".")
    try:
        make = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        near = near_class(path) if module else ""
        raise ValueError(
            f"--network={path} names no function or class ({error}{near and f', near it is {near}'}); write "
            "package.module.name, with the module installed or in the working directory."
        ) from error
    try:
        network = make(**arguments)
    except TypeError as error:
        raise ValueError(f"--network={path} does not take --network_args={arguments}: {error}.") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"--network={path} returns {type(network).__name__}, and no torch.nn.Module.")
    return network


def _num_classes(network: nn.Module, path: str, inputs: Tensor) -> int:
    """Return the number of classes of a network, by the shape of its output.

    Raises:
        ValueError: It does not take the inputs, or its output is no tensor of one row of logits for each input.
    """
    try:
        with torch.no_grad():
            outputs = copy.deepcopy(network)(inputs)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} does not take inputs of shape {tuple(inputs.shape)}, {inputs.dtype}: {str(error).rstrip('.')}. "
            "Give the shape of one input with --input_shape; for other inputs than such numbers call "
            "lcw_lightning.analyze(network, batch, loss) in Python."
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(inputs):
        given = f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"lcw analyze --network takes classifiers, whose output has one row of logits for each input, but {path} "
            f"returns {given}; call lcw_lightning.analyze(network, batch, loss) in Python."
        )
    return outputs.shape[1]
