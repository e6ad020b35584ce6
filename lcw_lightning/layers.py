"""Which layers hold a weight that can be constrained, and where its output units and input channels lie."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["WeightRef", "listed", "named_weights", "select_weights", "split_channels"]

SPATIAL_DIMS: dict[type[nn.Module], int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
LAYER_TYPES = tuple(SPATIAL_DIMS)


class WeightRef(NamedTuple):
    """A weight by its owner and attribute name. Output units lie along dimension 0.

    A unit is a row of a Linear weight or the kernel of one output channel (paper, Section 3.2), ``fan_in`` numbers of
    its group's input channels times its kernel area.

    Example:
        >>> ref = WeightRef(nn.Conv2d(8, 6, kernel_size=3, groups=2), "weight")
        >>> ref.num_channels, ref.num_units, ref.fan_in, ref.channel_dim
        (8, 6, 36, -3)
    """

    layer: nn.Module
    name: str

    @property
    def num_channels(self) -> int:
        """Input features of a Linear, input channels of a convolution."""
        return int(self._size("in_features", "in_channels"))

    @property
    def num_units(self) -> int:
        """Output features of a Linear, output channels of a convolution."""
        return int(self._size("out_features", "out_channels"))

    @property
    def num_groups(self) -> int:
        """Groups of a convolution: a unit sees the input channels of its own group alone."""
        return int(getattr(self.layer, "groups", 1))

    @property
    def kernel_area(self) -> int:
        """Positions of the kernel; 1 for a Linear."""
        return math.prod(getattr(self.layer, "kernel_size", ()))

    @property
    def fan_in(self) -> int:
        """Weights per output unit."""
        return self.num_channels // self.num_groups * self.kernel_area

    @property
    def channel_dim(self) -> int:
        """Where inputs and outputs hold their channels, counted from the end, batched or not."""
        return -1 - _spatial_dims(self.layer)

    @property
    def value(self) -> Tensor:
        """The weight as the layer uses it now; a parametrization is evaluated anew."""
        weight: Tensor = getattr(self.layer, self.name)
        return weight

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer trains: the weight itself, or its parametrization's originals."""
        originals = f"parametrizations.{self.name}."
        named = self.layer.named_parameters()
        return [parameter for name, parameter in named if name == self.name or name.startswith(originals)]

    @torch.no_grad()
    def assign_(self, value: Tensor) -> None:
        """Write the weight in place, through the right inverse of its parametrization where it has one.

        Torch's own ``layer.weight = value`` exchanges the storage of the original, after which DDP waits forever for
        its gradient.

        Raises:
            ValueError: A parametrization that has no right inverse.
        """
        if not parametrize.is_parametrized(self.layer, self.name):
            self.value.copy_(value)
            return
        held: Any = self.layer.parametrizations[self.name]  # type: ignore[index]
        originals = value
        for parametrization in reversed(held):
            if not hasattr(parametrization, "right_inverse"):
                raise ValueError(
                    f"{type(parametrization).__name__} has no right_inverse, so no weight can be assigned."
                )
            originals = parametrization.right_inverse(originals)
        if held.is_tensor:
            held.original.copy_(originals)
        else:
            for number, original in enumerate(originals):
                getattr(held, f"original{number}").copy_(original)

    def expand_to_fan_in(self, per_channel: Tensor) -> Tensor:
        """Repeat a value of each input channel over the kernel, for every unit that sees the channel.

        Args:
            per_channel: One value an input channel, shape ``(num_channels,)``.

        Returns:
            Shape ``(num_units, fan_in)``, or ``(1, fan_in)`` without groups: broadcasts against ``weight.flatten(1)``.
        """
        groups = per_channel.view(self.num_groups, -1).repeat_interleave(self.kernel_area, dim=1)
        return groups if self.num_groups == 1 else groups.repeat_interleave(self.num_units // self.num_groups, dim=0)

    def _size(self, linear: str, convolution: str) -> int:
        return int(getattr(self.layer, linear if _spatial_dims(self.layer) == 0 else convolution))


def named_weights(model: nn.Module) -> dict[str, WeightRef]:
    """Return every constrainable weight by its name ``layer.weight``, in the order of ``model.named_modules()``.

    These are the weights of Linear and Conv1d to Conv3d (grouped and depthwise too); embeddings and norms are left
    out. A module that stands in several places counts once, under its first name.

    Example:
        >>> list(named_weights(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))))
        ['0.weight', '2.weight']
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)}
    return {f"{name}.weight" if name else "weight": WeightRef(layer, "weight") for name, layer in layers.items()}


def select_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, WeightRef]:
    """Return the :func:`named_weights` that match a glob of ``include`` and none of ``exclude``.

    Raises:
        ValueError: A string in place of a list, a pattern that matches no weight, or nothing is left.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
        >>> list(select_weights(model, exclude=["2.*"]))
        ['0.weight']
    """
    weights = named_weights(model)
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(f"{argument} is a list of patterns, got the string {patterns!r}; write [{patterns!r}].")
    matches = {glob: {name for name in weights if fnmatchcase(name, glob)} for glob in (*include, *exclude)}
    for pattern, names in matches.items():
        if not names:
            raise ValueError(_no_match(pattern, weights, model))
    chosen = set().union(*(matches[glob] for glob in include)).difference(*(matches[glob] for glob in exclude))
    selected = {name: ref for name, ref in weights.items() if name in chosen}
    if not selected:
        raise ValueError(
            f"include={list(include)} and exclude={list(exclude)} leave no weight of {type(model).__name__}; "
            f"it has {listed(weights)}."
        )
    return selected


def split_channels(values: Tensor, channel_dim: int) -> tuple[Tensor, list[int]]:
    """Return the tensor, with a batch dimension if it had none beside its channels, and all dimensions but those.

    Example:
        >>> [split_channels(torch.zeros(shape), dim)[1] for shape, dim in (((2, 3, 5, 5), -3), ((3,), -1))]
        [[0, 2, 3], [0]]
    """
    values = values.unsqueeze(0) if values.dim() == 1 else values
    return values, [dim for dim in range(values.dim()) if dim != values.dim() + channel_dim]


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the names for a message, the first ``most`` of them in full.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    names = [repr(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _no_match(pattern: str, names: Iterable[str], model: nn.Module) -> str:
    names = list(names)
    if not names:
        kinds = ", ".join(kind.__name__ for kind in SPATIAL_DIMS)
        return f"{type(model).__name__} has no weight for the pattern {pattern!r}: it needs a layer of {kinds}."
    near = get_close_matches(pattern, names, n=3, cutoff=0.0)
    return (
        f"the pattern {pattern!r} matches no weight of {type(model).__name__}; near it are {listed(near)} "
        f"({len(names)} weights in all, named 'layer.weight')."
    )


def _spatial_dims(layer: nn.Module) -> int:
    return next(dims for kind, dims in SPATIAL_DIMS.items() if isinstance(layer, kind))
