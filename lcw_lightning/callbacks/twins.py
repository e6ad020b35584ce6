"""Treat classes of lightning.pytorch and pytorch_lightning alike: the same code, but unrelated classes."""

from typing import TypeGuard, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import model_helpers

__all__ = ["is_a", "is_overridden"]

_T = TypeVar("_T")


def is_a(instance: object, *classes: type[_T]) -> TypeGuard[_T]:
    """Return whether an object is of one of Lightning's classes, or of the same class in the other package.

    Example:
        >>> from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
        >>> is_a(EMAWeightAveraging(), WeightAveraging)
        True
    """
    names = {_name(wanted) for wanted in classes}
    return any(_name(base) in names for base in type(instance).__mro__)


def is_overridden(method: str, module: LightningModule) -> bool:
    """Return whether a module, of either package, overrides a method of LightningModule."""
    parent = next(base for base in type(module).__mro__ if _name(base) == _name(LightningModule))
    return model_helpers.is_overridden(method, module, parent)


def _name(cls: type) -> str:
    """Return the full name of a class, the same for both packages."""
    return f"{cls.__module__}.{cls.__qualname__}".replace("pytorch_lightning.", "lightning.pytorch.", 1)
