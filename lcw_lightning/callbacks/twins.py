"""lightning.pytorch and pytorch_lightning are one code under two names, whose classes are strangers to each other."""

from typing import TypeGuard, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import model_helpers

__all__ = ["is_a", "is_overridden"]

_T = TypeVar("_T")


def is_a(instance: object, *classes: type[_T]) -> TypeGuard[_T]:
    """Return whether an object is of one of Lightning's classes, or of its twin in the other package.

    Example:
        >>> from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
        >>> is_a(EMAWeightAveraging(), WeightAveraging)
        True
    """
    names = {_name(wanted) for wanted in classes}
    return any(_name(base) in names for base in type(instance).__mro__)


def is_overridden(method: str, module: LightningModule) -> bool:
    """Return whether a module, of either package, has a method of its own in place of Lightning's."""
    parent = next(base for base in type(module).__mro__ if _name(base) == _name(LightningModule))
    return model_helpers.is_overridden(method, module, parent)


def _name(cls: type) -> str:
    """Return where a class is defined, with one name for both packages."""
    return f"{cls.__module__}.{cls.__qualname__}".replace("pytorch_lightning.", "lightning.pytorch.", 1)
