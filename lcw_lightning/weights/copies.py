"""Find momentum teachers: frozen submodules that are copies of a trained one (BYOL, DINO, MoCo)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lcw_lightning.weights.weight_ref import named_weights

__all__ = ["copies_of", "copy_layer_", "equals", "momentum_copies"]


def momentum_copies(model: nn.Module) -> dict[str, str]:
    """Return, by the name of each weight in a momentum teacher, the name of the student's weight that it is a copy of.

    A teacher is a frozen submodule whose class, and whose names and values of parameters and buffers, are those of
    exactly one submodule that is not frozen. Of nested ones the largest counts. Where several match, as the equal
    layers of a new :class:`torch.nn.TransformerEncoder` do, the frozen one is no copy of any. Within a
    model of peft the frozen modules are the base, which peft keeps beside trained copies of it.

    Example:
        >>> import copy
        >>> model = nn.Module()
        >>> model.student = nn.Linear(4, 2)
        >>> model.teacher = copy.deepcopy(model.student).requires_grad_(False)
        >>> momentum_copies(model)
        {'teacher.weight': 'student.weight'}
    """
    modules = {name: module for name, module in model.named_modules() if _may_be_compared(module)}
    adapted = [f"{name}." for name, module in model.named_modules() if type(module).__module__.startswith("peft.")]
    frozen = {
        name: module
        for name, module in modules.items()
        if not _is_trained(module) and not any(name.startswith(prefix.lstrip(".")) for prefix in adapted)
    }
    if not frozen:
        return {}
    students: dict[Any, list[str]] = {}
    for name in modules.keys() - frozen.keys():
        students.setdefault(_signature(modules[name]), []).append(name)
    pairs: dict[str, str] = {}
    for name, module in frozen.items():  # parents come before their parts
        if not any(name.startswith(f"{larger}.") for larger in pairs):
            equal = [other for other in students.get(_signature(module), ()) if _are_equal(module, modules[other])]
            pairs |= {name: equal[0]} if len(equal) == 1 else {}
    return dict(_by_weight(model, pairs))


def copies_of(model: nn.Module, originals: Collection[str], exclude: Sequence[str]) -> dict[str, str]:
    """Return the :func:`momentum_copies` of these weights, but for copies that a glob of ``exclude`` names."""
    return {
        copy: original
        for copy, original in momentum_copies(model).items()
        if original in originals and not any(fnmatchcase(copy, pattern) for pattern in exclude)
    }


def equals(copies: Mapping[str, str]) -> dict[str, list[str]]:
    """Return, by the name of each weight that has copies or is one, the names of the others that equal it.

    Example:
        >>> equals({"teacher.weight": "student.weight"})
        {'student.weight': ['teacher.weight'], 'teacher.weight': ['student.weight']}
    """
    families: dict[str, list[str]] = {}
    for copy, original in copies.items():
        families.setdefault(original, [original]).append(copy)
    return {name: [other for other in names if other != name] for names in families.values() for name in names}


@torch.no_grad()
def copy_layer_(original: nn.Module, copy: nn.Module) -> None:
    """Give the parameters of a copy the values of those of its original."""
    for value, parameter in zip(original.parameters(), copy.parameters(), strict=True):
        parameter.copy_(value)


def _may_be_compared(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    is_known = not any(is_lazy(p) or p.is_meta or hasattr(p, "device_mesh") for p in parameters)
    return is_known and any(p.dim() > 1 for p in parameters)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _signature(module: nn.Module) -> Any:
    kind = parametrize.type_before_parametrizations(module)
    return kind, tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in _tensors(module))


def _are_equal(module: nn.Module, other: nn.Module) -> bool:
    pairs = zip(_tensors(module), _tensors(other), strict=True)
    return all(torch.equal(one, another) for (_, one), (_, another) in pairs)


def _by_weight(model: nn.Module, pairs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in (weights := named_weights(model)):
        for copy, original in pairs.items():
            if name.startswith(f"{copy}.") and (student := original + name.removeprefix(copy)) in weights:
                yield name, student
