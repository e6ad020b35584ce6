"""Constrain the weights of any LightningModule before its optimizers and checkpoints see them."""

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import Optimizer
from typing_extensions import override

from lcw_lightning.checkpoints import check_basis, save_constraints, saved_constraints
from lcw_lightning.constraints import Kind, constrain, constrained_weights, fold_, kind_of
from lcw_lightning.layers import named_weights
from lcw_lightning.loading import guard_loading, unguard_loading
from lcw_lightning.patterns import listed, select_weights

__all__ = ["ConstraintCallback"]


class ConstraintCallback(Callback):
    """Constrain weights so that each unit's sum to zero (Kutsuna, Section 3), for fit, validate, test and predict.

    Takes effect before optimizers, the strategy's wrapping and the loading of a checkpoint, whether the module builds
    its layers in ``__init__``, ``setup`` or ``configure_model``. Weights start from the zero-sum values nearest to
    those that are there. A second run with the same module changes nothing. Plain checkpoints load; a run that trained
    plain weights with optimizer state cannot be resumed under the constraint. A checkpoint that does not fit changes
    nothing in the module.

    A module that overrides ``setup`` or ``configure_model`` is constrained after both, so that they may draw weights.
    Under weight averaging and under ModelParallelStrategy, which copy or shard the module earlier, it is constrained
    before them, if its layers are there. After a fit with processes that Lightning starts itself (``ddp_spawn``,
    notebooks) the module of the main process holds the trained zero-sum weights, plain.

    Args:
        kind: The constraint: ``lcw``, or ``none`` to leave the module as it is.
        include: Glob patterns on weight names ``layer.weight``, such as ``network.*``.
        exclude: Glob patterns of weights to leave alone.

    Raises:
        ValueError: At setup, for a pattern that matches no weight, for weights that cannot be constrained, those of
            fan_in 1 among them, and after a weight averaging that has copied the module; for a checkpoint that does not
            fit, is in another basis or holds the optimizer state of plain weights; at train start, for a constrained
            weight that no optimizer trains or whose optimizer has stepped without the constraint.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ConstraintCallback(exclude=["head.*"])], logger=False)
    """

    def __init__(self, kind: Kind = "lcw", include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> None:
        self.kind = kind
        self.include = list(include)
        self.exclude = list(exclude)

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(kind=self.kind, include=self.include, exclude=self.exclude)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        guard_loading(pl_module)
        if self.kind == "none":
            return
        _check_averaging(trainer, pl_module, self)
        if _is_complete(trainer, pl_module):
            self._constrain(pl_module)
        else:
            self._constrain_after_configure_model(pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _let_go(pl_module)
        if stage == "fit" and isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            # The worker's state dict goes back into the main process's module, which is plain.
            fold_(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        _let_go(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_optimizers(trainer.optimizers, pl_module)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        save_constraints(pl_module, checkpoint)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        check_basis(checkpoint)
        constrained = constrained_weights(pl_module)
        if self.kind == "none" and constrained:
            warnings.warn(f"{listed(constrained)} stay constrained although kind is none.", stacklevel=2)
        new = [name for name in constrained if name not in saved_constraints(checkpoint)]
        if new and trainer.state.fn == TrainerFn.FITTING and any(s["state"] for s in checkpoint["optimizer_states"]):
            raise ValueError(
                f"the checkpoint's run trained {listed(new)} without the constraint, so its optimizer state does not "
                "fit; load its weights alone, and fit without ckpt_path."
            )

    def _constrain(self, pl_module: LightningModule) -> None:
        selected = select_weights(pl_module, self.include, self.exclude)
        too_small = [name for name, ref in selected.items() if ref.fan_in == 1]
        if too_small:
            raise ValueError(
                f"a constrained weight needs fan_in >= 2, but fan_in is 1 for {listed(too_small)}, where zero is the "
                "only zero-sum weight; name them in exclude to leave them unconstrained."
            )
        constrain(pl_module, self.kind, self.include, self.exclude)

    def _constrain_after_configure_model(self, pl_module: LightningModule) -> None:
        configure_model = pl_module.configure_model

        def configure_and_constrain() -> None:
            vars(pl_module).pop("configure_model", None)
            configure_model()
            self._constrain(pl_module)

        vars(pl_module)["configure_model"] = configure_and_constrain


def _let_go(pl_module: LightningModule) -> None:
    vars(pl_module).pop("configure_model", None)
    unguard_loading(pl_module)


_AVERAGING = (WeightAveraging, StochasticWeightAveraging)


def _check_averaging(trainer: Trainer, pl_module: LightningModule, callback: ConstraintCallback) -> None:
    """Raise for a weight averaging that copies the module before it can be constrained."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for early in callbacks[: callbacks.index(callback)]:
        if isinstance(early, _AVERAGING):
            raise ValueError(
                f"{type(early).__name__} copies the module in its setup, before ConstraintCallback constrains it; list "
                "ConstraintCallback first."
            )
    for averaging in callbacks:
        if isinstance(averaging, StochasticWeightAveraging) and not named_weights(pl_module):
            raise ValueError(
                "StochasticWeightAveraging copies the module before its setup() or configure_model() builds the "
                "layers; build them in __init__()."
            )


def _check_optimizers(optimizers: Sequence[Optimizer], pl_module: LightningModule) -> None:
    """Raise for a constrained weight that no optimizer trains, or whose optimizer has stepped while it was plain."""
    states = {p: o.state.get(p, {}) for o in optimizers for group in o.param_groups for p in group["params"]}
    weights = {name: ref for name, ref in named_weights(pl_module).items() if kind_of(ref) != "none"}
    trained = {name: [p for p in ref.parameters if p.requires_grad] for name, ref in weights.items()}
    untrained = [name for name, parameters in trained.items() if not states.keys() >= set(parameters)]
    if untrained:
        raise ValueError(
            f"no optimizer holds the constrained weights {listed(untrained)}, so they would never train; make the "
            "optimizer in configure_optimizers(), or freeze them with requires_grad_(False)."
        )
    for name, parameters in trained.items():
        held = [value for parameter in parameters for value in states[parameter].values()]
        if any(getattr(value, "shape", None) == weights[name].value.shape for value in held):
            raise ValueError(
                f"the optimizer of {name!r} has stepped before the weight was constrained, so its state does not fit; "
                "make a new one in configure_optimizers()."
            )


def _is_complete(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether the module is to be constrained now, before its own ``setup`` and ``configure_model``."""
    if not (is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module)):
        return True
    averaged = any(isinstance(callback, _AVERAGING) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    return (averaged or sharded) and bool(named_weights(pl_module))
