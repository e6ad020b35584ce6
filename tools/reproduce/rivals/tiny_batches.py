"""Networks trained on tiny batches: LCW against norms and centered weight normalization, at equal numbers of images.

Learning rates are chosen for each method and batch size on held-out images, from one grid that is extended where the
best lies at an edge; then five seeds are trained. CWN centres each unit's weights and divides them by their norm, times
a gain that is trained: this is scaled weight standardization (but for that method's constant for each activation).
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from lcw_lightning import constrain, minibatch_init_
from lcw_lightning.constraints.kinds import Kind
from tools.readme import show
from tools.records import read_json
from tools.reproduce.rivals import tiny_batches_report as report
from tools.reproduce.rivals.choosing import Axis
from tools.reproduce.rivals.training import Data, Recipe, cifar10_subset, digits, record
from tools.reproduce.runs import exit_without_runs, run_all

GROUPS = 8  # of GroupNorm

MakeNorm = Callable[[int, bool], nn.Module]  # from the number of units and whether there are images


def no_norm(units: int, images: bool) -> nn.Module:  # noqa: ARG001
    """Return nothing to do."""
    return nn.Identity()


def batch_norm(units: int, images: bool) -> nn.Module:
    """Return BatchNorm of vectors or of images."""
    return nn.BatchNorm2d(units) if images else nn.BatchNorm1d(units)


def layer_norm(units: int, images: bool) -> nn.Module:  # noqa: ARG001
    """Return layer normalization over units and positions, as the package's networks have it."""
    return nn.GroupNorm(1, units)


def group_norm(units: int, images: bool) -> nn.Module:  # noqa: ARG001
    """Return group normalization."""
    return nn.GroupNorm(GROUPS, units)


class Method(NamedTuple):
    """What is done to a network before it is trained.

    Attributes:
        kind: The constraint.
        minibatch: Whether weights are rescaled on a minibatch.
        norm: Makes the module between each hidden layer and its activation.
    """

    kind: Kind = "none"
    minibatch: bool = False
    norm: MakeNorm = no_norm


METHODS = {
    "plain": Method(minibatch=True),
    "LCW": Method("lcw", minibatch=True),
    "BN": Method(norm=batch_norm),
    "BN + init": Method(norm=batch_norm, minibatch=True),
    "LN": Method(norm=layer_norm),
    "GN": Method(norm=group_norm),
    "CWN": Method("cwn", minibatch=True),
}


def mlp(norm: MakeNorm) -> nn.Module:
    """Return 20 layers of 64 sigmoid units, drawn as Glorot's."""
    hidden = [part for _ in range(20) for part in (nn.Linear(64, 64), norm(64, False), nn.Sigmoid())]
    network = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def convnet(norm: MakeNorm) -> nn.Module:
    """Return four 3 x 3 convolutions with ReLU, 16 and 32 channels with stride 2, then 32, then 64 with stride 2.

    Logits come from the channels' means over the 4 x 4 positions that are left. Weights are drawn as He's.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((3, 16, 32, 32, 64)):
        convolution = nn.Conv2d(fan_in, fan_out, 3, stride=1 if fan_in == fan_out else 2, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
        layers += [convolution, norm(fan_out, True), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Network(NamedTuple):
    """A network, its data, and how much is trained.

    Attributes:
        title: For tables.
        make: Makes the network with a norm.
        data: Returns the images, given the folder of the data.
        batches: The batch sizes.
        images: Images seen in a run.
        choosing_images: Images seen in a run that chooses the rate.
        rate: The middle of the grid at batch 32; that of other sizes is proportional to the size.
    """

    title: str
    make: Callable[[MakeNorm], nn.Module]
    data: Callable[[Path | None], Data]
    batches: tuple[int, ...]
    images: int
    choosing_images: int
    rate: float

    def axis(self, batch: int) -> Axis:
        """Return the grid of rates at a batch size."""
        return Axis("rate", self.rate / 4 * batch / 32, 4.0)


NETWORKS = {
    "mlp": Network(
        "20 sigmoid layers on the digits",
        mlp,
        lambda _: digits(),
        (1, 2, 4, 8, 32),
        images=2 * 1200,
        choosing_images=1200,
        rate=0.05,
    ),
    "convnet": Network(
        "four ReLU convolutions on 10,000 images of CIFAR-10",
        convnet,
        cifar10_subset,
        (2, 4, 8, 32),
        images=10_000,
        choosing_images=1_250,
        rate=0.025,
    ),
}
CASES = [(network, batch, method) for network, its in NETWORKS.items() for batch in its.batches for method in METHODS]


def main(arguments: argparse.Namespace) -> None:
    """Do the runs that are missing and print the tables, or report."""
    if not arguments.report:
        shard, shards = arguments.shard
        quick_first = sorted(CASES, key=lambda case: -case[1])  # large batches are few steps
        mine = quick_first[shard - 1 :: shards]
        jobs = {file_name(*case): partial(run, *case, data_dir=arguments.data_dir) for case in mine}
        run_all(jobs, arguments.output, ["cpu"])
    records = load(arguments.output)
    if not records:
        exit_without_runs(arguments.output)
    for network, mine in records.items():
        axis_of = NETWORKS[network].axis
        show(f"tiny_batches_{network}", report.table(mine), write=arguments.report)
        show(f"tiny_batches_{network}_rates", report.rates(mine), write=arguments.report)
        show(f"tiny_batches_{network}_same", report.same_rates(mine, axis_of), write=arguments.report)
    if arguments.report:
        titles = {network: NETWORKS[network].title for network in records}
        report.picture(records, titles).savefig(arguments.output / "tiny_batches.png", dpi=110)


def file_name(network: str, batch: int, method: str) -> str:
    """Return the name of a JSON file."""
    return f"{network}_batch{batch}_{method.lower().replace(' ', '')}"


def run(network: str, batch: int, method: str, folder: Path, device: str, data_dir: Path | None) -> dict:  # noqa: ARG001
    """Choose the rate of a method at a batch size and train its seeds; return its record."""
    setting = NETWORKS[network]
    recipe = Recipe(batch, setting.images, setting.choosing_images)
    found = record(partial(build, network, method), setting.data(data_dir), recipe, (setting.axis(batch),), folder)
    return {"network": network, "batch": batch, "method": method, **found}


def build(network: str, method: str, settings: dict[str, float], images: Tensor) -> nn.Module:  # noqa: ARG001
    """Return the network before training."""
    how = METHODS[method]
    made = NETWORKS[network].make(how.norm)
    constrain(made, how.kind)
    return minibatch_init_(made, images) if how.minibatch else made


def load(folder: Path) -> dict[str, report.Records]:
    """Return the records of the finished cases, by network, then by batch size and method."""
    found = {case: read_json(folder / f"{file_name(*case)}.json") for case in CASES}
    by_network = {
        network: {case[1:]: record for case, record in found.items() if case[0] == network and record}
        for network in NETWORKS
    }
    return {network: records for network, records in by_network.items() if records}
