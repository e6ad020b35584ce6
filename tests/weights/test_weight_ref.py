import copy

import pytest
import torch
from torch import nn

from lcw_lightning import constrain, linearly_constrained
from lcw_lightning.theory.zero_sum import embed_zero_sum
from lcw_lightning.weights.weight_ref import WeightRef, named_weights

LAYERS = {
    "linear": nn.Linear(6, 4),
    "conv1d": nn.Conv1d(6, 4, 3),
    "conv2d": nn.Conv2d(6, 4, (3, 2)),
    "conv3d": nn.Conv3d(6, 4, 2),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "transposed1d": nn.ConvTranspose1d(6, 4, 3),
    "transposed3d": nn.ConvTranspose3d(6, 4, 2),
    "transposed-grouped": nn.ConvTranspose2d(6, 4, (3, 2), groups=2),
    "transposed-depthwise": nn.ConvTranspose2d(4, 8, 3, groups=4),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_units_are_the_layers_outputs(layer):
    ref = WeightRef(layer, "weight")
    assert ref.num_units == getattr(layer, "out_channels", getattr(layer, "out_features", None))
    assert ref.units.shape == (ref.num_units, ref.fan_in)
    assert ref.num_units * ref.fan_in == layer.weight.numel()


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_factor_for_each_unit_scales_that_units_output_alone(layer):
    ref = WeightRef(layer, "weight")
    factors = torch.arange(1.0, ref.num_units + 1)
    image = torch.randn(2, ref.num_channels, *[5] * (-1 - ref.channel_dim))
    bias = layer.bias.view(-1, *[1] * (image.dim() - 2))
    before = layer(image) - bias
    scaled = torch.func.functional_call(layer, {"weight": layer.weight * ref.expand_to_weight(factors)}, image) - bias
    torch.testing.assert_close(scaled, before * factors.view(-1, *[1] * (image.dim() - 2)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_constant_image_gives_every_unit_its_expanded_input(layer):
    channels = torch.rand(WeightRef(layer, "weight").num_channels)
    spatial = [5] * (-1 - WeightRef(layer, "weight").channel_dim)
    image = channels.view(-1, *[1] * len(spatial)).expand(-1, *spatial).unsqueeze(0)
    inner = (..., *[slice(size - 1, 5) for size in getattr(layer, "output_padding", ()) and layer.kernel_size])
    expected = layer(image)[inner].flatten(2).mean(2)[0] if spatial else layer(image)[0]
    expanded = WeightRef(layer, "weight").expand_to_fan_in(channels)
    units = WeightRef(layer, "weight").units
    torch.testing.assert_close((units * expanded).sum(1) + layer.bias, expected)


HOLDERS = {
    "embedding": (nn.Embedding(5, 4), []),
    "layer-norm": (nn.LayerNorm(4), []),
    "batch-norm": (nn.BatchNorm2d(4), []),
    "linear": (nn.Linear(4, 4), ["weight"]),
    "bilinear": (nn.Bilinear(3, 4, 2), ["weight"]),
    "transposed": (nn.ConvTranspose2d(3, 4, 2), ["weight"]),
    "rnn": (nn.RNN(3, 4), ["weight_ih_l0", "weight_hh_l0"]),
    "lstm": (
        nn.LSTM(3, 4, proj_size=2, bidirectional=True),
        [f"weight_{kind}_l0{way}" for way in ("", "_reverse") for kind in ("ih", "hh", "hr")],
    ),
    "gru-cell": (nn.GRUCell(3, 4), ["weight_ih", "weight_hh"]),
    "attention": (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    "cross-attention": (
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
}


@pytest.mark.parametrize(("module", "names"), HOLDERS.values(), ids=HOLDERS)
def test_each_kind_of_layer_names_its_weights_plain_and_constrained(module, names):
    assert list(named_weights(module)) == names
    module = copy.deepcopy(module)
    if names:
        assert constrain(module) == names
    assert list(named_weights(module)) == names


def test_hooks_see_linear_layers_and_convolutions_alone():
    model = nn.ModuleDict({name: module for name, (module, _) in HOLDERS.items()})
    assert [name for name, ref in named_weights(model).items() if ref.is_observable] == [
        "linear.weight",
        "transposed.weight",
    ]


def test_a_shared_module_counts_once():
    shared = nn.Linear(3, 3)
    assert list(named_weights(nn.Sequential(shared, nn.ReLU(), shared))) == ["0.weight"]


ASSIGNABLE = {
    "plain": nn.Linear(6, 4),
    "zero-sum": linearly_constrained(nn.Linear(6, 4)),
    "two-originals": nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)),
}


@pytest.mark.parametrize("layer", ASSIGNABLE.values(), ids=ASSIGNABLE)
def test_an_assigned_value_comes_back_and_every_parameter_keeps_its_storage(layer):
    ref = WeightRef(layer, "weight")
    value = embed_zero_sum(torch.randn(4, 5))
    before = [(parameter, parameter.data_ptr()) for parameter in layer.parameters()]
    ref.assign_(value)
    torch.testing.assert_close(layer.weight, value)
    for (parameter, pointer), now in zip(before, layer.parameters(), strict=True):
        assert now is parameter
        assert now.data_ptr() == pointer
