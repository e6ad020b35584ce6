import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lcw_lightning import constrain, linearly_constrained
from lcw_lightning.observation.built_weights import built_weights
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.snapshot import Snapshot
from lcw_lightning.weights.weight_ref import WeightRef

PARAMETRIZED = {"lcw": linearly_constrained, "weight-norm": weight_norm, "spectral-norm": spectral_norm}
parametrized = pytest.mark.parametrize("parametrize", PARAMETRIZED.values(), ids=PARAMETRIZED)


@parametrized
def test_the_weight_is_the_one_that_the_layer_multiplied_by(parametrize):
    layer = parametrize(nn.Linear(60, 50, bias=False)).train()
    ref, inputs = WeightRef(layer, "weight"), torch.eye(60)
    with built_weights([ref]) as built:
        output = layer(inputs)
    torch.testing.assert_close(built[ref], output.detach().t())
    assert not built[ref].requires_grad


@parametrized
def test_no_hook_stays_after_the_block_nor_after_an_exception(parametrize):
    layer = parametrize(nn.Linear(6, 5))
    ref, held = WeightRef(layer, "weight"), layer.parametrizations.weight
    with built_weights([ref]):
        assert len(held._forward_hooks) == 1
    assert not held._forward_hooks
    with pytest.raises(RuntimeError, match="mat1 and mat2"), built_weights([ref]):
        layer(torch.ones(2, 7))
    assert not held._forward_hooks


def test_plain_weights_and_those_without_a_graph_are_left_to_be_read():
    plain, constrained = nn.Linear(4, 3), linearly_constrained(nn.Linear(4, 3))
    refs = [WeightRef(layer, "weight") for layer in (plain, constrained)]
    with built_weights(refs) as built, torch.no_grad():
        for layer in (plain, constrained):
            layer(torch.ones(2, 4))
    assert not built  # who rescales a weight after this call need not compute it again


def test_a_snapshot_builds_no_weight_again():
    network, calls = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)), []
    constrain(network)
    for layer in (network[0], network[2]):
        layer.parametrizations.weight[0].register_forward_hook(lambda *_: calls.append(1))
    snapshot = Snapshot(observed_layers(network))
    with snapshot.watching():
        network(torch.rand(8, 6)).square().sum().backward()
    assert len(calls) == 2
    assert not snapshot.built  # it holds no weight longer than its layer's call
    with torch.no_grad(), Snapshot(observed_layers(network)).watching():  # a control
        network(torch.rand(8, 6))
    assert len(calls) == 6


def test_a_weight_that_is_built_again_without_a_graph_is_left_to_be_read():
    layer = linearly_constrained(nn.Linear(4, 3))
    ref = WeightRef(layer, "weight")
    with built_weights([ref]) as built:
        layer(torch.ones(2, 4))
        assert ref in built
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(2)
            layer(torch.ones(2, 4))
        assert ref not in built
