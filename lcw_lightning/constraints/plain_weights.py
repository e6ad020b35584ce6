"""How the plain weight of an unconstrained network gets into a constrained layer, from a state dict."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lcw_lightning.compat import hooks_before_load

__all__ = ["accept_plain_weight", "remove_plain_weight_hooks", "right_inverse"]


def accept_plain_weight(module: nn.Module, name: str) -> None:
    """Let ``module.load_state_dict`` take a plain ``name``, too, where it is constrained: the nearest weight loads."""
    module.register_load_state_dict_pre_hook(partial(_replace_plain_weight, name=name))  # type: ignore[no-untyped-call]


def right_inverse(constraint: nn.Module, weight: Tensor) -> dict[str, Tensor]:
    """Return, by name, the tensors to train for the nearest weight to ``weight`` that the constraint can represent."""
    originals = cast("Any", constraint).right_inverse(weight)
    if isinstance(originals, Sequence):
        return {f"original{number}": original for number, original in enumerate(originals)}
    return {"original": originals}


def remove_plain_weight_hooks(module: nn.Module) -> None:
    """Remove the hooks by which :func:`accept_plain_weight` lets plain state dicts load into a layer."""
    hooks = hooks_before_load(module)
    for key, wrapped in list(hooks.items()):
        if getattr(wrapped.hook, "func", None) is _replace_plain_weight:
            del hooks[key]


@torch.no_grad()
def _replace_plain_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any, name: str) -> None:
    """Replace a plain ``weight``, or that of the old weight_norm, by the tensors that the constraint trains."""
    gains, directions = (state_dict.get(f"{prefix}{name}_{part}") for part in "gv")
    if gains is not None and directions is not None:
        del state_dict[f"{prefix}{name}_g"], state_dict[f"{prefix}{name}_v"]
        dim = next((dim for dim, size in enumerate(gains.shape) if size > 1), 0 if gains.dim() else -1)
        state_dict[prefix + name] = torch._weight_norm(directions, gains, dim)
    plain = state_dict.get(prefix + name)
    if plain is None or not parametrize.is_parametrized(module, name):
        return
    constraint: Any = module.parametrizations[name][0]  # type: ignore[index]
    if plain.shape == constraint.weight_shape:
        key = f"{prefix}parametrizations.{name}"
        fresh = type(constraint)(plain, constraint.transposed_groups)
        del state_dict[prefix + name]
        state_dict.update({f"{key}.{held}": value for held, value in right_inverse(fresh, plain).items()})
        state_dict.update({f"{key}.0.{held}": value for held, value in fresh.named_buffers()})
