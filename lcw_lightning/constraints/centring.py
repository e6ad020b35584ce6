"""Centre a parameter's gradient as it accumulates, and its value after each step of an optimizer."""

import math
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

__all__ = [
    "CentredGradient",
    "centre_gradients_of",
    "centre_units_",
    "count_writes",
    "hook_of",
    "release_parameter",
]

ROUNDINGS = 8
"""The drift, in units of the dtype's resolution of the norm, that a few products by a factor may leave: it stays."""

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


class CentredGradient:
    """Hook on a parameter that is held by projection: centres its gradient as it accumulates."""

    handle: RemovableHandle
    version: int | None = None
    """The count of writes to the parameter, when it was centred last; None if it was not, as in a copy."""

    def __init__(self, transposed_groups: int) -> None:
        self.transposed_groups = transposed_groups

    def __call__(self, parameter: Tensor) -> None:
        """Centre the gradient that the parameter has accumulated."""
        # Under create_graph this is differentiable, so that a second derivative includes the centring.
        assert parameter.grad is not None
        centre_units_(parameter.grad, self.transposed_groups)

    @torch.no_grad()
    def centre_weight_(self, parameter: Tensor) -> None:
        """Centre a weight after a step of its optimizer."""
        centre_units_(parameter, self.transposed_groups)
        self.version = count_writes(parameter)

    @torch.no_grad()
    def put_back_(self, parameter: Tensor) -> bool:
        """Centre a weight, and return whether that has moved it by more than rounding; one that sums to zero is kept.

        A graph may hold the weight, which then must not be written to.
        """
        centred = parameter.detach().clone()
        centre_units_(centred, self.transposed_groups, spare_rounding=True)
        moved = (parameter - centred).norm()
        if moved > ROUNDINGS * torch.finfo(parameter.dtype).eps * centred.norm():
            parameter.copy_(centred)
        self.version = count_writes(parameter)
        return bool(moved > NOTICED * centred.norm())


_HOOKS: WeakValueDictionary[int, CentredGradient] = WeakValueDictionary()
"""The hook of each parameter held by projection, by the parameter's id.

Only the parameter owns its hook, so that an entry goes with its parameter, before another can have the id. There is no
weak reference to the parameter itself: torch refuses to convert sharded parameters that have one.
"""


def count_writes(parameter: Tensor) -> int:
    """Return torch's count of writes to a parameter; 0 for those made in inference mode, which have none."""
    return 0 if parameter.is_inference() else parameter._version


def release_parameter(parameter: nn.Parameter | None) -> None:
    """Take the hook from a parameter, if it has one."""
    if parameter is not None and (hook := hook_of(parameter)):
        hook.handle.remove()
        del _HOOKS[id(parameter)]


def hook_of(parameter: Tensor | None) -> CentredGradient | None:
    """Return the hook of a parameter that is held by projection; None for others."""
    return _HOOKS.get(id(parameter))


def centre_gradients_of(parameter: nn.Parameter, transposed_groups: int) -> None:
    """Centre the gradient of a parameter as it accumulates, and its value after each step, from now on."""
    if hook_of(parameter):
        return
    _centre_after_steps_of_every_optimizer()
    hook = CentredGradient(transposed_groups)
    trained = parameter.requires_grad
    parameter.requires_grad_()  # torch sets no hook on a frozen parameter, which may thaw later
    # Runs before DDP reduces; FSDP2 calls it for the shards. By then the gradient belongs to the parameter alone. A
    # hook of register_hook sees a gradient that other tensors may share, and that must not change in place.
    hook.handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(trained)
    _HOOKS[id(parameter)] = hook


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
            if parameter.grad is not None and (hook := hook_of(parameter)):
                hook.centre_weight_(parameter)
