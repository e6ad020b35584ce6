"""Snapshots that take over the memory of earlier ones."""

import copy

import torch
from torch import nn

from lcw_lightning import constrain
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.snapshot import Snapshot, SnapshotMemory


def look(network, *batches, memory=None):
    network.zero_grad()
    snapshot = Snapshot(observed_layers(network), memory=memory)
    with snapshot.watching():
        for inputs in batches:
            network(inputs).square().mean().backward()
    return snapshot


def convnet():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 5))
    constrain(network)
    return network


def test_statistics_are_those_of_snapshots_of_their_own():
    network, memory = convnet(), SnapshotMemory()
    batches = [torch.randn(number, 3, 4, 4) for number in (8, 2, 16)]
    batches[1] = batches[1].to(memory_format=torch.channels_last)
    for seen in (batches[:1], batches[1:], batches[:2]):
        expected = look(copy.deepcopy(network), *seen).statistics()
        assert look(network, *seen, memory=memory).statistics() == expected


def test_a_layer_that_was_not_called_again_has_nothing_of_the_earlier_snapshot():
    network, memory = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), SnapshotMemory()
    found = []
    for called in network:
        snapshot = Snapshot(observed_layers(network), memory=memory)
        with snapshot.watching():
            called(torch.rand(8, 4)).sum().backward()
        found.append(list(snapshot.statistics()))
    assert found == [["0"], ["1"]]


def test_memory_is_used_again_while_no_layer_changes_its_size():
    memory, network = SnapshotMemory(), nn.Sequential(nn.Linear(4, 3))
    first = look(network, torch.rand(8, 4), memory=memory)
    assert look(network, torch.rand(8, 4), memory=memory).moments is first.moments
    network[0] = nn.Linear(4, 3)  # other weights of the same sizes
    assert look(network, torch.rand(8, 4), memory=memory).moments is first.moments
    wider = nn.Sequential(nn.Linear(4, 7))
    snapshot = look(wider, torch.rand(8, 4), memory=memory)
    assert snapshot.moments is not first.moments
    snapshot.statistics()
    assert snapshot.num_values("preactivation") == {"0": 56}


def test_layers_of_the_same_sizes_in_another_order_are_not_mixed_up():
    layers = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}
    nn.init.constant_(layers["b"].weight, 100)
    memory = SnapshotMemory()
    for order in (("a", "b"), ("b", "a")):
        network = nn.ModuleDict({name: layers[name] for name in order})
        snapshot = Snapshot(observed_layers(network), memory=memory)
        with snapshot.watching():
            for layer in layers.values():
                layer(torch.eye(4)).sum().backward()
        found = snapshot.statistics()
        assert found["b"]["preactivation_std"] < found["a"]["preactivation_std"]  # 100 for every input
