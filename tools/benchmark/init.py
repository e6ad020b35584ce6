"""Minibatch initialization of VGG19, against a plain forward pass on the same batch."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from lcw_lightning import minibatch_init_
from tools.benchmark.methods import NETWORKS, constrained
from tools.benchmark.step import batch
from tools.benchmark.timing import Settings, Task, interleaved

INITIALIZED = ("plain", "LCW", "LCW, project", "CWN")  # the methods that minibatch_init_ is for


def measure(settings: Settings) -> Iterator[list[dict]]:
    """Yield the rows; ``plain`` is a forward pass of the plain network in training mode."""
    case = f"VGG19, batch {settings.batch}"
    if not settings.wants(case):
        return
    images, _ = batch(settings)
    networks = {method: constrained(NETWORKS["VGG19"], method, settings.device) for method in INITIALIZED}
    tasks = {"plain": Task(forward(networks["plain"], images))}
    for method, network in networks.items():
        tasks[f"minibatch_init_, {method}"] = Task(initialize(network, images))
    yield [{"case": case, **row} for row in interleaved(tasks, settings)]


def forward(network: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Return a forward pass in training mode without gradients, as minibatch initialization does one."""

    @torch.no_grad()
    def run() -> None:
        network(images)

    return run


def initialize(network: nn.Module, images: torch.Tensor) -> Callable[[], nn.Module]:
    """Return a minibatch initialization, which costs the same each time."""
    return lambda: minibatch_init_(network, images)
