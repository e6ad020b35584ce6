"""The kinds of constraint by name, and which of them a weight is under."""

from typing import Literal, get_args

from torch.nn.utils import parametrize

from lcw_lightning.constraints.normalizations import CenteredWeightNorm, SpectralNorm, WeightNorm
from lcw_lightning.constraints.projection import is_projected
from lcw_lightning.constraints.registration import Constraint
from lcw_lightning.constraints.zero_sum import ZeroSum
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["Kind", "Method", "PARAMETRIZATIONS", "check_method", "constraint_of", "is_zero_sum", "kind_of"]

Kind = Literal["none", "lcw", "cwn", "wn", "sn"]
Method = Literal["parametrize", "project"]

PARAMETRIZATIONS: dict[str, type[Constraint]] = {
    "lcw": ZeroSum,
    "cwn": CenteredWeightNorm,
    "wn": WeightNorm,
    "sn": SpectralNorm,
}
"""What stands between what is trained and the weight, by kind."""


def constraint_of(ref: WeightRef) -> Constraint | None:
    """Return what stands between what is trained and a weight, None if it is none of ours."""
    if not parametrize.is_parametrized(ref.layer, ref.name):
        return None
    first = ref.layer.parametrizations[ref.name][0]  # type: ignore[index]
    return first if isinstance(first, Constraint) else None


def kind_of(ref: WeightRef) -> Kind:
    """Return the kind of constraint that a weight is under, by whatever method, ``none`` if it has none of ours."""
    if is_projected(ref):
        return "lcw"
    constraint = constraint_of(ref)
    kinds: list[Kind] = [kind for kind in get_args(Kind) if type(constraint) is PARAMETRIZATIONS.get(kind)]
    return kinds[0] if constraint else "none"


def check_method(kind: str, method: str) -> None:
    """Look whether a kind of constraint can be held by a method.

    Raises:
        ValueError: It cannot, or there is no such method.
    """
    if method not in get_args(Method):
        raise ValueError(f"a constraint is held by the methods {', '.join(get_args(Method))}; got {method!r}.")
    if method == "project" and kind not in ("lcw", "none"):
        raise ValueError(f"method='project' holds kind='lcw' alone, got {kind!r}; take method='parametrize' for it.")


def is_zero_sum(ref: WeightRef) -> bool:
    """Return whether the constraint of a weight lets each unit sum to zero."""
    return kind_of(ref) in ("lcw", "cwn")
