"""The kinds of constraint by name, and the kind of a given weight."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

from torch.nn.utils import parametrize

from lcw_lightning.constraints.normalizations import CenteredWeightNorm, SpectralNorm, WeightNorm
from lcw_lightning.constraints.projection import is_projected
from lcw_lightning.constraints.registration import Constraint
from lcw_lightning.constraints.zero_sum import ZeroSum
from lcw_lightning.weights.settings import check_choice, check_patterns
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = [
    "Kind",
    "Method",
    "PARAMETRIZATIONS",
    "check_constraint",
    "computes_as_its_kind",
    "constraint_class",
    "constraint_of",
    "is_zero_sum",
    "kind_of",
]

Kind = Literal["none", "lcw", "cwn", "wn", "sn"]
Method = Literal["parametrize", "project"]

PARAMETRIZATIONS: dict[str, type[Constraint]] = {
    "lcw": ZeroSum,
    "cwn": CenteredWeightNorm,  # before WeightNorm, of which it is a subclass
    "wn": WeightNorm,
    "sn": SpectralNorm,
}
"""The parametrization of each kind."""


def constraint_of(ref: WeightRef) -> Constraint | None:
    """Return our parametrization of a weight, or None."""
    if not parametrize.is_parametrized(ref.layer, ref.name):
        return None
    first = ref.layer.parametrizations[ref.name][0]  # type: ignore[index]
    return first if isinstance(first, Constraint) else None


def kind_of(ref: WeightRef) -> Kind:
    """Return the kind of constraint that a weight is under, by either method; a subclass is of its parent's kind."""
    held = constraint_class(ref)
    kinds = (kind for kind, parametrization in PARAMETRIZATIONS.items() if issubclass(held, parametrization))
    return cast(Kind, next(kinds, "none"))


def constraint_class(ref: WeightRef) -> type[Constraint]:
    """Return the class that states the facts of a weight; Constraint, which states none, for an unconstrained one."""
    if is_projected(ref):
        return ZeroSum
    constraint = constraint_of(ref)
    return Constraint if constraint is None else type(constraint)


def computes_as_its_kind(ref: WeightRef) -> bool:
    """Return whether a weight is parametrized by one of our classes itself: a subclass may compute another weight."""
    return type(constraint_of(ref)) in PARAMETRIZATIONS.values()


def check_constraint(owner: str, kind: str, method: str, include: Sequence[str], exclude: Sequence[str]) -> None:
    """Raise unless there are such a kind of constraint and such a method, which can hold it; ``owner`` asks for it.

    Raises:
        ValueError: The method cannot hold the kind, there is no such kind or method, or patterns are no lists.
    """
    check_choice(owner, "kind", kind, get_args(Kind))
    check_choice(owner, "method", method, get_args(Method))
    check_patterns(owner, include, exclude)
    if method == "project" and kind not in ("lcw", "none"):
        raise ValueError(f"method='project' holds kind='lcw' alone, got {kind!r}; take method='parametrize' for it.")


def is_zero_sum(ref: WeightRef) -> bool:
    """Return whether the constraint of a weight makes each unit sum to zero."""
    return constraint_class(ref).sums_to_zero
