"""Constrain the weights of any LightningModule before its optimizers and checkpoints see them."""

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lcw_lightning.constraints import (
    Kind,
    check_basis,
    constrain,
    constrained_weights,
    save_constraints,
    saved_constraints,
)
from lcw_lightning.layers import listed, named_weights, select_weights

__all__ = ["ConstraintCallback"]


class ConstraintCallback(Callback):
    """Constrain weights so that each unit's sum to zero (Kutsuna, Section 3), for fit, validate, test and predict.

    Takes effect before optimizers, the strategy's wrapping and the loading of a checkpoint, whether the module builds
    its layers in ``__init__``, ``setup`` or ``configure_model``. Weights start from the zero-sum values nearest to
    those that are there. A second run with the same module changes nothing. Plain checkpoints load; a run that trained
    plain weights with optimizer state cannot be resumed under the constraint.

    In a list of callbacks it comes before those that copy the module in their ``setup``, such as weight averaging. A
    module that overrides ``setup`` or ``configure_model`` is constrained after both, too late for these.

    Args:
        kind: The constraint: ``lcw``, or ``none`` to leave the module as it is.
        include: Glob patterns on weight names ``layer.weight``, such as ``network.*``.
        exclude: Glob patterns of weights to leave alone.

    Raises:
        ValueError: At setup, for a pattern that matches no weight and for weights that cannot be constrained, those of
            fan_in 1 among them; for a full checkpoint in another basis or with the optimizer state of plain weights;
            at train start, for a constrained weight that no optimizer trains.

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
        # Both hooks run after this one, and may build layers.
        if is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module):
            self._constrain_after_configure_model(pl_module)
        else:
            self._constrain(pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        vars(pl_module).pop("configure_model", None)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        vars(pl_module).pop("configure_model", None)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        weights = named_weights(pl_module)
        untrained = [
            name
            for name in constrained_weights(pl_module)
            if any(p.requires_grad and id(p) not in held for p in weights[name].parameters)
        ]
        if untrained:
            raise ValueError(
                f"no optimizer holds the constrained weights {listed(untrained)}, so they would never train; make the "
                "optimizer in configure_optimizers(), or freeze them with requires_grad_(False)."
            )

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
        if self.kind != "none":
            selected = select_weights(pl_module, self.include, self.exclude)
            too_small = [name for name, ref in selected.items() if ref.fan_in == 1]
            if too_small:
                raise ValueError(
                    f"a constrained weight needs fan_in >= 2, but fan_in is 1 for {listed(too_small)}, where zero is "
                    "the only zero-sum weight; name them in exclude to leave them unconstrained."
                )
        constrain(pl_module, self.kind, self.include, self.exclude)

    def _constrain_after_configure_model(self, pl_module: LightningModule) -> None:
        configure_model = pl_module.configure_model

        def configure_and_constrain() -> None:
            vars(pl_module).pop("configure_model", None)
            configure_model()
            self._constrain(pl_module)

        vars(pl_module)["configure_model"] = configure_and_constrain
