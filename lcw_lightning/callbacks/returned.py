"""Remember in the main process which modules were initialized in the processes that Lightning has started from it.

Weights, metrics and the trainer's state are all that comes back from such processes, and no callback is called there.
"""

from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from lcw_lightning.compat import starts_processes

__all__ = ["Initialized", "is_initialized_elsewhere", "send_initialized"]

_FINGERPRINTS: set[float] = set()


def send_initialized(trainer: Trainer, module: nn.Module) -> None:
    """In a worker process, send the main process word that the module, as it goes back, is initialized."""
    if starts_processes(trainer):
        trainer.state.lcw_initialized = Initialized(_fingerprint(module))  # type: ignore[attr-defined]


def is_initialized_elsewhere(module: nn.Module) -> bool:
    """Return whether word has come that a module with these values is initialized."""
    return _fingerprint(module) in _FINGERPRINTS


class Initialized:
    """Word of initialized modules, which a process notes when it receives it."""

    def __init__(self, *fingerprints: float) -> None:
        self.fingerprints = {*_FINGERPRINTS, *fingerprints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _FINGERPRINTS.update(self.fingerprints)


def _fingerprint(module: nn.Module) -> float:
    """Return a number that tells trained modules apart, whether their weights are constrained or not."""
    return sum(p.detach().double().square().sum().item() for p in module.parameters() if p.dim() < 2)
