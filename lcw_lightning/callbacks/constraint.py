"""Constrain the weights of any LightningModule before its optimizers and checkpoints see them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lcw_lightning.callbacks.building import is_complete, loads_after_wrapping, once_built
from lcw_lightning.callbacks.constraint_checks import (
    averagings_before,
    check_averaging,
    check_nothing_dropped,
    check_optimizers,
    check_pruning,
    check_strategy,
    check_trained_alike,
    load_optimizers,
)
from lcw_lightning.callbacks.constraint_evaluation import (
    follow_checkpoint,
    record_of,
    warn_of_constraints,
    warn_of_plain_weights,
)
from lcw_lightning.callbacks.constraint_said import say_what_projection_takes
from lcw_lightning.callbacks.forgetting import forget_module
from lcw_lightning.callbacks.overrides import Overrides
from lcw_lightning.callbacks.puts_back import PutsBack
from lcw_lightning.checkpoints.all_or_nothing import load_all_or_nothing
from lcw_lightning.checkpoints.record import read_record, save_record
from lcw_lightning.compat import starts_processes
from lcw_lightning.constraints.constrain import constrain_as_planned, constrained_weights
from lcw_lightning.constraints.fold import remove_constraints_
from lcw_lightning.constraints.kinds import Kind, Method, check_constraint, kind_of
from lcw_lightning.constraints.plan import plan_constraints
from lcw_lightning.constraints.projection import release_, renew_projections_
from lcw_lightning.weights.freshness import mark_initialized
from lcw_lightning.weights.plan import Plan
from lcw_lightning.weights.selection import listed
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["ConstraintCallback"]


class ConstraintCallback(PutsBack):
    """Constrain the weights of the module that is fitted so that each unit's sum to zero (Kutsuna, Section 3).

    ``kind`` selects one of the methods that the paper compares with (Section 5) instead. ``method="project"`` keeps
    ``lcw`` weights zero-sum at nearly no cost, without a parametrization: see :func:`~lcw_lightning.constrain`, also
    for the effect on Adam.

    The callback constrains the module before the optimizers are made, before the strategy wraps the module and before a
    checkpoint is loaded, whether the module builds its layers in ``__init__``, ``setup`` or ``configure_model``. Each
    weight starts from the constrained value nearest to its current one. A second run with the same module changes
    nothing. Plain checkpoints load, but a run cannot be resumed under the constraint if its optimizer state belongs to
    plain weights or to another kind of constraint. A run must be resumed with the method that it used. A checkpoint
    that does not fit changes nothing in the module, except under ModelParallelStrategy, which loads before any callback
    runs.

    A module that overrides ``setup`` or ``configure_model`` is constrained after both, so that both may initialize
    weights. Weight averaging and ModelParallelStrategy copy or shard the module earlier, so with them it is constrained
    before these hooks: build and initialize its layers in ``__init__`` then. After a fit in processes that Lightning
    starts itself (``ddp_spawn``, notebooks), the module of the main process holds the trained weights as plain weights,
    unless they were constrained before the fit.

    Evaluation changes no network. In validate, test and predict the checkpoint decides: the weights that it holds as
    constrained ones are constrained, all others are plain, whatever the module and the callback's settings are. Without
    a checkpoint the module is evaluated as it is, after a fit as the fit has left it. (Strategies that load after they
    have wrapped the module, such as FSDP, read the checkpoint's record twice.)

    What can be constrained is, and one line says what is left out and why, as in
    :func:`~lcw_lightning.plan_constraints`.

    Networks among the hyperparameters of a module or data module are saved with plain weights, as in a run without
    constraints.

    Args:
        kind: ``lcw`` (zero-sum weights), ``cwn`` (centered weight normalization: zero-sum weights with a trained norm),
            ``wn`` (weight normalization), ``sn`` (spectral normalization), or ``none`` to leave the module as it is.
        method: ``parametrize``, or ``project`` for ``lcw`` weights that stay ordinary parameters, whose gradients are
            centred as they accumulate.
        include: Glob patterns on weight names ``layer.weight``, such as ``network.*``.
        exclude: Glob patterns of weights to leave alone.

    Raises:
        ValueError: At construction, for an unknown kind or method, patterns that are no list, or if ``project`` does
            not support the kind. At setup, if a pattern matches no weight, or only weights that cannot be constrained,
            a weight is under another constraint, weight averaging copies the module before its layers are built,
            ModelPruning prunes weights that are to be constrained, or ``project`` is used with a strategy that flattens
            parameters. At the loading of a checkpoint, if it does not fit, has another basis, kind or method, or holds
            the optimizer state of plain weights. At train start, if a selected weight was created too late to be
            constrained, no optimizer trains a constrained weight (as with an optimizer made before the module was
            constrained), or its optimizer has stepped before the weight was constrained.

    Warns:
        UserWarning: ``kind`` is none, but the module that is fitted is constrained; or a module is evaluated that a fit
            would constrain.

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
        check_constraint("ConstraintCallback", kind, method, include, exclude)
        self.kind = kind
        self.method = method
        self.include = list(include)
        self.exclude = list(exclude)
        self._left_out: set[str] = set()  # weights that this run leaves plain
        self._new: list[str] = []  # weights that this run has constrained
        self._found: list[str] = []  # weights that were constrained before this run
        self._overrides = Overrides()
        self._is_loaded = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._left_out, self._new, self._found = set(), [], list(constrained_weights(pl_module))
        self._overrides.add(pl_module, "load_state_dict", partial(load_all_or_nothing, pl_module))
        self._overrides.add(pl_module, "on_load_checkpoint", partial(self._check_checkpoint, trainer, pl_module))
        self._overrides.add(pl_module, "on_save_checkpoint", partial(_save_with_constraints, pl_module))
        self._overrides.add(trainer.strategy, "load_optimizer_state_dict", partial(load_optimizers, trainer))
        self._is_loaded = False
        if trainer.state.fn != TrainerFn.FITTING:
            if trainer.ckpt_path is not None and loads_after_wrapping(trainer):
                record = record_of(trainer.ckpt_path)
                once_built(self._overrides, trainer, pl_module, partial(follow_checkpoint, record, pl_module))
            return
        if self.kind == "none":
            warn_of_constraints(pl_module)
            return
        check_strategy(trainer, self.method)
        check_averaging(trainer, pl_module)
        once_built(self._overrides, trainer, pl_module, partial(self._constrain, trainer, pl_module))
        if is_complete(trainer, pl_module):
            for averaging in averagings_before(trainer, self):
                averaging.setup(trainer, pl_module, stage)  # its first copy is a plain module

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._overrides.restore()
        super().teardown(trainer, pl_module, stage)
        if stage == "fit" and starts_processes(trainer):
            # The worker's state dict is loaded into the main process's module, which is as this process has found it.
            remove_constraints_(pl_module, keep=self._found)
        forget_module(self)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._overrides.restore()
        super().on_exception(trainer, pl_module, exception)
        renew_projections_(pl_module)
        forget_module(self)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            return
        self.let_go(pl_module)
        if self.kind != "none" and not self._is_loaded:
            warn_of_plain_weights(self._plan(pl_module))

    on_test_start = on_predict_start = on_validation_start

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        renew_projections_(pl_module)  # sharding replaces the parameters
        now = {} if self.kind == "none" else self._plan(pl_module).weights
        late = [name for name, ref in now.items() if kind_of(ref) == "none" and name not in self._left_out]
        if late:
            raise ValueError(
                f"{listed(late)} were created after the module was constrained; build these layers in setup() or "
                "configure_model(), under weight averaging and sharding in __init__(), or name them in exclude."
            )
        check_optimizers(trainer.optimizers, pl_module, self._new)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mark_initialized(pl_module)  # its weights are trained

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        save_record(pl_module, checkpoint)  # needed after a run, when the module's own hook is restored

    def _check_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, load: Callable[..., None], checkpoint: dict[str, Any]
    ) -> None:
        # Replaces the module's hook, since Lightning calls the callbacks' hook only after it has loaded the weights.
        record = read_record(checkpoint)
        if not loads_after_wrapping(trainer):
            self.keep(pl_module)
        self._is_loaded = True
        if trainer.state.fn != TrainerFn.FITTING:
            if not loads_after_wrapping(trainer):
                follow_checkpoint(record, pl_module)
            load(checkpoint)
            return
        record.check(pl_module)
        resumed = any(optimizer["state"] for optimizer in checkpoint.get("optimizer_states", ()))
        if resumed:
            check_trained_alike(pl_module, record, checkpoint)
        load(checkpoint)  # the module's own hook, which may restore constraints
        check_nothing_dropped(pl_module, record, checkpoint, resumed)
        self._new = []
        if self.kind == "none" and not self._found:
            warn_of_constraints(pl_module)

    def _constrain(self, trainer: Trainer, pl_module: LightningModule) -> None:
        plan = self._plan(pl_module)
        check_pruning(trainer, plan.weights.values())
        new = {name: ref for name, ref in plan.weights.items() if kind_of(ref) == "none"}
        if not loads_after_wrapping(trainer):
            self.keep(pl_module).push(partial(_release_if_it_fails, new))
        taken = say_what_projection_takes(pl_module, new, self.kind)
        constrain_as_planned(pl_module, plan, self.kind, self.method)
        self._left_out = set(plan.left_out)
        self._new += new
        rank_zero_info(plan.summary + taken)

    def _plan(self, pl_module: LightningModule) -> Plan:
        return plan_constraints(pl_module, self.kind, self.include, self.exclude, self.method)


def _release_if_it_fails(weights: Mapping[str, WeightRef], error: type[BaseException] | None, *_: object) -> None:
    if error is not None:
        for ref in weights.values():
            release_(ref)


def _save_with_constraints(pl_module: LightningModule, save: Callable[..., None], checkpoint: dict[str, Any]) -> None:
    # Lightning calls the callbacks' hook only for checkpoints with optimizer state.
    save(checkpoint)
    save_record(pl_module, checkpoint)
