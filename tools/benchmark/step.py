"""Training steps: forward, backward and SGD with momentum and weight decay."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from tools.benchmark.methods import METHODS, NETWORKS, constrained
from tools.benchmark.timing import Settings, Task, interleaved


def measure(settings: Settings) -> Iterator[list[dict]]:
    """Yield the rows of each network, one for each method."""
    for network, make in NETWORKS.items():
        kind = f"{', compiled' if settings.compile else ''}{', bf16-mixed' if settings.precision != '32' else ''}"
        case = f"{network}, batch {settings.batch}{kind}"
        if settings.wants(case):
            networks = {method: constrained(make, method, settings.device) for method in METHODS}
            tasks = {method: Task(step(held, sgd(held), settings)) for method, held in networks.items()}
            yield [{"case": case, **row} for row in interleaved(tasks, settings)]


def sgd(network: nn.Module) -> SGD:
    """Return the paper's optimizer, with a small learning rate: weights hardly change while they are measured."""
    return SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)


def step(network: nn.Module, optimizer: SGD, settings: Settings) -> Callable[[], None]:
    """Return a training step on one batch, after which there are no gradients."""
    images, labels = batch(settings)
    forward = compiled(network) if settings.compile else network

    def run() -> None:
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
            loss = cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Return images of CIFAR-10's size and their labels, the same in each call."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(settings.batch, 3, 32, 32, generator=random)
    labels = torch.randint(10, (settings.batch,), generator=random)
    return images.to(settings.device), labels.to(settings.device)


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the compiled forward pass of the whole network."""

    def forward(images: Tensor) -> Tensor:
        return network(images)

    # torch keeps compiled code by code object. All methods would share this one, and each call would try them in turn.
    forward.__code__ = forward.__code__.replace()
    return torch.compile(forward)
