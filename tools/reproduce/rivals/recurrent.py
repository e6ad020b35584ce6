"""Recurrent networks on scikit-learn's digits, pixel by pixel: LCW against other initializations, norms and cells.

Rates and gains are chosen for each method on held-out images, from one grid that is extended where the best lies at an
edge; then five seeds are trained at these settings. Width, batch size, momentum, weight decay and clipping are those of
configs/rnn_digits.yaml.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from lcw_lightning import RecurrentClassifier, constrain, minibatch_init_
from lcw_lightning.models.recurrent import Cell, SigmoidRNN
from tools.readme import show
from tools.records import read_json
from tools.reproduce.rivals import recurrent_report as report
from tools.reproduce.rivals.choosing import Axis
from tools.reproduce.rivals.training import Recipe, digits, record
from tools.reproduce.runs import exit_without_runs, run_all

WIDTH = 128
INPUT_STD = 0.3  # of the input weights, about what minibatch initialization makes of them at gain 1
RECURRENT_SHARE = 0.9  # as in the config
AXES = (Axis("rate", 0.0125, 4.0), Axis("gain", 1.0, 2.0))
RECIPE = Recipe(64, images=15 * 1200, choosing_images=5 * 1200, looks=15, weight_decay=1e-3, clip=1.0)


class LayerNormRNN(SigmoidRNN):
    """One layer, whose preactivations are normalized over the units at each step, with a gain and a shift."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    @override
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the states and the last of them; the first state is zero."""
        state, states = input.new_zeros(len(input), self.hidden_size), []
        for step in nn.functional.linear(input, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0).unbind(1):
            state = torch.sigmoid(self.norm(torch.addmm(step, state, self.weight_hh_l0.T)))
            states.append(state)
        return torch.stack(states, 1), state.unsqueeze(0)


def normal_(weight: Tensor, gain: float) -> None:
    """Draw a square matrix from a normal distribution."""
    nn.init.normal_(weight, std=gain / math.sqrt(len(weight)))


def orthogonal_(weight: Tensor, gain: float) -> None:
    """Draw an orthogonal matrix, times the gain."""
    nn.init.orthogonal_(weight, gain)


def identity_(weight: Tensor, gain: float) -> None:
    """Make the matrix the gain times the identity."""
    nn.init.eye_(weight).mul_(gain)


class Method(NamedTuple):
    """A recurrent network and how its weights are drawn.

    ``gain`` is the root mean square of the recurrent weight times the root of its fan-in, for each way of drawing it;
    with minibatch initialization it is the standard deviation of preactivations.

    Attributes:
        cell: Of RecurrentClassifier.
        lcw: Whether the rows of the recurrent weight and of the output sum to zero.
        minibatch: Whether weights are rescaled on a minibatch.
        draw_: Draws the recurrent weight of one gate.
        norm: Whether preactivations are layer-normalized at each step.
    """

    cell: Cell
    lcw: bool = False
    minibatch: bool = False
    draw_: Callable[[Tensor, float], None] = normal_
    norm: bool = False

    def build(self, settings: dict[str, float], sequences: Tensor) -> nn.Module:
        """Return the network before training."""
        network = RecurrentClassifier(1, 10, self.cell, width=WIDTH)
        if self.norm:
            network.recurrent = LayerNormRNN(1, WIDTH)
        gain = settings["gain"]
        self.draw(network.recurrent, 1.0 if self.minibatch else gain)
        if self.lcw:
            constrain(network, include=["recurrent.weight_hh*", "output.weight"])
        if self.minibatch:
            part = {"include": ["recurrent.*"], "target_std": gain, "recurrent_share": RECURRENT_SHARE}
            minibatch_init_(network, sequences, **part)
            minibatch_init_(network, sequences, include=["output.weight"])
        return network

    @torch.no_grad()
    def draw(self, layer: nn.RNNBase, gain: float) -> None:
        """Draw the weights; biases are zero, but one for the forget gate of LSTM, as is usual."""
        nn.init.normal_(layer.weight_ih_l0, std=INPUT_STD)
        for gate in layer.weight_hh_l0.split(WIDTH):
            self.draw_(gate, gain)
        nn.init.zeros_(layer.bias_ih_l0)
        nn.init.zeros_(layer.bias_hh_l0)
        if self.cell == "lstm":
            layer.bias_ih_l0[WIDTH : 2 * WIDTH] = 1


METHODS = {
    "sigmoid, plain": Method("sigmoid"),
    "sigmoid, plain + init": Method("sigmoid", minibatch=True),
    "sigmoid, LCW": Method("sigmoid", lcw=True),
    "sigmoid, LCW + init": Method("sigmoid", lcw=True, minibatch=True),
    "sigmoid, orthogonal": Method("sigmoid", draw_=orthogonal_),
    "sigmoid, LayerNorm": Method("sigmoid", norm=True),
    "tanh, plain": Method("tanh"),
    "tanh, orthogonal": Method("tanh", draw_=orthogonal_),
    "ReLU, identity": Method("relu", draw_=identity_),
    "ReLU, LCW": Method("relu", lcw=True),
    "LSTM, plain": Method("lstm"),
    "LSTM, LCW": Method("lstm", lcw=True),
    "GRU, plain": Method("gru"),
    "GRU, LCW": Method("gru", lcw=True),
}


def main(arguments: argparse.Namespace) -> None:
    """Do the runs that are missing and print the tables, or report."""
    if not arguments.report:
        shard, shards = arguments.shard
        jobs = {file_name(name): partial(run, name) for name in list(METHODS)[shard - 1 :: shards]}
        run_all(jobs, arguments.output, ["cpu"])
    records = load(arguments.output)
    if not records:
        exit_without_runs(arguments.output)
    show("recurrent", report.table(records), write=arguments.report)
    show("recurrent_same", report.same_settings(records, AXES), write=arguments.report)
    if arguments.report:
        report.picture(records).savefig(arguments.output / "recurrent.png", dpi=110)


def file_name(method: str) -> str:
    """Return the name of a method's JSON file."""
    return method.lower().replace(",", "").replace(" + ", "+").replace(" ", "_")


def run(name: str, folder: Path, device: str) -> dict:  # noqa: ARG001
    """Choose the settings of a method and train its seeds; return its record."""
    return {"method": name, **record(METHODS[name].build, digits("pixels"), RECIPE, AXES, folder)}


def load(folder: Path) -> dict[str, dict]:
    """Return the records of the finished methods by name."""
    return {name: found for name in METHODS if (found := read_json(folder / f"{file_name(name)}.json"))}
