"""The statistics of activation shift; test_snapshot.py compares them with the textbook, for every kind of layer."""

import pytest
import torch
from torch import nn

from lcw_lightning import linearly_constrained
from lcw_lightning.observation.moments import ChannelSums, NetworkMoments
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.snapshot import Snapshot
from lcw_lightning.observation.statistics import WeightFacts, network_statistics


def observed(layer, *batches):
    """Statistics of a layer that is called with each of the batches, and random gradients."""
    snapshot = Snapshot(observed_layers(nn.Sequential(layer)))
    with snapshot.watching():
        for inputs in batches:
            outputs = layer(inputs)
            outputs.backward(torch.randn_like(outputs))
    return snapshot.statistics()["0"]


def statistics_of(network, series):
    """Statistics of layers from tensors ``{(layer, quantity): values}`` alone."""
    layers = observed_layers(network)
    moments = NetworkMoments(layers)
    sums = {}
    for (name, quantity), values in series.items():
        layer = layers[name]
        width = layer.in_channels if "input" in quantity else layer.out_channels
        sums[name, quantity] = ChannelSums.of(values, width, layer.channel_dim)
    moments.update(sums)
    return network_statistics(
        moments, layers, {name: WeightFacts.of(layer, layer.units()) for name, layer in layers.items()}
    )


def test_a_transposed_convolution_has_the_statistics_of_the_convolution_that_it_equals():
    transposed, plain = nn.ConvTranspose2d(6, 4, 1, groups=2), nn.Conv2d(6, 4, 1, groups=2)
    with torch.no_grad():
        for out in range(4):  # two outputs a group, which see three inputs each
            plain.weight[out] = transposed.weight[3 * (out // 2) : 3 * (out // 2) + 3, out % 2]
        plain.bias.copy_(transposed.bias)
    images = torch.rand(16, 6, 4, 4)
    torch.manual_seed(1)
    expected = observed(plain, images)
    torch.manual_seed(1)
    assert observed(transposed, images) == pytest.approx(expected, rel=1e-4)


def test_zero_sum_weights_on_equal_means_have_no_shift():
    statistics = observed(linearly_constrained(nn.Linear(64, 32)), 0.5 + 0.1 * torch.randn(20_000, 64))
    assert statistics["shift_ratio"] < 0.02
    assert statistics["shift_angle_degrees"] < 0.1
    assert statistics["constraint_residual"] < 1e-6
    plain = observed(nn.Linear(64, 32), 0.5 + 0.1 * torch.randn(20_000, 64))
    assert plain["shift_ratio"] > 1
    assert plain["shift_angle_degrees"] > 1
    assert plain["constraint_residual"] > 1


def test_the_bias_is_no_shift():
    layer, inputs = nn.Linear(6, 4), torch.randn(64, 6)
    before = observed(layer, inputs)
    nn.init.constant_(layer.bias, 100.0)
    assert observed(layer, inputs)["shift_ratio"] == pytest.approx(before["shift_ratio"], rel=1e-3)


def test_propositions_4_and_5_square_zero_sum_layers_amplify_alike_both_ways():
    statistics = observed(linearly_constrained(nn.Linear(128, 128)), torch.rand(20_000, 128))
    assert statistics["amplification_forward"] == pytest.approx(statistics["amplification_backward"], rel=0.02)


def test_plain_weights_amplify_what_inputs_share_forward_but_not_backward():
    layer = nn.Linear(128, 128)
    nn.init.normal_(layer.weight, mean=0.05, std=0.1)
    inputs = torch.rand(20_000, 128) + torch.rand(20_000, 1)
    plain = observed(layer, inputs)
    assert plain["amplification_forward"] > 5 * plain["amplification_backward"]
    constrained = observed(linearly_constrained(layer), inputs)
    assert constrained["amplification_forward"] < constrained["amplification_backward"]


def test_dead_and_sparse_inputs_are_counted():
    inputs = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 3.0, 1.0, 0.0]])
    statistics = observed(nn.Linear(4, 2), inputs)
    assert statistics["dead_units"] == 0.25
    assert statistics["sparsity"] == 0.5


def test_a_channel_is_dead_if_it_is_zero_at_every_position_and_in_every_call():
    images = torch.ones(2, 4, 3, 3)
    images[:, 0] = 0
    images[0, 1] = 0
    layer = nn.Conv2d(4, 2, 1)
    assert observed(layer, images)["dead_units"] == 0.25
    assert observed(layer, images, torch.ones(2, 4, 3, 3))["dead_units"] == 0


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30], ids=str)
def test_gradients_of_any_size_keep_it(size):
    network, signs = nn.Sequential(nn.Linear(2, 1)), torch.tensor([[1.0], [-1.0]])
    gradients = {("0", "preactivation_gradient"): size * signs, ("0", "input_gradient"): 3 * size * signs.expand(2, 2)}
    row = statistics_of(network, gradients)["0"]
    assert row["gradient_std"] == pytest.approx(size, rel=1e-6)
    assert row["amplification_backward"] == pytest.approx(9, rel=1e-6)


def test_a_large_shift_leaves_the_spread_beside_it():
    network, signs = nn.Sequential(nn.Linear(2, 1, bias=False)), torch.tensor([[1.0], [-1.0]])
    values = {("0", "preactivation"): 1e6 + 0.125 * signs, ("0", "input"): 1e6 + torch.tensor([[0.5, -0.5]] * 2)}
    row = statistics_of(network, values)["0"]
    assert row["preactivation_std"] == pytest.approx(0.125, rel=1e-3)
    assert row["shift_ratio"] == pytest.approx(8e6, rel=1e-3)
    assert row["input_mean"] == 1e6
    assert row["input_mean_spread"] == 0.5


def test_layers_of_different_widths_do_not_mix():
    network = nn.Sequential(nn.Linear(6, 3), nn.Conv2d(2, 5, 3), nn.LSTM(4, 7))
    values = {name: torch.randn(40, layer.in_channels) for name, layer in observed_layers(network).items()}
    series = {(name, "input"): tensor for name, tensor in values.items() if name != "1"}
    series["1", "input"] = values["1"].view(40, 2, 1, 1)
    for name, row in statistics_of(network, series).items():
        assert row["input_mean"] == pytest.approx(values[name].double().mean().item(), rel=1e-6), name


def test_what_was_not_seen_is_left_out():
    network = nn.ModuleDict({"seen": nn.Linear(3, 2), "unseen": nn.Linear(3, 2)})
    found = statistics_of(network, {("seen", "input"): torch.randn(4, 3), ("seen", "preactivation"): torch.randn(4, 2)})
    assert list(found) == ["seen"]
    assert "shift_ratio" in found["seen"]
    assert "gradient_std" not in found["seen"]
    assert "amplification_backward" not in found["seen"]


def test_a_single_sample_without_a_batch_dimension_counts_as_one():
    layer, samples = nn.Linear(3, 2), torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 3.0]])
    one_by_one = observed(layer, *samples)
    assert one_by_one["input_mean_spread"] == pytest.approx((2 / 9) ** 0.5)  # of means 2, 2, 3
    together = observed(layer, samples)
    for name in ("input_mean", "shift_ratio", "preactivation_std", "shift_angle_degrees"):
        assert one_by_one[name] == pytest.approx(together[name], rel=1e-5), name


def test_facts_hold_every_units_sum_and_norm():
    layer = nn.LSTM(3, 4, proj_size=2)
    found = observed_layers(nn.Sequential(layer))["0"]
    facts = WeightFacts.of(found, found.units())
    weights = [layer.weight_ih_l0, layer.weight_hh_l0, layer.weight_hr_l0]
    torch.testing.assert_close(facts.sums, torch.cat([weight.detach().sum(1, keepdim=True) for weight in weights]))
    torch.testing.assert_close(
        facts.norms, torch.cat([weight.detach().norm(dim=1, keepdim=True) for weight in weights])
    )
    torch.testing.assert_close(facts.input_norms, weights[0].detach().norm(dim=1, keepdim=True))
    assert facts.bias is None
