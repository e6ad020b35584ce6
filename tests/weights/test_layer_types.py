import copy

import pytest
import torch
from torch import nn

from lcw_lightning import (
    constrain,
    edge_of_chaos_init_,
    fold,
    linearly_constrained,
    minibatch_init_,
    register_layer_type,
)
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.weights import layer_types
from lcw_lightning.weights.weight_ref import named_weights


class RowUnits(nn.Module):
    """Linear with names of its own."""

    def __init__(self, fan_in, units):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(units, fan_in) + 1)
        self.shift = nn.Parameter(torch.zeros(units))  # not named bias

    def forward(self, x):
        return x @ self.kernel.T + self.shift


class ColumnUnits(nn.Module):
    """Linear whose weight has shape (in, out), as transformers' Conv1D."""

    def __init__(self, fan_in, units):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(fan_in, units) + 1)
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, x):
        return x @ self.kernel + self.bias


ORIENTATIONS = pytest.mark.parametrize(
    ("layer_type", "fan_in_dim"), [pytest.param(RowUnits, 1, id="rows"), pytest.param(ColumnUnits, 0, id="columns")]
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(layer_types, "_TYPES", dict(layer_types._TYPES))
    register_layer_type(RowUnits, weight="kernel")
    register_layer_type(ColumnUnits, weight="kernel", unit_dim=1)


def test_an_unregistered_type_holds_no_weight(monkeypatch):
    monkeypatch.setattr(layer_types, "_TYPES", {})
    assert named_weights(nn.Sequential(RowUnits(4, 2))) == {}


@ORIENTATIONS
@pytest.mark.parametrize("method", ["parametrize", "project"])
def test_each_unit_sums_to_zero_along_its_own_dimension(layer_type, fan_in_dim, method):
    network = nn.Sequential(layer_type(6, 4))
    assert constrain(network, method=method) == ["0.kernel"]
    assert network[0].kernel.sum(fan_in_dim).abs().max() < 1e-5
    assert network[0].kernel.sum(1 - fan_in_dim).abs().max() > 1e-2  # along the other dimension it does not


@ORIENTATIONS
@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])
def test_every_kind_trains_folds_and_is_copied(layer_type, fan_in_dim, kind):
    network, x = nn.Sequential(layer_type(6, 4), nn.ReLU(), layer_type(4, 3)), torch.randn(16, 6)
    constrain(network, kind)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(x).square().mean().backward()
    optimizer.step()
    network.eval()
    torch.testing.assert_close(fold(network)(x), network(x))
    torch.testing.assert_close(copy.deepcopy(network)(x), network(x))


@ORIENTATIONS
def test_both_orientations_are_the_same_map_as_linear(layer_type, fan_in_dim):
    torch.manual_seed(0)
    layer, linear = layer_type(6, 4), nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(layer.kernel if fan_in_dim == 1 else layer.kernel.T)
    constrain(nn.Sequential(layer))
    linearly_constrained(linear)
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), linear(x))


@ORIENTATIONS
@pytest.mark.parametrize("granularity", ["layer", "unit"])
def test_minibatch_initialization_rescales_the_type(layer_type, fan_in_dim, granularity):
    network, x = nn.Sequential(layer_type(6, 4), nn.ReLU(), layer_type(4, 3)), torch.randn(256, 6)
    constrain(network)
    minibatch_init_(network, x, granularity=granularity)
    z = network[0](x)
    std = z.std(0, unbiased=False) if granularity == "unit" else z.std(unbiased=False)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-3, atol=0)


@pytest.mark.parametrize("weights", ["gaussian", "delta_orthogonal"])
def test_edge_of_chaos_initialization_draws_units_along_their_dimension(weights):
    network, x = nn.Sequential(ColumnUnits(64, 64), nn.ReLU(), ColumnUnits(64, 32)), torch.randn(256, 64)
    constrain(network)
    edge_of_chaos_init_(network, x, activation=torch.relu, weights=weights)
    assert network[2].kernel.sum(0).abs().max() < 1e-5
    assert network[2].kernel.square().mean().item() * 64 == pytest.approx(2, rel=0.1)  # chi_1 = sigma_w^2 / 2 = 1


@ORIENTATIONS
def test_the_monitor_knows_the_sizes(layer_type, fan_in_dim):
    layer = observed_layers(nn.Sequential(layer_type(6, 4)))["0"]
    assert (layer.in_channels, layer.out_channels, layer.channel_dim, layer.num_projections) == (6, 4, -1, 4)
    assert layer.input_units(layer.units()).shape == (4, 6)


def test_a_subclass_is_found_and_may_be_registered_itself():
    class Sub(RowUnits):
        pass

    assert list(named_weights(nn.Sequential(Sub(4, 2)))) == ["0.kernel"]
    register_layer_type(Sub, weight="shift")
    assert list(named_weights(nn.Sequential(Sub(4, 2), RowUnits(4, 2)))) == ["0.shift", "1.kernel"]


@pytest.mark.parametrize("given", [RowUnits(2, 2), int, "RowUnits"], ids=["instance", "int", "name"])
def test_what_is_no_class_of_modules_is_refused(given):
    with pytest.raises(ValueError, match=r"register_layer_type\(\) needs a class of torch\.nn\.Module"):
        register_layer_type(given)


def test_a_third_dimension_for_units_is_refused():
    with pytest.raises(ValueError, match="unit_dim of RowUnits is 0"):
        register_layer_type(RowUnits, unit_dim=2)


@pytest.mark.parametrize("name", ["", "w*", "layer.kernel"])
def test_what_is_no_name_of_a_parameter_is_refused(name):
    with pytest.raises(ValueError, match=r"needs the name of a parameter of RowUnits, got"):
        register_layer_type(RowUnits, weight=name)
