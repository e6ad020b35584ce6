"""Evidence that weights were trained: what projection onto zero sums takes from them, and batches that norms saw."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from lcw_lightning.constraints.kinds import kind_of
from lcw_lightning.theory.projected_share import projected_share, random_share_limit
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["Taken", "batches_seen", "taken_by_projection", "trained_evidence"]


class Taken(NamedTuple):
    """What projection takes from one weight."""

    name: str
    share: float
    """Of the squared norm."""
    times: float
    """The share over its mean for zero-mean random weights."""
    is_alarming: bool
    """Whether such weights have this share with probability below 1e-6."""

    def __str__(self) -> str:
        return (
            f"projection takes {100 * self.share:.2g} % of the squared norm of {self.name!r}, {self.times:.3g} times "
            "what it takes from zero-mean random weights"
        )


@torch.no_grad()
def taken_by_projection(weights: Mapping[str, WeightRef]) -> list[Taken]:
    """Return what projection onto zero sums takes from weights, the most alarming first."""
    found = []
    for name, ref in weights.items():
        if ref.fan_in > 1 and not ref.is_complex and not ref.value.is_meta and not hasattr(ref.value, "device_mesh"):
            units = ref.units
            share, fan_in = projected_share(units), units.shape[1]
            found.append(Taken(name, share, share * fan_in, share > random_share_limit(len(units), fan_in)))
    return sorted(found, key=lambda taken: (not taken.is_alarming, -taken.times))


def batches_seen(modules: Iterable[nn.Module]) -> int:
    """Return how many training batches those BatchNorm layers have seen that are not frozen."""
    trained = (module for module in modules if all(p.requires_grad for p in module.parameters(recurse=False)))
    counters = (getattr(module, "num_batches_tracked", None) for module in trained)
    return max((int(counter) for counter in counters if isinstance(counter, torch.Tensor)), default=0)


def trained_evidence(model: nn.Module, weights: Mapping[str, WeightRef]) -> str:
    """Return what speaks for it that weights of ``model`` were trained, or are not random; empty if nothing does.

    Constrained weights say nothing: projection takes nothing from them.

    Args:
        model: Its BatchNorm layers are asked.
        weights: Those that are about to be changed.

    Example:
        >>> layer = nn.Linear(64, 10)
        >>> trained_evidence(layer, {"weight": WeightRef(layer, "weight")})
        ''
        >>> _ = nn.init.uniform_(layer.weight, 0, 1)
        >>> trained_evidence(layer, {"weight": WeightRef(layer, "weight")})
        "projection takes 7... % of the squared norm of 'weight', 4... times what it takes from ..."
    """
    if batches := batches_seen(model.modules()):
        return f"its BatchNorm layers have seen {batches} batches"
    plain = {name: ref for name, ref in weights.items() if kind_of(ref) == "none"}
    worst = next(iter(taken_by_projection(plain)), None)
    return str(worst) if worst is not None and worst.is_alarming else ""
