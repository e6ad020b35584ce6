"""Forward passes in evaluation mode: with unchanged weights, and each after an optimizer's step."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tools.benchmark.methods import METHODS, NETWORKS, constrained
from tools.benchmark.step import batch, sgd
from tools.benchmark.timing import Settings, Task, interleaved


def measure(settings: Settings) -> Iterator[list[dict]]:
    """Yield the rows of each network, one for each method."""
    for network, make in NETWORKS.items():
        for after_step in (False, True):
            case = f"{network}, batch {settings.batch}{', after each step' if after_step else ''}"
            if settings.wants(case):
                networks = {method: constrained(make, method, settings.device) for method in METHODS}
                tasks = {method: evaluation(held, after_step, settings) for method, held in networks.items()}
                yield [{"case": case, **row} for row in interleaved(tasks, settings)]


def evaluation(network: nn.Module, after_step: bool, settings: Settings) -> Task:
    """Return a forward pass; a step before it is not timed."""
    images, labels = batch(settings)
    optimizer = sgd(network)
    if after_step:
        cross_entropy(network(images), labels).backward()
    network.eval()

    def step() -> None:
        network.train()
        optimizer.step()
        network.eval()

    @torch.inference_mode()
    def forward() -> None:
        network(images)

    return Task(forward, step) if after_step else Task(forward)
