"""All private interfaces of torch, Lightning and jsonargparse that this package uses, by plain names.

A release of theirs that changes one breaks this file and its test alone. Lightning is imported where it is needed,
since constraints stand on torch alone.
"""

import argparse
from collections.abc import Callable, Mapping
from traceback import walk_stack
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm as TorchSpectralNorm
from torch.nn.utils.parametrizations import _WeightNorm as TorchWeightNorm
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from argparse import Action

    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelPruning
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

__all__ = [
    "TorchSpectralNorm",
    "TorchWeightNorm",
    "clear_cached_weights",
    "end_fit",
    "find_requeued_by",
    "flat_weight_names",
    "global_module_hooks",
    "help_groups",
    "hooks_after_load",
    "hooks_before_load",
    "hooks_before_saving",
    "is_cached",
    "is_compiled_here",
    "is_made_by_cli",
    "is_traced_by_fx",
    "is_transformed",
    "is_view",
    "listed_subcommands",
    "log_no_hyperparameters",
    "module_hooks",
    "module_versions",
    "num_trained_batches",
    "option",
    "option_names",
    "pruned_parameters",
    "requeue_method",
    "saves_by_hooks",
    "starts_processes",
    "subcommand_parser",
    "tree_leaves",
    "without_flat_weights",
]

is_transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func, such as vmap, runs."""

is_view: Callable[[Tensor], bool] = Tensor._is_view
"""Whether a tensor is a view of another in the autograd graph."""


def saves_by_hooks() -> bool:
    """Return whether hooks on saved tensors are set, such as those of activation checkpointing."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:  # torch 2.6 shows no hooks; those of activation checkpointing run in a call of its module
        frames = (frame.f_code.co_filename for frame, _ in walk_stack(None))
        return checkpoint.__file__ in frames
    return top(False) is not None


def is_compiled_here(module: nn.Module) -> bool:
    """Return whether this very module, not a part of it, is compiled: in place, by a wrapper or by Lightning."""
    from torch._dynamo import OptimizedModule

    in_place = module._compiled_call_impl is not None
    return in_place or isinstance(module, OptimizedModule) or getattr(module, "_compiler_ctx", None) is not None


_module_call = nn.Module.__call__


def is_traced_by_fx() -> bool:
    """Return whether :func:`torch.fx.symbolic_trace` runs, which replaces the call of all modules to record it."""
    return nn.Module.__call__ is not _module_call


def is_cached() -> bool:
    """Return whether a block of :func:`torch.nn.utils.parametrize.cached` runs."""
    return parametrize._cache_enabled > 0


def clear_cached_weights() -> None:
    """Clear the cache of :func:`torch.nn.utils.parametrize.cached`."""
    parametrize._cache.clear()


def global_module_hooks() -> bool:
    """Return whether hooks on the calls of all modules are registered."""
    return bool(
        all_modules._global_forward_pre_hooks
        or all_modules._global_forward_hooks
        or all_modules._global_backward_pre_hooks
        or all_modules._global_backward_hooks
    )


def module_hooks(module: nn.Module) -> bool:
    """Return whether hooks on the calls of this module are registered, or it is compiled in place."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or module._compiled_call_impl
    )


def hooks_before_load(module: nn.Module) -> dict[int, Any]:
    """Return the dict of ``register_load_state_dict_pre_hook``; ``.hook`` of each value is the function given."""
    return module._load_state_dict_pre_hooks


def hooks_before_saving(module: nn.Module) -> dict[int, Any]:
    """Return the dict of ``register_state_dict_pre_hook``, whose values are the functions given."""
    return module._state_dict_pre_hooks


def hooks_after_load(module: nn.Module) -> dict[int, Any]:
    """Return the dict of ``register_load_state_dict_post_hook``, whose values are the functions given."""
    hooks: dict[int, Any] = module._load_state_dict_post_hooks
    return hooks


def flat_weight_names(module: nn.Module) -> list[str]:
    """Return the names of a recurrent layer's weights and biases, in its order; none for other modules."""
    return list(getattr(module, "_flat_weights_names", ()))


def without_flat_weights(module: nn.RNNBase, state: dict[str, Any]) -> dict[str, Any]:
    """Return a recurrent layer's state without the weights of its last forward: a parametrized one reads them anew."""
    return state | {"_flat_weights": [torch.empty(0) for _ in module._flat_weights_names]}


def module_versions(state_dict: Any) -> dict[str, dict[str, Any]]:
    """Return the versions of modules that torch keeps beside a state dict, by the modules' names."""
    versions: dict[str, dict[str, Any]] = getattr(state_dict, "_metadata", {})
    return versions


def starts_processes(trainer: "Trainer") -> bool:
    """Return whether Lightning starts a run's processes from this one, as ``ddp_spawn`` and notebooks do."""
    # By name: pytorch_lightning has a class of its own.
    return any(base.__name__ == "_MultiProcessingLauncher" for base in type(trainer.strategy.launcher).__mro__)


def pruned_parameters(callback: "ModelPruning") -> list[tuple[nn.Module, str]]:
    """Return the module and the name of each parameter that ModelPruning was told to prune, or has found in setup."""
    return list(callback._parameters_to_prune or ())


def num_trained_batches(checkpoint: Mapping[str, Any]) -> int:
    """Return how many batches a run had trained when Lightning wrote a checkpoint; 0 if the checkpoint has no loops."""
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    return int(progress.get("total", {}).get("completed", 0))


def end_fit() -> NoReturn:
    """End a fit as Lightning's own tuners do: at once, without validation, scheduler or the epoch's end."""
    from lightning.pytorch.utilities.exceptions import _TunerExitException

    raise _TunerExitException


def requeue_method(trainer: "Trainer") -> tuple[object, str]:
    """Return the object, and its method's name, that saves a checkpoint and requeues the job at SLURM's signal."""
    return trainer._signal_connector, "_slurm_sigusr_handler_fn"


def find_requeued_by(trainer: "Trainer", find: Callable[[], str | None]) -> None:
    """Let ``find`` say from which checkpoint of a requeue ``fit`` goes on by itself; evaluation takes none by itself.

    Without this Lightning takes the newest ``hpc_ckpt_*`` of the root folder for either, whichever run wrote it.
    """
    from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
    from lightning.pytorch.trainer.states import TrainerFn

    class Connector(_CheckpointConnector):
        found: str | None = None

        @property
        def _hpc_resume_path(self) -> str | None:
            return self.found

        def _parse_ckpt_path(self, state_fn: TrainerFn, ckpt_path: Any, *args: Any, **kwargs: Any) -> Any:
            if ckpt_path == "hpc":  # asked for by name
                self.found = super()._hpc_resume_path
            else:
                self.found = find() if state_fn == TrainerFn.FITTING else None
            return super()._parse_ckpt_path(state_fn, "hpc" if self.found else ckpt_path, *args, **kwargs)

    trainer._checkpoint_connector = Connector(trainer)


def is_made_by_cli() -> bool:
    """Return whether LightningCLI is making a module, whose arguments then are plain values."""
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

    return _given_hyperparameters.get() is not None


def log_no_hyperparameters(holder: "LightningModule | LightningDataModule") -> None:
    """Let Lightning send none of the hyperparameters that a module or data module has saved to loggers."""
    holder._log_hyperparams = False


def subcommand_parser(cli: "LightningCLI", command: str) -> "LightningArgumentParser":
    """Return the parser of a subcommand."""
    return cli._subcommand_parsers[command]


def help_groups(parser: "LightningArgumentParser") -> list[Any]:
    """Return the groups of flags of a parser, in the order in which the help shows them; it may be changed in place."""
    groups: list[Any] = parser._action_groups  # type: ignore[assignment]
    return groups


def listed_subcommands(cli: "LightningCLI") -> dict[str, "Action"]:
    """Return, by the name of each subcommand, what the help of the whole command says of it, as ``.help``."""
    found = next(action for action in cli.parser._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest: action for action in found._choices_actions}


def option(parser: "LightningArgumentParser", flag: str) -> "Action":
    """Return an option of a parser by its flag, such as ``--model``."""
    return parser._option_string_actions[flag]


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags of a parser, such as ``--model``."""
    return list(parser._option_string_actions)
