"""Check what a user gives, where it is given: the model, names that must be one of a few, and glob patterns."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, SupportsFloat

from torch import nn

__all__ = ["check_choice", "check_model", "check_patterns", "check_positive"]


def check_model(model: object) -> None:
    """Raise unless ``model`` is a module: a class of modules, a list or a state dict is none.

    Raises:
        ValueError: It is something else, with what to do.

    Example:
        >>> check_model(nn.Linear)
        Traceback (most recent call last):
        ValueError: the model must be a torch.nn.Module, got the class Linear itself; make a module of it: Linear(...).
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        name = model.__name__
        raise ValueError(
            f"the model must be a torch.nn.Module, got the class {name} itself; make a module of it: {name}(...)."
        )
    raise ValueError(f"the model must be a torch.nn.Module, got a {type(model).__name__}; give the network itself.")


def check_choice(owner: str, setting: str, given: object, choices: Sequence[str]) -> None:
    """Raise unless a setting is one of ``choices``.

    Args:
        owner: Whose setting it is, for the message.
        setting: Its name.
        given: Its value.
        choices: The values that it may have.

    Raises:
        ValueError: It is something else, with the nearest choice.

    Example:
        >>> check_choice("constrain", "kind", "LCW", ("none", "lcw"))
        Traceback (most recent call last):
        ValueError: constrain: kind is one of 'none', 'lcw'; got 'LCW', near it is 'lcw'.
    """
    if isinstance(given, str) and given in choices:
        return
    near = get_close_matches(given.lower(), choices, n=1) if isinstance(given, str) else []
    advice = f", near it is {near[0]!r}" if near else ""
    if isinstance(given, list | tuple | set):
        advice = "; give patterns by name, include=[...] or exclude=[...]"
    raise ValueError(f"{owner}: {setting} is one of {', '.join(map(repr, choices))}; got {given!r}{advice}.")


def check_patterns(owner: str, include: Any, exclude: Any) -> None:
    """Raise unless ``include`` and ``exclude`` are lists of glob patterns; a string is none.

    Raises:
        ValueError: One is something else, with how to write it.

    Example:
        >>> check_patterns("ShiftMonitor", ["*"], "head.*")
        Traceback (most recent call last):
        ValueError: ShiftMonitor: exclude is a list of patterns, got the string 'head.*'; write exclude=['head.*'].
    """
    for setting, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            instead = f"{setting}=[{patterns!r}]"
            raise ValueError(f"{owner}: {setting} is a list of patterns, got the string {patterns!r}; write {instead}.")
        if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ValueError(f"{owner}: {setting} is a list of patterns such as ['head.*'], got {patterns!r}.")


def check_positive(owner: str, setting: str, given: Any) -> None:
    """Raise unless a setting is a number above zero.

    Raises:
        ValueError: It is zero, negative, NaN or no number.
    """
    if not (isinstance(given, SupportsFloat) and given > 0):  # type: ignore[operator]
        raise ValueError(f"{owner} needs {setting} > 0, got {given!r}.")
