"""Check that a run can keep a constraint: when its layers are built, what copies it, what trains its weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.optim import Optimizer

from lcw_lightning.callbacks.twins import is_a, is_overridden
from lcw_lightning.checkpoints.record import Record, parametrization_key
from lcw_lightning.compat import pruned_parameters
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.constraints.kinds import Method, kind_of
from lcw_lightning.constraints.projection import is_projected
from lcw_lightning.weights.selection import listed
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = [
    "AVERAGING",
    "averagings_before",
    "check_averaging",
    "check_nothing_dropped",
    "check_optimizers",
    "check_pruning",
    "check_strategy",
    "check_trained_alike",
    "load_optimizers",
]

AVERAGING = (WeightAveraging, StochasticWeightAveraging)


def averagings_before(trainer: Trainer, callback: Callback) -> list[Callback]:
    """Return the weight-averaging callbacks that are set up, and so copy the module, before the given callback."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [early for early in callbacks[: callbacks.index(callback)] if is_a(early, *AVERAGING)]


def check_averaging(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise if a weight-averaging callback copies the module before it is constrained.

    Raises:
        ValueError: Weight averaging copies the module before its layers are built.
    """
    if named_weights(pl_module):
        return
    for averaging in trainer.callbacks:  # type: ignore[attr-defined]
        calls_configure_model = is_a(averaging, WeightAveraging) and is_overridden("configure_model", pl_module)
        if is_a(averaging, *AVERAGING) and not calls_configure_model:
            raise ValueError(
                f"{type(averaging).__name__} copies the module before its setup() or configure_model() builds the "
                "layers; build them in __init__()."
            )


def check_pruning(trainer: Trainer, weights: Collection[WeightRef]) -> None:
    """Raise if a callback prunes weights that are to be constrained.

    Raises:
        ValueError: ModelPruning prunes them. A pruned weight does not sum to zero, and one that a parametrization
            computes stays unpruned in silence.
    """
    places = {(id(ref.layer), ref.name) for ref in weights}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_a(callback, ModelPruning):
            chosen = pruned_parameters(callback)  # none: all that it finds, once it is set up
            if not chosen or not places.isdisjoint((id(layer), name) for layer, name in chosen):
                raise ValueError(
                    "ModelPruning and ConstraintCallback take the same weights, but a pruned weight does not sum to "
                    "zero; prune fold(module) after the fit, or let parameters_to_prune and exclude name the same "
                    "weights."
                )


def check_strategy(trainer: Trainer, method: Method) -> None:
    """Raise if the strategy flattens the parameters of layers that projection holds.

    Raises:
        ValueError: The strategy keeps parameters in flat buffers, where gradients cannot be centred weight by weight.
    """
    if method == "project" and is_a(trainer.strategy, FSDPStrategy, DeepSpeedStrategy):
        raise ValueError(
            f"method='project' centres the gradients of weights, but {type(trainer.strategy).__name__} flattens them; "
            "take ModelParallelStrategy (FSDP2) or DDP."
        )


def check_optimizers(optimizers: Sequence[Optimizer], pl_module: LightningModule, new: Sequence[str]) -> None:
    """Raise unless an optimizer trains every constrained weight; the ``new`` ones were constrained in this run.

    Raises:
        ValueError: No optimizer trains one of them, its optimizer has stepped before the weight was constrained, or the
            optimizer was restored from one of another class.
    """
    if not any(optimizer.param_groups for optimizer in optimizers):
        return  # configure_optimizers returned None: the module trains without an optimizer of Lightning's
    for optimizer in optimizers:
        if missing := optimizer.defaults.keys() - optimizer.param_groups[0].keys():
            raise ValueError(
                f"{type(optimizer).__name__} needs the settings {listed(sorted(missing))}, which the checkpoint's "
                "optimizer did not have: resume with the optimizer of the run, or load its weights alone, and fit "
                "without ckpt_path."
            )
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


def load_optimizers(trainer: Trainer, load: Callable[..., None], checkpoint: Mapping[str, Any]) -> None:
    """Restore the optimizers, or say which do not fit.

    Raises:
        ValueError: The checkpoint holds the state of other optimizers.
    """
    try:
        load(checkpoint)
    except (KeyError, TypeError, ValueError) as error:
        kinds = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
        raise ValueError(
            f"the checkpoint's optimizer state does not fit {kinds} ({type(error).__name__}: {error}); resume with the "
            "optimizer of the run, or load its weights alone, and fit without ckpt_path."
        ) from error


def check_trained_alike(pl_module: LightningModule, record: Record, checkpoint: Mapping[str, Any]) -> None:
    """Raise unless the optimizer state of a checkpoint fits the parameters of the module's constraints.

    Raises:
        ValueError: The checkpoint lacks weights, or the optimizers trained plain ones, or ones constrained by another
            method.
    """
    tensors = checkpoint.get("state_dict", {})  # sharded checkpoints have none
    weights, here = named_weights(pl_module), constrained_weights(pl_module)
    if other := [name for name in here if name in record.projected and not is_projected(weights[name])]:
        raise ValueError(
            f"the checkpoint's run held {listed(other)} with method='project', this one with 'parametrize'; take "
            "'project', or load the checkpoint's weights alone, and fit without ckpt_path."
        )
    new = [
        name
        for name in here
        if name not in (*record.parametrized, *record.projected)
        and not any(key.startswith(f"{parametrization_key(name)}.original") for key in tensors)
    ]
    absent = [name for name in new if name not in tensors]
    if absent and tensors:
        raise ValueError(
            f"the checkpoint has no {listed(absent)}, which {type(pl_module).__name__} has: it was written by another "
            "model; build it with the settings of that run."
        )
    if new:
        raise ValueError(
            f"the checkpoint's run trained {listed(new)} without the constraint, so its optimizer state does not "
            "fit; load its weights alone, and fit without ckpt_path."
        )


def check_nothing_dropped(
    pl_module: LightningModule, record: Record, checkpoint: Mapping[str, Any], resumed: bool
) -> None:
    """Raise if a weight that the checkpoint's run constrained is plain here.

    Raises:
        ValueError: The checkpoint holds the parameters of its constraint, which do not load into a plain weight, or
            which torch would drop if ``strict_loading`` is off; or the run resumes with a weight plain that projection
            held, whose keys are those of a plain weight.
    """
    if resumed:
        _check_projected_still(pl_module, record)
    weights, keys = named_weights(pl_module), checkpoint.get("state_dict", {})
    plain = [name for name in record.parametrized if name in weights and kind_of(weights[name]) == "none"]
    held = [name for name in plain if any(key.startswith(f"{parametrization_key(name)}.") for key in keys)]
    if dropped := held if pl_module.strict_loading else plain:
        raise ValueError(
            f"the checkpoint's run constrained {listed(dropped)} with kind={record.parametrized[dropped[0]].kind!r}, "
            "and this one leaves them plain; constrain them too, or start from plain weights: "
            "fold(load_from_checkpoint(...))."
        )


def _check_projected_still(pl_module: LightningModule, record: Record) -> None:
    here = constrained_weights(pl_module)
    if dropped := [name for name in record.projected if name not in here]:
        raise ValueError(
            f"the checkpoint's run held {listed(dropped)} with method='project', and this one leaves them plain; "
            "constrain them too, or load the checkpoint's weights alone, and fit without ckpt_path."
        )


def _is_state_of(parameter: nn.Parameter, value: Any) -> bool:
    # Moving averages have the parameter's shape, factored averages the shape of a row or a column, counters none.
    pairs = zip(reversed(getattr(value, "shape", ())), reversed(parameter.shape), strict=False)
    return all(size in (1, wanted) for size, wanted in pairs)
