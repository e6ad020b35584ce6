"""Zero-sum weights without a parametrization: hold a layer's weight in the subspace, in whatever way it is used."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lcw_lightning.compat import hooks_after_load, hooks_before_saving
from lcw_lightning.constraints.centring import (
    CentredGradient,
    centre_gradients_of,
    centre_units_,
    count_writes,
    hook_of,
    release_parameter,
)
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = [
    "check_shards",
    "hold_zero_sum_",
    "is_projected",
    "put_back_",
    "release_",
    "renew_projections_",
]


def hold_zero_sum_(ref: WeightRef) -> None:
    """Project a plain weight, and hold it zero-sum from now on, in copies and pickles of its layer too.

    Its gradient is centred as it accumulates. The weight is centred after each step of an optimizer that has a gradient
    for it, after a state dict is loaded, before one is saved, and before a call of its layer if it was written to since
    or the layer's mode has changed. Units that sum to zero already, up to rounding, stay bit-identical.

    Raises:
        ValueError: The weight is a sharded one of a grouped transposed convolution.
    """
    check_shards(ref)
    parameter: Any = ref.layer._parameters[ref.name]
    centre_gradients_of(parameter, ref.transposed_groups)
    if not _holders(ref):
        holder = _Holder(ref.layer._parameters, ref.name, ref.transposed_groups)
        ref.layer.register_load_state_dict_post_hook(holder)  # type: ignore[no-untyped-call]
        ref.layer.register_state_dict_pre_hook(holder.before_saving)  # type: ignore[no-untyped-call]
        ref.layer.register_forward_pre_hook(holder.before_forward)
    with torch.no_grad():
        centre_units_(parameter, ref.transposed_groups, spare_rounding=True)


def check_shards(ref: WeightRef) -> None:
    """Raise if a weight is sharded so that its units cannot be told apart.

    Raises:
        ValueError: The weight is a sharded one of a grouped transposed convolution: a shard may hold parts of groups.
    """
    if hasattr(ref.layer._parameters.get(ref.name), "device_mesh") and ref.transposed_groups > 1:
        raise ValueError(f"{type(ref.layer).__name__}.{ref.name} is sharded across its groups; leave it out.")


def is_projected(ref: WeightRef) -> bool:
    """Return whether a weight is held zero-sum by projection."""
    return hook_of(ref.layer._parameters.get(ref.name)) is not None


def release_(ref: WeightRef) -> None:
    """Make a weight an ordinary one of the same value, if it is held by projection."""
    for hooks in (hooks_after_load(ref.layer), hooks_before_saving(ref.layer), ref.layer._forward_pre_hooks):
        for key in _holders(ref, hooks):
            del hooks[key]
    release_parameter(ref.layer._parameters.get(ref.name))


def put_back_(ref: WeightRef) -> None:
    """Centre a weight that is held by projection, if something has written to it."""
    parameter = ref.layer._parameters.get(ref.name)
    if parameter is not None and not parameter.is_meta and (hook := hook_of(parameter)):
        hook.put_back_(parameter)


def renew_projections_(model: nn.Module) -> None:
    """Hold projected weights again after other parameters took their places, as in ``fully_shard``."""
    for ref in named_weights(model).values():
        for holder in _holders(ref).values():
            holder(ref.layer)


class _Holder:
    """Hooks on a layer: before its call, before it saves its state and after it loads one.

    Copies and pickles keep them, while they drop hooks of parameters.
    """

    def __init__(self, parameters: dict[str, nn.Parameter | None], name: str, transposed_groups: int) -> None:
        self.parameters = parameters  # the layer's own dict: a copy gets that of the layer's copy
        self.name = name
        self.transposed_groups = transposed_groups
        self.is_training: bool | None = None  # the layer's mode at its last call

    def before_forward(self, layer: nn.Module, _inputs: object) -> None:
        if isinstance(layer, nn.MultiheadAttention):  # which reads the weight of its output projection without a call
            for holder in _holders(WeightRef(layer.out_proj, "weight"), layer.out_proj._forward_pre_hooks).values():
                holder.before_forward(layer.out_proj, None)
        if torch.compiler.is_compiling() or (held := self._held(layer)) is None:
            return
        parameter, hook = held
        # What writes by ``.data``, which torch does not count, mostly does so where the mode changes.
        if hook.version != count_writes(parameter) or self.is_training != layer.training:
            self._put_back(layer, parameter, hook)
        self.is_training = layer.training

    def before_saving(self, layer: nn.Module, *_: object) -> None:
        if held := self._held(layer):
            self._put_back(layer, *held)

    def _held(self, layer: nn.Module) -> "tuple[nn.Parameter, CentredGradient] | None":
        parameter, masked = (layer._parameters.get(name) for name in (self.name, f"{self.name}_orig"))
        if masked is None and parametrize.is_parametrized(layer, self.name):
            masked = layer.parametrizations[self.name]._parameters.get("original")  # type: ignore[index, union-attr]
        if parameter is None and hook_of(masked):
            release_parameter(masked)
            what = "something else, such as pruning or a parametrization, computes it now, so it is held no longer"
            self._warn(layer, what)
        hook = hook_of(parameter)
        if parameter is None or hook is None or parameter.is_meta or hasattr(parameter, "device_mesh"):
            return None
        return parameter, hook

    def _put_back(self, layer: nn.Module, parameter: nn.Parameter, hook: CentredGradient) -> None:
        if hook.put_back_(parameter):
            self._warn(layer, "something wrote values to it that do not sum to zero, and they are centred now")

    def _warn(self, layer: nn.Module, what: str) -> None:
        warnings.warn(
            f"method='project' holds {type(layer).__name__}.{self.name} zero-sum, but {what}; take fold(network) "
            "before pruning, merging or quantizing it.",
            stacklevel=2,
        )

    def __call__(self, layer: nn.Module, *_: object) -> None:
        if layer._parameters.get(self.name) is not None:  # else something else computes the weight now, such as pruning
            hold_zero_sum_(WeightRef(layer, self.name))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "is_projected": hook_of(self.parameters.get(self.name)) is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_projected = state.pop("is_projected")
        vars(self).update(state)
        parameter = self.parameters.get(self.name)
        if is_projected and parameter is not None:
            centre_gradients_of(parameter, self.transposed_groups)


def _holders(ref: WeightRef, hooks: Mapping[int, Any] | None = None) -> dict[int, _Holder]:
    """Return the holders of a weight among the hooks of its layer: unless given, those after a state dict is loaded."""
    found = hooks_after_load(ref.layer) if hooks is None else hooks
    holders = {key: getattr(hook, "__self__", hook) for key, hook in found.items()}
    return {key: held for key, held in holders.items() if isinstance(held, _Holder) and held.name == ref.name}
