import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lcw_lightning import linearly_constrained
from lcw_lightning.observation.observed_layers import ObservedLayer, observed_layers


def only(layer, **patterns):
    (found,) = observed_layers(nn.Sequential(layer), **patterns).values()
    return found


# in_channels, out_channels, channel_dim, num_projections
SIZES = {
    "linear": (nn.Linear(6, 4), (6, 4, -1, 4)),
    "conv1d": (nn.Conv1d(6, 4, 3), (6, 4, -2, 4)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (6, 4, -3, 4)),
    "transposed": (nn.ConvTranspose3d(6, 4, 3, groups=2), (6, 4, -4, 4)),
    "bilinear": (nn.Bilinear(6, 5, 4), (6, 4, -1, 0)),
    "rnn": (nn.RNN(6, 4, num_layers=2), (6, 4, -1, 4)),
    "lstm": (nn.LSTM(6, 4, bidirectional=True), (6, 4, -1, 2 * 4 * 4)),
    "projected": (nn.LSTM(6, 4, proj_size=3), (6, 3, -1, 4 * 4)),
    "gru-cell": (nn.GRUCell(6, 4), (6, 4, -1, 3 * 4)),
    "attention": (nn.MultiheadAttention(6, 2), (6, 6, -1, 6)),
    "cross-attention": (nn.MultiheadAttention(6, 2, kdim=5, vdim=3), (6, 6, -1, 6)),
}


@pytest.mark.parametrize(("layer", "sizes"), SIZES.values(), ids=SIZES)
def test_each_kind_of_layer_says_where_its_channels_are(layer, sizes):
    found = only(layer)
    assert (found.in_channels, found.out_channels, found.channel_dim, found.num_projections) == sizes
    assert len(found.input_units(found.units())) == found.num_projections


def test_attention_is_one_layer_by_its_own_name_wherever_it_is():
    attention = nn.MultiheadAttention(6, 2)
    inner = observed_layers(nn.ModuleDict({"block": nn.ModuleList([attention])}))
    assert {name: list(layer.weights) for name, layer in inner.items()} == {
        "block.0": ["in_proj_weight", "out_proj.weight"]
    }
    outermost = observed_layers(attention)["MultiheadAttention"]
    assert list(outermost.weights) == ["in_proj_weight", "out_proj.weight"]
    assert torch.equal(outermost.input_units(outermost.units()), attention.in_proj_weight[:6])


def test_a_linear_layer_of_the_users_own_inside_attention_is_a_layer_of_its_own():
    attention = nn.MultiheadAttention(6, 2)
    attention.gate = nn.Linear(6, 2)
    layers = observed_layers(nn.Sequential(attention))
    assert {name: list(layer.weights) for name, layer in layers.items()} == {
        "0": ["in_proj_weight", "out_proj.weight"],
        "0.gate": ["weight"],
    }


def test_layers_come_in_the_order_of_the_modules_under_names_of_their_own():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.GRU(3, 2)), nn.Embedding(3, 2))
    assert list(observed_layers(network)) == ["0", "2.0"]
    assert list(observed_layers(nn.Conv2d(1, 1, 1))) == ["Conv2d"]


def test_patterns_choose_among_the_weights_of_a_layer():
    layer = only(nn.LSTM(6, 4), exclude=["*_hh_*"])
    assert list(layer.weights) == ["weight_ih_l0"]
    with pytest.raises(ValueError, match=r"matches no weight of Sequential; near it are '0\.weight'"):
        observed_layers(nn.Sequential(nn.Linear(4, 3)), include=["head.*"])


def test_attention_without_the_weights_that_read_its_input_has_no_projections():
    layer = only(nn.MultiheadAttention(6, 2), include=["*.out_proj.weight"])
    assert (layer.num_projections, layer.in_channels, layer.out_channels) == (0, 6, 6)


def test_layers_that_are_still_lazy_are_left_out():
    network = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2))
    assert list(observed_layers(network)) == ["0"]
    network(torch.ones(1, 4))
    assert list(observed_layers(network)) == ["0", "1"]


def test_units_are_the_weights_under_their_parametrization_with_a_row_a_unit():
    conv = linearly_constrained(nn.ConvTranspose2d(4, 6, 3, groups=2))
    units = only(conv).units()["weight"]
    assert units.shape == (6, 2 * 9)
    for out in range(6):
        group, place = divmod(out, 3)
        assert torch.equal(units[out], conv.weight[2 * group : 2 * group + 2, place].flatten())
    assert not units.requires_grad


# So large that the power iteration has not come to its end.
SLOW = {
    "linear": lambda: nn.Linear(60, 50),
    "grouped": lambda: nn.Conv2d(40, 60, 3, groups=2),
    "cell": lambda: nn.GRUCell(60, 50),
}


@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW)
def test_looking_at_weights_changes_nothing_of_a_spectral_norm_in_training(make):
    layer = make()
    name = next(name for name, _ in layer.named_parameters() if "weight" in name)
    normed = spectral_norm(layer, name).train()
    before = copy.deepcopy(normed.state_dict())
    found = only(normed)
    units = found.units()
    found.expand_to_fan_in(torch.ones(found.in_channels))
    _ = found.num_projections
    assert all(torch.equal(normed.state_dict()[key], value) for key, value in before.items())
    assert all(module.training for module in normed.modules())
    # What the layer used in its last forward pass.
    forward = getattr(normed, name)
    assert not all(torch.equal(normed.state_dict()[key], value) for key, value in before.items())
    assert not torch.equal(units[name], forward.flatten(1))
    assert torch.equal(found.units()[name], forward.flatten(1))


def test_values_of_input_channels_meet_the_weights_that_read_them():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    conv = ObservedLayer(*only(nn.Conv1d(4, 6, 2, groups=2)))
    assert conv.expand_to_fan_in(values).tolist() == 3 * [[1, 1, 2, 2]] + 3 * [[3, 3, 4, 4]]
    assert only(nn.LSTM(4, 2)).expand_to_fan_in(values).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("layer", "bias"),
    [
        (lambda: nn.Linear(4, 3), "bias"),
        (lambda: nn.MultiheadAttention(4, 2), "out_proj.bias"),
        (lambda: nn.Linear(4, 3, bias=False), None),
        (lambda: nn.MultiheadAttention(4, 2, bias=False), None),
        (lambda: nn.LSTM(4, 3), None),
        (lambda: nn.LSTMCell(4, 3), None),
    ],
    ids=["linear", "attention", "linear-without", "attention-without", "recurrent", "cell"],
)
def test_the_bias_is_what_is_added_to_the_output(layer, bias):
    layer = layer()
    found = only(layer).bias
    assert found is None if bias is None else torch.equal(found, layer.get_parameter(bias))
