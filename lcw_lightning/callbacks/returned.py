"""Remember in the main process which modules were initialized in the processes that Lightning has started from it.

Weights, metrics and the trainer's state are all that comes back from such processes, and no callback is called there.
"""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lcw_lightning.compat import starts_processes
from lcw_lightning.weights.restoring import at_rest
from lcw_lightning.weights.weight_ref import named_weights

__all__ = ["Initialized", "fingerprint", "is_initialized_elsewhere", "send_initialized"]

_FINGERPRINTS: set[float] = set()


def send_initialized(trainer: Trainer, module: nn.Module) -> None:
    """In a worker process, send the main process word that the module, as it goes back, is initialized."""
    if starts_processes(trainer):
        trainer.state.lcw_initialized = Initialized(fingerprint(module))  # type: ignore[attr-defined]


def is_initialized_elsewhere(module: nn.Module) -> bool:
    """Return whether word has come that a module with these values is initialized."""
    return bool(_FINGERPRINTS) and fingerprint(module) in _FINGERPRINTS


class Initialized:
    """Word of initialized modules, which a process notes when it receives it."""

    def __init__(self, *fingerprints: float) -> None:
        self.fingerprints = {*_FINGERPRINTS, *fingerprints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _FINGERPRINTS.update(self.fingerprints)


@torch.no_grad()
def fingerprint(module: nn.Module) -> float:
    """Return a number that tells modules apart by their values, whether their weights are constrained or not.

    Example:
        >>> from lcw_lightning import fold, linearly_constrained
        >>> layer = linearly_constrained(nn.Linear(3, 2, bias=False))
        >>> fingerprint(layer) == fingerprint(fold(layer))
        True
    """
    tensors: list[Tensor] = [p for p in module.parameters() if not is_lazy(p) and p.dim() < 2]
    if not tensors:  # without biases and norms the weights must do, as their layers use them
        refs = named_weights(module).values()
        with at_rest(ref.layer for ref in refs):
            tensors = [ref.value for ref in refs]
    total = sum(tensor.abs().double().square().sum().item() for tensor in tensors if not is_lazy(tensor))
    return float(f"{total:.9e}")  # processes may add up in another order
