"""What a run must be like for a constraint to hold: when its module is whole, who copies it, what trains it."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer

from lcw_lightning.kinds import kind_of
from lcw_lightning.layers import named_weights
from lcw_lightning.patterns import listed

__all__ = ["check_averaging", "check_optimizers", "is_complete", "waits_for_configure_model"]

_AVERAGING = (WeightAveraging, StochasticWeightAveraging)


def check_averaging(trainer: Trainer, pl_module: LightningModule, callback: Callback) -> None:
    """Look who copies the module.

    Raises:
        ValueError: A weight averaging copies it before it can be constrained.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for early in callbacks[: callbacks.index(callback)]:
        if isinstance(early, _AVERAGING):
            raise ValueError(
                f"{type(early).__name__} copies the module in its setup, before ConstraintCallback constrains it; list "
                "ConstraintCallback first."
            )
    if named_weights(pl_module):
        return
    for averaging in callbacks:
        calls_configure_model = isinstance(averaging, WeightAveraging) and is_overridden("configure_model", pl_module)
        if isinstance(averaging, _AVERAGING) and not calls_configure_model:
            raise ValueError(
                f"{type(averaging).__name__} copies the module before its setup() or configure_model() builds the "
                "layers; build them in __init__()."
            )


def check_optimizers(optimizers: Sequence[Optimizer], pl_module: LightningModule, new: Sequence[str]) -> None:
    """Look who trains the constrained weights, the ``new`` ones among them constrained in this run.

    Raises:
        ValueError: No optimizer trains one of them, or its optimizer has stepped while it was plain.
    """
    states = {p: o.state.get(p, {}) for o in optimizers for group in o.param_groups for p in group["params"]}
    weights = {name: ref for name, ref in named_weights(pl_module).items() if kind_of(ref) != "none"}
    trained = {name: [p for p in ref.parameters if p.requires_grad] for name, ref in weights.items()}
    untrained = [name for name, parameters in trained.items() if not states.keys() >= set(parameters)]
    if untrained:
        raise ValueError(
            f"no optimizer holds the constrained weights {listed(untrained)}, so they would never train; make the "
            "optimizer in configure_optimizers(), or freeze them with requires_grad_(False)."
        )
    for name in new:
        if any(not _is_state_of(p, value) for p in trained[name] for value in states[p].values()):
            raise ValueError(
                f"the optimizer of {name!r} has stepped before the weight was constrained, so its state does not fit; "
                "make a new one in configure_optimizers()."
            )


def _is_state_of(parameter: nn.Parameter, value: Any) -> bool:
    # Averages have the parameter's shape, factored ones that of a row or a column, counters none.
    pairs = zip(reversed(getattr(value, "shape", ())), reversed(parameter.shape), strict=False)
    return all(size in (1, wanted) for size, wanted in pairs)


def is_complete(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether the module is to be constrained now, before its own ``setup`` and ``configure_model``."""
    if not (is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module)):
        return True
    averaged = any(isinstance(callback, _AVERAGING) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    return (averaged or sharded) and bool(named_weights(pl_module))


def waits_for_configure_model(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether a module that is not complete may be constrained after ``configure_model``."""
    # ModelParallelStrategy asks for one of the module's own, and is right to say so itself.
    return is_overridden("configure_model", pl_module) or not isinstance(trainer.strategy, ModelParallelStrategy)
