"""Names near one that does not exist: of flags, of classes and of their arguments."""

import inspect
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pydoc import ErrorDuringImport, locate
from types import ModuleType
from typing import cast

__all__ = ["near_class", "near_flag", "options_of"]

PLACES = (
    "lcw_lightning",
    "torch.nn",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
)
"""Where a class is looked for that is named without a module."""


def near_flag(given: str, known: Iterable[str]) -> str:
    """Return the known flag that is nearest, an empty string if none is near.

    Example:
        >>> near_flag("--max_epochs", ["--trainer.max_epochs", "--trainer.max_steps"])
        '--trainer.max_epochs'
        >>> near_flag("--constraint.kin", ["--config", "--constraint.kind"])
        '--constraint.kind'
    """
    known = list(known)
    within = [flag for flag in known if flag.endswith(f".{given.lstrip('-')}")]
    return next(iter(within or get_close_matches(given, known, n=1, cutoff=0.75)), "")


def near_class(path: str) -> str:
    """Return the path of the class or function whose name is nearest, an empty string if none is near.

    Example:
        >>> import torch
        >>> near_class("torch.optim.Sgd"), near_class("relu")
        ('torch.optim.SGD', 'torch.nn.ReLU')
    """
    module, _, name = path.rpartition(".")
    places = [sys.modules[place] for place in ([module] if module else PLACES) if place in sys.modules]
    paths = {
        public.lower(): f"{place.__name__}.{public}"
        for place in reversed(places)  # the first place has the last word
        for public in _names_of(place)
    }
    return next((paths[near] for near in get_close_matches(name.lower(), paths, n=1)), "")


def options_of(path: str) -> list[str]:
    """Return the names of the arguments of a class or function, those among its parents' that it hands on too.

    If not all of them can be known, there are none.

    Example:
        >>> options_of("torch.nn.Threshold")
        ['threshold', 'value', 'inplace']
    """
    try:
        found = locate(path)
    except ErrorDuringImport:
        return []
    names: dict[str, None] = {}
    for one in inspect.getmro(found) if inspect.isclass(found) else [found]:
        try:
            parameters = inspect.signature(cast(Callable[..., object], one)).parameters.values()
        except (TypeError, ValueError):
            return []
        names |= {p.name: None for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return list(names)
    return []


def _names_of(place: ModuleType) -> Iterable[str]:
    """Return the names of classes and functions, without an import of what the module loads late."""
    if late := set(getattr(place, "__all__", ())) - vars(place).keys():
        return late
    return [name for name, value in vars(place).items() if callable(value)]
