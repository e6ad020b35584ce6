"""A state dict of one normalization is not loaded into another, and old ones of torch are."""

import copy
import io

import pytest
import torch
from torch import nn

from lcw_lightning import constrain


def network(kind):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 4), nn.ConvTranspose1d(4, 6, 3, groups=2))
    constrain(layers, kind)
    return layers


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("source", "target"), [("wn", "cwn"), ("cwn", "wn")])
def test_each_normalization_refuses_the_state_dict_of_the_other(source, target):
    state = saved(network(source).state_dict())
    with pytest.raises(
        RuntimeError, match=f"is of kind '{target}', the state dict of kind '{source}'; take '{source}'"
    ):
        network(target).load_state_dict(state)


def test_control_without_the_version_they_load_into_each_other_as_another_network():
    plain = dict(network("wn").state_dict())  # as a file of before
    loaded = network("cwn")
    loaded.load_state_dict(plain)
    assert (loaded[0].weight - network("wn")[0].weight).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["wn", "cwn"])
def test_its_own_state_dict_loads_with_and_without_the_version(kind):
    source, images = network(kind), torch.randn(3, 8)
    with torch.no_grad():
        source[0].bias.add_(1)
    for state in (saved(source.state_dict()), dict(source.state_dict())):
        target = network(kind)
        target.load_state_dict(state)
        assert torch.equal(target[0](images), source[0](images))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", ["wn", "cwn", "lcw"])
def test_a_state_dict_of_the_old_weight_norm_loads(kind):
    layer = nn.Linear(8, 4)
    old = nn.utils.weight_norm(copy.deepcopy(layer))
    with torch.no_grad():
        old.weight_g.mul_(2)
    images, target = torch.randn(3, 8), nn.Linear(8, 4)
    constrain(target, kind)
    target.load_state_dict(old.state_dict())
    weight = 2 * layer.weight
    expected = weight if kind == "wn" else weight - weight.mean(1, keepdim=True)
    torch.testing.assert_close(target(images), nn.functional.linear(images, expected, layer.bias))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("dim", [1, None], ids=["columns", "the whole weight"])
def test_so_does_one_of_the_old_weight_norm_along_another_dimension(dim):
    old = nn.utils.weight_norm(nn.ConvTranspose1d(4, 6, 3), dim=dim)
    target = nn.ConvTranspose1d(4, 6, 3)
    constrain(target, "wn")
    target.load_state_dict(old.state_dict())
    torch.testing.assert_close(target(torch.ones(1, 4, 5)), old(torch.ones(1, 4, 5)))
