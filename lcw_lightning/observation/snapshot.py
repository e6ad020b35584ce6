"""The statistics of every layer in one training step, and samples of its values for box plots."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lcw_lightning.observation.built_weights import built_weights
from lcw_lightning.observation.hooks import Quantity, observe
from lcw_lightning.observation.moments import ChannelSums, NetworkMoments, Series, sizes_of
from lcw_lightning.observation.observed_layers import ObservedLayer
from lcw_lightning.observation.recurrences import Recurrence, Recurrences
from lcw_lightning.observation.samples import ValueSamples
from lcw_lightning.observation.scratch import Scratch
from lcw_lightning.observation.statistics import Statistic, WeightFacts, gate_statistics, network_statistics
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["Snapshot", "SnapshotMemory"]


class SnapshotMemory:
    """What snapshots can take over from earlier ones: memory and, where no layer has changed its size, the layout."""

    def __init__(self) -> None:
        self.scratch = Scratch()
        self._moments: NetworkMoments | None = None

    def moments(self, layers: Mapping[str, ObservedLayer], device: torch.device) -> NetworkMoments:
        """Return moments for these layers that have seen nothing."""
        sizes = list(sizes_of(layers).items())  # in order, as columns are
        if self._moments is None or list(self._moments.sizes.items()) != sizes or self._moments.totals.device != device:
            self._moments = NetworkMoments(layers).to(device)
        else:
            self._moments.reset()
        return self._moments


class Snapshot:
    """Observes layers within a block, and then has their statistics.

    Args:
        layers: By name, as :func:`~lcw_lightning.observation.observed_layers.observed_layers` returns them.
        device: On which they compute.
        gradient_scale: The factor that multiplies the gradients in this backward pass; statistics are divided by it.
        with_values: Keep samples of values, too.
        over_time: Find the gradient of recurrent layers at each step, too.
        memory: Of earlier snapshots, which are no longer read.

    Example:
        >>> from torch import nn
        >>> from lcw_lightning.observation.observed_layers import observed_layers
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
        >>> snapshot = Snapshot(observed_layers(network))
        >>> with snapshot.watching():
        ...     network(torch.rand(8, 4)).square().sum().backward()
        >>> {name: len(statistics) for name, statistics in snapshot.statistics().items()}
        {'0': 11, '2': 11}
    """

    def __init__(
        self,
        layers: Mapping[str, ObservedLayer],
        device: torch.device | str = "cpu",
        gradient_scale: float = 1.0,
        with_values: bool = False,
        over_time: bool = False,
        memory: SnapshotMemory | None = None,
    ) -> None:
        self.layers = layers
        self.gradient_scale = gradient_scale
        memory = SnapshotMemory() if memory is None else memory
        self.scratch = memory.scratch
        self.moments = memory.moments(layers, torch.device(device))
        self.channel_dims = {name: layer.channel_dim for name, layer in layers.items()}
        self.sums: dict[tuple[str, Series], ChannelSums] = {}
        self.inputs: dict[str, ChannelSums] = {}
        self.facts: dict[str, WeightFacts] = {}
        self.samples = ValueSamples(list(layers)).to(device) if with_values else None
        self.built: dict[WeightRef, Tensor] = {}
        self.seen: dict[tuple[str, Quantity], list[Tensor]] = {}
        self.modules = {name: layer.layer for name, layer in layers.items()}
        self.recurrences = Recurrences(self.modules, self._observe_gates, with_gradients=over_time)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the layers within the block; outside it there are no hooks."""
        refs = [ref for layer in self.layers.values() for ref in layer.weights.values()]
        # The gates come second, because the first replaces outputs by aliases.
        with (
            built_weights(refs) as self.built,
            observe(self.modules, self._observe),
            self.recurrences.watching(),
        ):
            yield

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return the statistics of the layers that were called, in the order of their first calls.

        All ranks must call this, and all get the statistics of the union of their batches.
        """
        forward_order = list(self.facts)
        for name in self.layers.keys() - self.facts.keys():  # another rank may have called it
            self.facts[name] = WeightFacts.of(self.layers[name], self.layers[name].units())
        self.moments.update(self.sums)
        found = network_statistics(self.moments, self.layers, self.facts)
        for statistics in found.values():
            if Statistic.GRADIENT_STD in statistics:
                statistics[Statistic.GRADIENT_STD] /= self.gradient_scale
        return {name: found[name] for name in (*forward_order, *found) if name in found}

    def recurrence(self) -> Recurrence:
        """Return what recurrent layers show inside their calls, after :meth:`statistics`; gates on all ranks."""
        gates = gate_statistics(self.moments, {name: self.layers[name] for name in self.facts}, self.recurrences.left)
        return Recurrence(gates, self.recurrences.gradients(self.gradient_scale), dict(self.recurrences.left))

    def values_per_channel(self, series: Series) -> dict[str, int]:
        """Return how many values of a channel each layer has seen, on all ranks, after :meth:`statistics`."""
        counts = self.moments.mean_by_layer(self.moments.compute()[0])[series].tolist()
        return {name: int(count) for name, count in zip(self.layers, counts, strict=True) if count > 0}

    def num_values(self, series: Series) -> dict[str, int]:
        """Return how many values each layer has seen in all its channels."""
        columns = {name: self.moments.columns[name, series] for name in self.layers}
        return {
            name: number * (columns[name].stop - columns[name].start)
            for name, number in self.values_per_channel(series).items()
        }

    def values(self) -> dict[tuple[str, Quantity], Tensor]:
        """Return the :class:`~lcw_lightning.observation.samples.ValueSamples`; all ranks must call this."""
        assert self.samples is not None, "the snapshot was made without values"
        self.samples.update(self.seen)
        found = self.samples.compute()
        for (name, quantity), sample in found.items():
            if quantity == "input":  # a narrow layer has fewer units than the tensor has rows
                found[name, quantity] = sample[: self.layers[name].in_channels]
        return {key: sample / (self.gradient_scale if "gradient" in key[1] else 1.0) for key, sample in found.items()}

    def _observe(self, name: str, quantity: Quantity, values: Tensor) -> None:
        columns, channel_dim = self.moments.columns[name, quantity], self.channel_dims[name]
        sums = ChannelSums.of(values, columns.stop - columns.start, channel_dim, quantity == "input", self.scratch)
        self._add(name, quantity, sums)
        if quantity == "input":
            self.inputs[name] = sums
        elif quantity == "preactivation" and name in self.inputs:
            # Not before the call: another hook may rescale the weight before the layer uses it.
            self._add(name, "projection", self._projections(name, self.inputs[name]))
        if self.samples is not None and (part := self.samples.part(name, quantity, values, channel_dim)) is not None:
            self.seen.setdefault((name, quantity), []).append(part)

    @torch.no_grad()
    def _observe_gates(self, name: str, values: Tensor) -> None:
        self._add(name, "gates", ChannelSums.of(values, values.shape[1], channel_dim=-1, count_zeros=False))

    def _projections(self, name: str, sums: ChannelSums) -> ChannelSums:
        """Return the sums of w_i a, computed from the sums of a."""
        layer = self.layers[name]
        units = layer.units(self.built)
        for ref in layer.weights.values():
            self.built.pop(ref, None)  # a later call builds its own
        if name not in self.facts:
            self.facts[name] = WeightFacts.of(layer, units)
        projected = _products(layer.input_units(units), layer.expand_to_fan_in(sums.total))
        found = sums.sums.new_zeros(3, len(projected))  # the other sums are unknown
        found[0] = projected
        return ChannelSums(sums.number, found)

    def _add(self, name: str, series: Series, sums: ChannelSums) -> None:
        before = self.sums.get((name, series))
        self.sums[name, series] = sums if before is None else before.plus(sums)


def _products(rows: Tensor, totals: Tensor) -> Tensor:
    """Return the product of each row with its total inputs, or with those of all, in float32 at least."""
    # The sum would overflow float16, and autocast would convert the operands of the product to float16.
    if torch.is_autocast_enabled(rows.device.type):
        with torch.autocast(rows.device.type, enabled=False):
            return _products(rows, totals)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    rows, totals = rows.to(dtype), totals.to(dtype)
    if totals.shape == (1, rows.shape[1]) and rows.shape[0]:  # no copy of the weight's size is made
        return torch.mv(rows, totals[0])
    products: Tensor = torch.linalg.vecdot(rows, totals)
    return products
