"""Zero-sum weights without a parametrization: centre the gradient as it accumulates, and the weight after a step."""

import math
import warnings
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from lcw_lightning.compat import hooks_after_load, hooks_before_saving
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

__all__ = [
    "centre_units_",
    "check_shards",
    "hold_zero_sum_",
    "is_projected",
    "release_",
    "renew_projections_",
]


NOTICED = 0.01
"""The part of a weight's norm from which on its centring is said."""


def centre_units_(tensor: Tensor, transposed_groups: int = 0, spare_rounding: bool = False) -> None:
    r"""Subtract each unit's mean in place: :math:`w \leftarrow w - \bar w`, the orthogonal projection onto zero sums.

    One reduction and one subtraction, in any memory format and without a copy; half precision is computed in float32.

    Args:
        tensor: A weight, or a gradient, output units along dimension 0.
        transposed_groups: Groups of a transposed convolution, whose weight has shape
            ``(in_channels, out_channels // groups, *kernel)``; 0 for other layers.
        spare_rounding: Leave units bit-identical whose sum is only rounding error, as after an earlier centring.

    Example:
        >>> rows = torch.tensor([[1.0, 7.0], [2.0, 4.0]])
        >>> centre_units_(rows)
        >>> rows
        tensor([[-3.,  3.],
                [-1.,  1.]])
    """
    units, fan_in_dims = tensor, tuple(range(1, tensor.dim()))
    if transposed_groups:
        units, fan_in_dims = tensor.view(transposed_groups, -1, *tensor.shape[1:]), (1, *range(3, tensor.dim() + 1))
    precise = torch.promote_types(tensor.dtype, torch.float32)
    sums = units.sum(fan_in_dims, keepdim=True, dtype=precise)
    fan_in = units.numel() // sums.numel()
    if spare_rounding:
        norms = torch.linalg.vector_norm(units, dim=fan_in_dims, keepdim=True, dtype=precise)
        rounding = (torch.finfo(tensor.dtype).eps + torch.finfo(precise).eps) * math.sqrt(fan_in)
        sums = sums.where(sums.abs() > rounding * norms, 0.0)
    units.sub_(sums, alpha=1 / fan_in)


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
    _centre_gradients_of(parameter, ref.transposed_groups)
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
    return _hook_of(ref.layer._parameters.get(ref.name)) is not None


def release_(ref: WeightRef) -> None:
    """Make a weight an ordinary one of the same value, if it is held by projection."""
    for hooks in (hooks_after_load(ref.layer), hooks_before_saving(ref.layer), ref.layer._forward_pre_hooks):
        for key in _holders(ref, hooks):
            del hooks[key]
    _release(ref.layer._parameters.get(ref.name))


def renew_projections_(model: nn.Module) -> None:
    """Hold projected weights again after other parameters took their places, as in ``fully_shard``."""
    for ref in named_weights(model).values():
        for holder in _holders(ref).values():
            holder(ref.layer)


class _CentredGradient:
    """Hook on a parameter that is held by projection: centres its gradient as it accumulates."""

    handle: RemovableHandle
    version: int | None = None
    """The count of writes to the parameter, when it was centred last; None if it was not, as in a copy."""

    def __init__(self, transposed_groups: int) -> None:
        self.transposed_groups = transposed_groups

    def __call__(self, parameter: Tensor) -> None:
        # Under create_graph this is differentiable, so that a second derivative includes the centring.
        assert parameter.grad is not None
        centre_units_(parameter.grad, self.transposed_groups)

    @torch.no_grad()
    def centre_weight_(self, parameter: Tensor) -> None:
        centre_units_(parameter, self.transposed_groups)
        self.version = _writes(parameter)

    @torch.no_grad()
    def put_back_(self, parameter: Tensor) -> bool:
        """Centre a weight, and return whether that has moved it by more than rounding; one that sums to zero is kept.

        A graph may hold the weight, which then must not be written to.
        """
        centred = parameter.detach().clone()
        centre_units_(centred, self.transposed_groups, spare_rounding=True)
        moved = (parameter - centred).norm()
        if moved > 0:
            parameter.copy_(centred)
        self.version = _writes(parameter)
        return bool(moved > NOTICED * centred.norm())


_HOOKS: WeakValueDictionary[int, _CentredGradient] = WeakValueDictionary()
"""The hook of each parameter held by projection, by the parameter's id.

Only the parameter owns its hook, so that an entry goes with its parameter, before another can have the id. There is no
weak reference to the parameter itself: torch refuses to convert sharded parameters that have one.
"""


def _writes(parameter: Tensor) -> int:
    """Return torch's count of writes to a parameter; 0 for those made in inference mode, which have none."""
    return 0 if parameter.is_inference() else parameter._version


def _release(parameter: nn.Parameter | None) -> None:
    if parameter is not None and (hook := _hook_of(parameter)):
        hook.handle.remove()
        del _HOOKS[id(parameter)]


def _hook_of(parameter: Tensor | None) -> _CentredGradient | None:
    return _HOOKS.get(id(parameter))


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
        if torch.compiler.is_compiling() or (held := self._held(layer)) is None:
            return
        parameter, hook = held
        # What writes by ``.data``, which torch does not count, mostly does so where the mode changes.
        if hook.version != _writes(parameter) or self.is_training != layer.training:
            self._put_back(layer, parameter, hook)
        self.is_training = layer.training

    def before_saving(self, layer: nn.Module, *_: object) -> None:
        if held := self._held(layer):
            self._put_back(layer, *held)

    def _held(self, layer: nn.Module) -> "tuple[nn.Parameter, _CentredGradient] | None":
        parameter, masked = (layer._parameters.get(name) for name in (self.name, f"{self.name}_orig"))
        if parameter is None and _hook_of(masked):
            _release(masked)
            self._warn(layer, "a hook, such as that of pruning, computes it now, so it is no longer held zero-sum")
        hook = _hook_of(parameter)
        if parameter is None or hook is None or parameter.is_meta or hasattr(parameter, "device_mesh"):
            return None
        return parameter, hook

    def _put_back(self, layer: nn.Module, parameter: nn.Parameter, hook: _CentredGradient) -> None:
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
        return {**vars(self), "is_projected": _hook_of(self.parameters.get(self.name)) is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_projected = state.pop("is_projected")
        vars(self).update(state)
        parameter = self.parameters.get(self.name)
        if is_projected and parameter is not None:
            _centre_gradients_of(parameter, self.transposed_groups)


def _centre_gradients_of(parameter: nn.Parameter, transposed_groups: int) -> None:
    if _hook_of(parameter):
        return
    _centre_after_steps_of_every_optimizer()
    hook = _CentredGradient(transposed_groups)
    trained = parameter.requires_grad
    parameter.requires_grad_()  # torch sets no hook on a frozen parameter, which may thaw later
    # Runs before DDP reduces; FSDP2 calls it for the shards. By then the gradient belongs to the parameter alone. A
    # hook of register_hook sees a gradient that other tensors may share, and that must not change in place.
    hook.handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(trained)
    _HOOKS[id(parameter)] = hook


def _holders(ref: WeightRef, hooks: Mapping[int, Any] | None = None) -> dict[int, _Holder]:
    """Return the holders of a weight among the hooks of its layer: unless given, those after a state dict is loaded."""
    found = hooks_after_load(ref.layer) if hooks is None else hooks
    holders = {key: getattr(hook, "__self__", hook) for key, hook in found.items()}
    return {key: held for key, held in holders.items() if isinstance(held, _Holder) and held.name == ref.name}


_ON_EVERY_OPTIMIZER: list[RemovableHandle] = []
"""The hook that every optimizer of this process calls after its step, once a weight has been held by projection."""


def _centre_after_steps_of_every_optimizer() -> None:
    if not _ON_EVERY_OPTIMIZER:
        _ON_EVERY_OPTIMIZER.append(register_optimizer_step_post_hook(_centre_weights))


# Traced as part of a compiled step, it would find no hooks.
@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def _centre_weights(optimizer: Optimizer, *_: Any) -> None:
    # After every step, not every n-th: a plain checkpoint has no count of steps, so a resumed run would differ.
    for group in optimizer.param_groups:
        if isinstance(rate := group.get("lr"), float) and rate == 0:
            continue  # torch.distributed.checkpoint creates optimizer state by such a step, after it has loaded weights
        for parameter in group["params"]:
            # Optimizers move no parameter without a gradient, so a frozen weight stays bit-identical.
            if parameter.grad is not None and (hook := _hook_of(parameter)):
                hook.centre_weight_(parameter)
