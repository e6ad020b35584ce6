"""Select weights by globs on their names, with messages that help when nothing matches."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from lcw_lightning.weights.layer_types import WEIGHT_NAMES
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = ["listed", "select_weights"]


def select_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, WeightRef]:
    """Return the :func:`named_weights` that match a glob of ``include`` and none of ``exclude``.

    Raises:
        ValueError: A string in place of a list, a pattern that matches no weight, or no weight is left.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
        >>> list(select_weights(model, exclude=["2.*"]))
        ['0.weight']
    """
    weights = named_weights(model)
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(f"{argument} is a list of patterns, got the string {patterns!r}; write [{patterns!r}].")
    matches = {glob: {name for name in weights if fnmatchcase(name, glob)} for glob in (*include, *exclude)}
    for pattern, names in matches.items():
        if not names:
            raise ValueError(_no_match(pattern, weights, model))
    chosen = set().union(*(matches[glob] for glob in include)).difference(*(matches[glob] for glob in exclude))
    selected = {name: ref for name, ref in weights.items() if name in chosen}
    if not selected:
        raise ValueError(
            f"include={list(include)} and exclude={list(exclude)} leave no weight of {type(model).__name__}; "
            f"it has {listed(weights)}."
        )
    return selected


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the names for a message, the first ``most`` of them in full.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    names = [repr(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _no_match(pattern: str, names: Iterable[str], model: nn.Module) -> str:
    names = list(names)
    if not names:
        kinds = ", ".join(kind.__name__ for kind in WEIGHT_NAMES)
        return f"{type(model).__name__} has no weight for the pattern {pattern!r}: it needs a layer of {kinds}."
    near = get_close_matches(pattern, names, n=3, cutoff=0.0)
    return (
        f"the pattern {pattern!r} matches no weight of {type(model).__name__}; near it are {listed(near)} "
        f"({len(names)} weights in all, named 'layer.weight')."
    )
