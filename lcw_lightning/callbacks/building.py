"""When a module has its layers: after ``__init__``, ``setup`` or ``configure_model``."""

from collections.abc import Callable
from functools import partial

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lcw_lightning.callbacks.constraint_checks import AVERAGING
from lcw_lightning.callbacks.overrides import Overrides
from lcw_lightning.callbacks.twins import is_a, is_overridden
from lcw_lightning.weights.weight_ref import named_weights

__all__ = ["is_complete", "loads_after_wrapping", "once_built", "waits_for_configure_model"]


def once_built(overrides: Overrides, trainer: Trainer, pl_module: LightningModule, act: Callable[[], None]) -> None:
    """Call ``act`` now, if the module has its layers, or else after its ``configure_model``."""
    if is_complete(trainer, pl_module):
        act()
    elif waits_for_configure_model(trainer, pl_module):
        overrides.add(pl_module, "configure_model", partial(_configure_and, act))


def _configure_and(act: Callable[[], None], configure_model: Callable[[], None]) -> None:
    configure_model()
    act()


def is_complete(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether to constrain the module at once, before its own ``setup`` and ``configure_model``."""
    if not (is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module)):
        return True
    averaged = any(is_a(callback, *AVERAGING) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    sharded = is_a(trainer.strategy, ModelParallelStrategy)
    return (averaged or sharded) and bool(named_weights(pl_module))


def loads_after_wrapping(trainer: Trainer) -> bool:
    """Return whether the strategy loads checkpoints after it has wrapped the module, which must be constrained then."""
    return trainer.strategy.restore_checkpoint_after_setup


def waits_for_configure_model(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether a module that is not complete may be constrained after ``configure_model``."""
    # Without a configure_model of the module, ModelParallelStrategy raises its own error.
    return is_overridden("configure_model", pl_module) or not is_a(trainer.strategy, ModelParallelStrategy)
