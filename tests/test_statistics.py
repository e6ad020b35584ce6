import pytest
import torch
from torch import nn

from lcw_lightning import linearly_constrained
from lcw_lightning.layers import WeightRef
from lcw_lightning.recording import observe
from lcw_lightning.statistics import NetworkMoments, layer_statistics

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (256, 6)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3), (32, 6, 8, 8)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (32, 6, 8, 8)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), (32, 6, 9)),
}


def observed(layer, inputs):
    ref = WeightRef(layer, "weight")
    moments = NetworkMoments({"layer": ref})
    gradient = torch.randn_like(layer(inputs))
    with observe({"layer": layer}, moments.update):
        layer(inputs).backward(gradient)
    return layer_statistics(moments.compute()["layer"], ref, ref.units.detach(), layer.bias), gradient


def channels(tensor):
    """The textbook form of the statistics' channels: (samples x positions, channels)."""
    return tensor.detach().double().movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_statistics_match_their_definitions(make, shape):
    layer, inputs = make(), torch.relu(torch.randn(shape) + 0.3).requires_grad_()
    statistics, dz = observed(layer, inputs)

    bias = layer.bias.view(1, -1, *[1] * (inputs.dim() - 2))
    a, z, dz = channels(inputs), channels(layer(inputs) - bias), channels(dz)
    da = channels(inputs.grad)
    assert {name: pytest.approx(value.item(), rel=1e-4) for name, value in statistics.items()} == {
        "shift_ratio": (z.mean(0).square().mean() / z.var(0, correction=0).mean()).sqrt().item(),
        "shift_angle_degrees": _shift_angle(layer, a.mean(0)),
        "input_mean": a.mean().item(),
        "input_mean_spread": a.mean(0).std(correction=0).item(),
        "preactivation_std": z.var(0, correction=0).mean().sqrt().item(),
        "gradient_std": dz.var(0, correction=0).mean().sqrt().item(),
        "amplification_forward": (z.var(0, correction=0).mean() / a.var(0, correction=0).mean()).item(),
        "amplification_backward": (da.var(0, correction=0).mean() / dz.var(0, correction=0).mean()).item(),
        "sparsity": (a == 0).double().mean().item(),
        "dead_units": 0.0,
        "constraint_residual": (layer.weight.flatten(1).sum(1).abs() / layer.weight.flatten(1).norm(dim=1))
        .max()
        .item(),
    }


def _shift_angle(layer, mean):
    """Angles unit by unit, with the mean image that the unit's own group sees."""
    groups = getattr(layer, "groups", 1)
    angles = []
    for unit, weight in enumerate(layer.weight.detach().double()):
        group = unit * groups // len(layer.weight)
        seen = mean.chunk(groups)[group].view(-1, *[1] * (weight.dim() - 1)).expand_as(weight)
        cosine = torch.cosine_similarity(weight.flatten(), seen.flatten(), dim=0)
        angles.append(abs(90 - torch.rad2deg(cosine.acos()).item()))
    return sum(angles) / len(angles)


def test_a_transposed_convolution_has_the_statistics_of_the_convolution_that_it_equals():
    transposed, plain = nn.ConvTranspose2d(6, 4, 1, groups=2), nn.Conv2d(6, 4, 1, groups=2)
    with torch.no_grad():
        for out in range(4):  # two outputs a group, which see three inputs each
            plain.weight[out] = transposed.weight[3 * (out // 2) : 3 * (out // 2) + 3, out % 2]
        plain.bias.copy_(transposed.bias)
    images = torch.rand(16, 6, 4, 4)
    torch.manual_seed(1)
    expected, _ = observed(plain, images)
    torch.manual_seed(1)
    statistics, _ = observed(transposed, images)
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )


def test_zero_sum_weights_on_equal_means_have_no_shift():
    layer = linearly_constrained(nn.Linear(64, 32))
    statistics, _ = observed(layer, 0.5 + 0.1 * torch.randn(20_000, 64))
    assert statistics["shift_ratio"] < 0.02
    assert statistics["shift_angle_degrees"] < 0.1
    assert statistics["constraint_residual"] < 1e-6
    plain, _ = observed(nn.Linear(64, 32), 0.5 + 0.1 * torch.randn(20_000, 64))
    assert plain["shift_ratio"] > 1
    assert plain["shift_angle_degrees"] > 1
    assert plain["constraint_residual"] > 1


def test_propositions_4_and_5_square_zero_sum_layers_amplify_alike_both_ways():
    statistics, _ = observed(linearly_constrained(nn.Linear(128, 128)), torch.rand(20_000, 128))
    assert statistics["amplification_forward"] == pytest.approx(statistics["amplification_backward"].item(), rel=0.02)


def test_plain_weights_amplify_what_inputs_share_forward_but_not_backward():
    layer = nn.Linear(128, 128)
    nn.init.normal_(layer.weight, mean=0.05, std=0.1)
    inputs = torch.rand(20_000, 128) + torch.rand(20_000, 1)
    plain, _ = observed(layer, inputs)
    assert plain["amplification_forward"] > 5 * plain["amplification_backward"]
    constrained, _ = observed(linearly_constrained(layer), inputs)
    assert constrained["amplification_forward"] < constrained["amplification_backward"]


def test_dead_and_sparse_inputs_are_counted():
    inputs = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 3.0, 1.0, 0.0]])
    statistics, _ = observed(nn.Linear(4, 2), inputs)
    assert statistics["dead_units"] == 0.25
    assert statistics["sparsity"] == 0.5


def test_a_vanished_gradient_and_a_large_shift_keep_their_size():
    layer = nn.Linear(2, 1, bias=False)
    ref = WeightRef(layer, "weight")
    moments = NetworkMoments({"layer": ref})
    signs = torch.tensor([[1.0], [-1.0]])
    moments.update("layer", "preactivation_gradient", 1e-30 * signs)
    moments.update("layer", "preactivation", 1000 + 0.125 * signs)
    found = moments.compute()["layer"]
    assert found["preactivation_gradient"].variance.sqrt().item() == pytest.approx(1e-30)
    assert found["preactivation"].variance.sqrt().item() == pytest.approx(0.125)


def test_moments_of_two_batches_are_those_of_their_union():
    ref = WeightRef(nn.Linear(3, 2), "weight")
    whole, parts = NetworkMoments({"layer": ref}), NetworkMoments({"layer": ref})
    batch = torch.randn(10, 3)
    whole.update("layer", "input", batch)
    parts.update("layer", "input", batch[:4])
    parts.update("layer", "input", batch[4:])
    for one, other in zip(whole.compute()["layer"]["input"], parts.compute()["layer"]["input"], strict=True):
        torch.testing.assert_close(one, other)


def test_what_was_not_seen_is_left_out():
    refs = {name: WeightRef(nn.Linear(3, 2), "weight") for name in ("seen", "unseen")}
    moments = NetworkMoments(refs)
    moments.update("seen", "input", torch.randn(4, 3))
    moments.update("seen", "preactivation", torch.randn(4, 2))
    found = moments.compute()
    assert list(found) == ["seen"]
    statistics = layer_statistics(found["seen"], refs["seen"], refs["seen"].value.detach(), None)
    assert "shift_ratio" in statistics
    assert "gradient_std" not in statistics


def test_a_single_sample_without_a_batch_dimension_counts_as_one():
    ref = WeightRef(nn.Linear(3, 2), "weight")
    moments = NetworkMoments({"layer": ref})
    moments.update("layer", "input", torch.tensor([1.0, 2.0, 3.0]))
    moments.update("layer", "input", torch.tensor([3.0, 2.0, 3.0]))
    assert moments.compute()["layer"]["input"].mean.tolist() == [2.0, 2.0, 3.0]
