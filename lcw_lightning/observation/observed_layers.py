"""Which layers can be observed, and where each has its input, its output and the weights between them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from lcw_lightning.observation.recurrent_inputs import Recurrent, gate_names, is_known_recurrence
from lcw_lightning.weights.restoring import at_rest
from lcw_lightning.weights.selection import select_weights
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["ObservedLayer", "observed_layers"]

_READ_THE_INPUT = ("weight", "weight_ih", "weight_ih_l0", "weight_ih_l0_reverse", "q_proj_weight", "in_proj_weight")


class ObservedLayer(NamedTuple):
    """A layer that maps an input a to an output z, and its weights by their names within the layer.

    The output z of Linear and Bilinear layers, convolutions and attention is a preactivation. The input of a Bilinear
    layer is the first of its two. Attention counts as one layer from the query to the output of its output projection.
    The z of recurrent layers and cells is the hidden state; the preactivations of their gates are seen beside it.

    Example:
        >>> layer = observed_layers(nn.Sequential(nn.LSTM(3, 4, bidirectional=True)))["0"]
        >>> layer.in_channels, layer.out_channels, layer.channel_dim, layer.num_projections
        (3, 4, -1, 32)
    """

    layer: nn.Module
    weights: dict[str, WeightRef]

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels in input and output, counted from the end, so with or without a batch."""
        return next(iter(self.weights.values())).channel_dim  # -1 for layers that are not observable

    @property
    def in_channels(self) -> int:
        """Number of features or channels of the input."""
        first = next(iter(self.weights.values()))
        return first.num_channels if first.is_observable else self._size("in1_features", "input_size", "embed_dim")

    @property
    def out_channels(self) -> int:
        """Number of features or channels of the output; for a bidirectional layer, of one direction."""
        return self._size("out_channels", "out_features", "proj_size", "hidden_size", "embed_dim") or self._num_units()

    @property
    def num_projections(self) -> int:
        """Number of weight vectors that multiply the input: the rows of :meth:`input_units`."""
        first = next(iter(self.weights.values()))
        return self.out_channels if first.is_observable else len(self.input_units(self.units()))

    @property
    def gates(self) -> list[str]:
        """Names of the gates of a recurrent layer, as :func:`gate_names` returns them; none where they are unknown."""
        return gate_names(cast(Recurrent, self.layer)) if is_known_recurrence(self.layer) else []

    @property
    def gate_channels(self) -> int:
        """Number of preactivations of all gates."""
        return len(self.gates) * self._size("hidden_size")

    @property
    def bias(self) -> Tensor | None:
        """The bias of z, one value per channel; None without one."""
        holder = self.layer.out_proj if isinstance(self.layer, nn.MultiheadAttention) else self.layer
        bias = getattr(holder, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def units(self, built: Mapping[WeightRef, Tensor] = MappingProxyType({})) -> dict[str, Tensor]:
        """Return every weight as the layer uses it now, with one row per unit; the layer is not changed.

        Args:
            built: Weights that need not be built by their parametrizations, as
                :func:`~lcw_lightning.observation.built_weights.built_weights` yields them.
        """
        if all(ref in built for ref in self.weights.values()):
            return {name: ref.units_of(built[ref]) for name, ref in self.weights.items()}
        with torch.no_grad(), at_rest(ref.layer for ref in self.weights.values()):
            return {name: ref.units.detach() for name, ref in self.weights.items()}

    def input_units(self, units: Mapping[str, Tensor]) -> Tensor:
        """Return the rows of :meth:`units` that multiply the input, shape ``(num_projections, fan_in)``."""
        reads_two, is_called = isinstance(self.layer, nn.Bilinear), next(iter(self.weights.values())).is_observable
        rows = [rows for name, rows in units.items() if (is_called or name in _READ_THE_INPUT) and not reads_two]
        if isinstance(self.layer, nn.MultiheadAttention):
            rows = [matrix[: self.layer.embed_dim] for matrix in rows]  # keys and values may have other inputs
        if not rows:
            return next(iter(units.values()))[:0, :1]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def expand_to_fan_in(self, per_channel: Tensor) -> Tensor:
        """Return one value per input channel in a shape that broadcasts against :meth:`input_units`."""
        if self.channel_dim == -1:
            return per_channel.view(1, -1)
        with at_rest([self.layer]):
            return self.weights["weight"].expand_to_fan_in(per_channel)

    def _size(self, *names: str) -> int:
        return next((int(size) for name in names if (size := getattr(self.layer, name, 0))), 0)

    def _num_units(self) -> int:
        return next(len(rows) for rows in self.units().values())


def observed_layers(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, ObservedLayer]:
    """Return the layers of ``model`` that have a weight chosen by the patterns, by name.

    If ``model`` itself is such a layer, its name is that of its type. Layers that are still lazy and complex
    weights are left out.

    Raises:
        ValueError: As :func:`~lcw_lightning.weights.selection.select_weights` says.

    Example:
        >>> list(observed_layers(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.MultiheadAttention(3, 1))))
        ['0', '2']
    """
    layers: dict[str, ObservedLayer] = {}
    for name, ref in select_weights(model, include, exclude).items():
        if ref.is_complex:
            continue
        path = name.rpartition(".")[0]
        owner = model.get_submodule(path.rpartition(".")[0])
        layer, weight = ref.layer, ref.name
        if isinstance(owner, nn.MultiheadAttention) and layer is owner.out_proj:  # read without being called
            layer, weight, path = owner, f"out_proj.{ref.name}", path.rpartition(".")[0]
        if not (isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params()):
            layers.setdefault(path or type(layer).__name__, ObservedLayer(layer, {})).weights[weight] = ref
    return layers
