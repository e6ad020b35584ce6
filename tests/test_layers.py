import pytest
import torch
from torch import nn

from lcw_lightning import linearly_constrained
from lcw_lightning.layers import WeightRef, named_weights, select_weights
from lcw_lightning.theory.zero_sum import embed_zero_sum

LAYERS = {
    "linear": nn.Linear(6, 4),
    "conv1d": nn.Conv1d(6, 4, 3),
    "conv2d": nn.Conv2d(6, 4, (3, 2)),
    "conv3d": nn.Conv3d(6, 4, 2),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_sizes_are_those_of_the_weight(layer):
    ref = WeightRef(layer, "weight")
    assert ref.value.shape[0] == ref.num_units
    assert ref.value[0].numel() == ref.fan_in


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_constant_image_gives_every_unit_its_expanded_input(layer):
    channels = torch.rand(WeightRef(layer, "weight").num_channels)
    spatial = [5] * (-1 - WeightRef(layer, "weight").channel_dim)
    image = channels.view(-1, *[1] * len(spatial)).expand(-1, *spatial).unsqueeze(0)
    expected = layer(image).flatten(2).mean(2)[0] if spatial else layer(image)[0]
    expanded = WeightRef(layer, "weight").expand_to_fan_in(channels)
    torch.testing.assert_close((layer.weight.flatten(1) * expanded).sum(1) + layer.bias, expected)


def test_names_follow_the_model_and_leave_other_weights_out():
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "body": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
            "head": LAYERS["grouped"],
        }
    )
    assert list(named_weights(model)) == ["body.0.weight", "head.weight"]


def test_a_shared_module_counts_once():
    shared = nn.Linear(3, 3)
    assert list(named_weights(nn.Sequential(shared, nn.ReLU(), shared))) == ["0.weight"]


@pytest.fixture
def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        pytest.param(["*"], [], ["0.weight", "1.weight", "2.weight"], id="all"),
        pytest.param(["0.*", "2.weight"], [], ["0.weight", "2.weight"], id="include"),
        pytest.param(["*"], ["[01].*"], ["2.weight"], id="exclude"),
    ],
)
def test_globs_select(network, include, exclude, expected):
    assert list(select_weights(network, include, exclude)) == expected


@pytest.mark.parametrize("patterns", [{"include": ["1.wieght"]}, {"exclude": ["1.wieght"]}], ids=["include", "exclude"])
def test_a_pattern_without_a_match_names_near_ones(network, patterns):
    with pytest.raises(ValueError, match=r"'1\.wieght' matches no weight of Sequential; near it are '1\.weight'"):
        select_weights(network, **patterns)


def test_nothing_left_is_an_error(network):
    with pytest.raises(ValueError, match="leave no weight of Sequential"):
        select_weights(network, exclude=["*"])


def test_a_model_without_weights_says_what_is_needed():
    with pytest.raises(ValueError, match="needs a layer of Linear, Conv1d, Conv2d, Conv3d"):
        select_weights(nn.ReLU())


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


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_string_in_place_of_a_list_is_refused(network, argument):
    with pytest.raises(ValueError, match=rf"{argument} is a list of patterns, got the string '0\.\*'"):
        select_weights(network, **{argument: "0.*"})
