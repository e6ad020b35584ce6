"""Select weights by globs on their names, with messages that help when nothing matches."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from lcw_lightning.weights.settings import check_patterns
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = ["by_reason", "listed", "select_names", "select_weights"]


def select_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, WeightRef]:
    """Return the :func:`named_weights` that match a glob of ``include`` and none of ``exclude``.

    Raises:
        ValueError: As :func:`select_names` says.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
        >>> list(select_weights(model, exclude=["2.*"]))
        ['0.weight']
    """
    weights = named_weights(model)
    selected = select_names(weights, include, exclude, type(model).__name__)
    return {name: ref for name, ref in weights.items() if name in selected}


def select_names(names: Collection[str], include: Sequence[str], exclude: Sequence[str], owner: str) -> set[str]:
    """Return the names that match a glob of ``include`` and none of ``exclude``.

    Args:
        names: Names of the weights of a model.
        include: Glob patterns.
        exclude: Glob patterns.
        owner: The model's class, for messages.

    Raises:
        ValueError: Something else in place of a list of patterns, a pattern that matches no name, or no name is left.
    """
    check_patterns(f"weights of {owner}", include, exclude)
    matches = {glob: {name for name in names if fnmatchcase(name, glob)} for glob in (*include, *exclude)}
    for pattern, matching in matches.items():
        if not matching:
            raise ValueError(_no_match(pattern, names, owner))
    chosen = set().union(*(matches[glob] for glob in include)).difference(*(matches[glob] for glob in exclude))
    if not chosen:
        raise ValueError(
            f"include={list(include)} and exclude={list(exclude)} leave no weight of {owner}; it has {listed(names)}."
        )
    return chosen


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the names for a message, the first ``most`` of them in full.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    names = [repr(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def by_reason(reasons: Mapping[str, str], most: int = 5) -> str:
    """Return names grouped by their reasons for a message; of each group the first ``most`` names in full.

    Example:
        >>> by_reason({"a": "zero weights", "b": "frozen", "c": "zero weights"})
        "'a', 'c' (zero weights), 'b' (frozen)"
    """
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return ", ".join(f"{listed(names, most)} ({reason})" for reason, names in groups.items())


def _no_match(pattern: str, names: Collection[str], owner: str) -> str:
    if not names:
        return (
            f"{owner} has no weight for the pattern {pattern!r}: it needs a layer of Linear, Conv1d, Conv2d, Conv3d, "
            "ConvTranspose1d to 3d, Bilinear, RNN, LSTM, GRU, MultiheadAttention, or of register_layer_type()."
        )
    near = get_close_matches(pattern, names, n=3, cutoff=0.0)
    return (
        f"the pattern {pattern!r} matches no weight of {owner}; near it are {listed(near)} "
        f"({len(names)} weights in all, named 'layer.weight')."
    )
