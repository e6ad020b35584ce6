"""Constrain the weights of any LightningModule before its optimizers and checkpoints see them."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lcw_lightning.callbacks.constraint_checks import (
    averagings_before,
    check_averaging,
    check_optimizers,
    check_projected_still,
    check_strategy,
    check_trained_alike,
    is_complete,
    waits_for_configure_model,
)
from lcw_lightning.callbacks.forgetting import forget_module
from lcw_lightning.callbacks.overrides import Overrides
from lcw_lightning.checkpoints.all_or_nothing import load_all_or_nothing
from lcw_lightning.checkpoints.record import read_record, save_record
from lcw_lightning.compat import starts_processes
from lcw_lightning.constraints.constrain import constrain, constrained_weights, with_fan_in_1
from lcw_lightning.constraints.fold import remove_constraints_
from lcw_lightning.constraints.kinds import Kind, Method, check_method, kind_of
from lcw_lightning.constraints.projection import renew_projections_
from lcw_lightning.weights.selection import listed, select_weights

__all__ = ["ConstraintCallback"]


class ConstraintCallback(Callback):
    """Constrain weights so that each unit's sum to zero (Kutsuna, Section 3), for fit, validate, test and predict.

    ``kind`` puts one of the constraint's rivals (Section 5) in its place. ``method="project"`` holds ``lcw`` at nearly
    no cost, without a parametrization: see :func:`~lcw_lightning.constrain`, also for what it means under Adam.

    Takes effect before optimizers, the strategy's wrapping and the loading of a checkpoint, whether the module builds
    its layers in ``__init__``, ``setup`` or ``configure_model``. Weights start from the values nearest to those that
    are there. A second run with the same module changes nothing. Plain checkpoints load; a run that trained plain
    weights with optimizer state cannot be resumed under the constraint, nor can one that had another kind of it. A
    checkpoint that does not fit changes nothing in the module, except under ModelParallelStrategy, which loads before
    anybody is asked. A run is resumed with the method that it had.

    A module that overrides ``setup`` or ``configure_model`` is constrained after both, so that they may draw weights.
    Under weight averaging and under ModelParallelStrategy, which copy or shard the module earlier, it is constrained
    before them: build and draw its layers in ``__init__`` then. After a fit with processes that Lightning starts
    itself (``ddp_spawn``, notebooks) the module of the main process holds the trained weights, plain unless they were
    constrained before.

    Networks that a module or data module keeps among its hyperparameters are plain ones in checkpoints, as in those of
    a plain run.

    Args:
        kind: ``lcw`` (zero-sum weights), ``cwn`` (centered weight normalization: zero-sum weights with a trained norm),
            ``wn`` (weight normalization), ``sn`` (spectral normalization), or ``none`` to leave the module as it is.
        method: ``parametrize``, or ``project`` for ``lcw`` weights that stay ordinary parameters, whose gradients are
            centred as they accumulate.
        include: Glob patterns on weight names ``layer.weight``, such as ``network.*``.
        exclude: Glob patterns of weights to leave alone.

    Raises:
        ValueError: At once, for ``project`` with a kind that it cannot hold; at setup, for a pattern that matches no
            weight, for weights that cannot be constrained, those of fan_in 1 among them under ``lcw`` and ``cwn``,
            for a weight averaging that copies the module before its layers are built, and under a strategy that
            flattens parameters, with ``project``; for a checkpoint that does not fit, is in another basis, of another
            kind or method, or holds the optimizer state of plain weights; at train start, for a weight that came too
            late to be constrained, that no optimizer trains, such as one made before the module was constrained, or
            whose optimizer stepped while it was plain.

    Warns:
        UserWarning: ``kind`` is none, but a checkpoint brings constraints that its module restores.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ConstraintCallback(exclude=["head.*"])], logger=False)
    """

    def __init__(
        self,
        kind: Kind = "lcw",
        method: Method = "parametrize",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        check_method(kind, method)
        self.kind = kind
        self.method = method
        self.include = list(include)
        self.exclude = list(exclude)
        self._new: list[str] = []  # the weights that this run has constrained
        self._found: list[str] = []  # those that were constrained before
        self._overrides = Overrides()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._new, self._found = [], list(constrained_weights(pl_module))
        self._overrides.add(pl_module, "load_state_dict", partial(load_all_or_nothing, pl_module))
        self._overrides.add(pl_module, "on_load_checkpoint", partial(self._check_checkpoint, trainer, pl_module))
        self._overrides.add(pl_module, "on_save_checkpoint", partial(_save_with_constraints, pl_module))
        if self.kind == "none":
            return
        if self.method == "project":
            check_strategy(trainer)
        check_averaging(trainer, pl_module)
        if is_complete(trainer, pl_module):
            self._constrain(pl_module)
            for averaging in averagings_before(trainer, self):
                averaging.setup(trainer, pl_module, stage)  # its first copy is a plain module
        elif waits_for_configure_model(trainer, pl_module):
            self._overrides.add(pl_module, "configure_model", partial(self._configure_and_constrain, pl_module))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._overrides.restore()
        if stage == "fit" and starts_processes(trainer):
            # The worker's state dict goes back into the main process's module, which is as this process has found it.
            remove_constraints_(pl_module, keep=self._found)
        forget_module(self)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._overrides.restore()
        forget_module(self)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        selected = {} if self.kind == "none" else select_weights(pl_module, self.include, self.exclude)
        renew_projections_(pl_module)  # sharding makes other parameters
        late = [name for name, ref in selected.items() if kind_of(ref) == "none"]
        if late:
            raise ValueError(
                f"{listed(late)} came after the module was constrained; build these layers in setup() or "
                "configure_model(), under weight averaging and sharding in __init__(), or name them in exclude."
            )
        check_optimizers(trainer.optimizers, pl_module, self._new)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        save_record(pl_module, checkpoint)  # after a run, when the module's own hook is its own again

    def _check_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, load: Callable[..., None], checkpoint: dict[str, Any]
    ) -> None:
        # In place of the module's own hook, since that of callbacks comes after the weights are loaded.
        record = read_record(checkpoint)
        record.check(pl_module)
        trained = any(optimizer["state"] for optimizer in checkpoint.get("optimizer_states", ()))
        resumed = trained and trainer.state.fn == TrainerFn.FITTING
        if resumed:
            check_trained_alike(pl_module, record, checkpoint)
        load(checkpoint)
        if resumed:
            check_projected_still(pl_module, record)  # now, since the module's own hook may have restored it
        self._new = []
        if self.kind == "none" and (constrained := constrained_weights(pl_module)):
            warnings.warn(f"{listed(constrained)} stay constrained although kind is none.", stacklevel=2)

    def _constrain(self, pl_module: LightningModule) -> None:
        selected = select_weights(pl_module, self.include, self.exclude)
        if too_small := with_fan_in_1(selected, self.kind):
            raise ValueError(
                f"a constrained weight needs fan_in >= 2, but fan_in is 1 for {listed(too_small)}, where zero is the "
                "only zero-sum weight; name them in exclude to leave them unconstrained."
            )
        before = constrained_weights(pl_module)
        constrained = constrain(pl_module, self.kind, self.include, self.exclude, self.method)
        self._new += [name for name in constrained if name not in before]

    def _configure_and_constrain(self, pl_module: LightningModule, configure_model: Callable[[], None]) -> None:
        configure_model()
        self._constrain(pl_module)


def _save_with_constraints(pl_module: LightningModule, save: Callable[..., None], checkpoint: dict[str, Any]) -> None:
    # Lightning asks callbacks only for checkpoints with optimizer state.
    save(checkpoint)
    save_record(pl_module, checkpoint)
