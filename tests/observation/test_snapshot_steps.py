"""What a snapshot holds of one step: the weights that were used, in every precision, and nothing for longer."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from lcw_lightning import constrain
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.snapshot import Snapshot


def look(network, *inputs, loss=lambda output: output.square().sum(), gradient_scale=1.0):
    """Send inputs forward and backward through a network in a snapshot's view."""
    snapshot = Snapshot(observed_layers(network), gradient_scale=gradient_scale, with_values=True)
    with snapshot.watching():
        loss(network(*inputs)).backward()
    return snapshot


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_and_biases_are_those_of_the_forward_pass(dtype):
    network, inputs = nn.Sequential(nn.Linear(4, 3)).to(dtype), torch.rand(16, 4, dtype=dtype)
    expected = look(copy.deepcopy(network), inputs).statistics()
    snapshot = look(network, inputs)
    with torch.no_grad():  # what an optimizer does before the statistics are read
        for parameter in network.parameters():
            parameter.add_(1)
    assert snapshot.statistics() == expected
    assert look(network, inputs).statistics() != expected


def test_a_rescaling_of_the_weight_on_the_way_into_the_layer_counts():
    network, inputs = nn.Sequential(nn.Linear(4, 3, bias=False)), torch.rand(16, 4)
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        scaled[0].weight.copy_(torch.arange(12.0).view(3, 4))

    def rescale(layer, _):
        layer.weight.data.copy_(scaled[0].weight)

    snapshot = Snapshot(observed_layers(network))
    with snapshot.watching():  # whose hooks come before the other's
        network[0].register_forward_pre_hook(rescale)
        network(inputs).square().sum().backward()
    assert snapshot.statistics() == look(scaled, inputs).statistics()


def angle_and_shift(network, inputs):
    """Textbook numbers of a linear layer in float64."""
    weight, mean = network[0].weight.detach().double(), inputs.double().mean(0)
    cosine = torch.cosine_similarity(weight, mean.expand_as(weight), dim=1)
    return (90 - cosine.acos().rad2deg()).abs().mean().item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_samples_in_half_precision_do_not_overflow_the_angle(dtype):
    network, inputs = nn.Sequential(nn.Linear(8, 64)).to(dtype), (10 * torch.rand(20_000, 8)).to(dtype)
    assert inputs.double().sum(0).min() > torch.finfo(torch.float16).max
    row = look(network, inputs, loss=lambda output: 1e3 * output.float().square().mean()).statistics()["0"]
    assert row["shift_angle_degrees"] == pytest.approx(angle_and_shift(network, inputs), rel=1e-4)
    assert all(torch.tensor(value).isfinite() for value in row.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_neither_the_angle_nor_the_training(dtype):
    network, inputs = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 4)), 10 * torch.rand(20_000, 8)
    constrain(network, "cwn", exclude=["0.weight"])
    plain = copy.deepcopy(network)
    with torch.autocast("cpu", dtype):
        row = look(network, inputs, loss=lambda output: output.float().mean()).statistics()["0"]
        plain(inputs).float().mean().backward()
    assert row["shift_angle_degrees"] == pytest.approx(angle_and_shift(network, inputs), rel=1e-4)
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_under_autocast_the_residual_is_that_of_the_weights_that_multiply(dtype):
    network, inputs = nn.Sequential(nn.Linear(256, 64)), torch.rand(16, 256)
    constrain(network)
    rounded = network[0].weight.detach().to(dtype).double()
    expected = (rounded.sum(1).abs() / network[0].weight.detach().double().norm(dim=1)).max().item()
    with torch.autocast("cpu", dtype):
        row = look(network, inputs, loss=lambda output: output.float().mean()).statistics()["0"]
    assert row["constraint_residual"] == pytest.approx(expected, rel=0.01)
    assert row["constraint_residual"] > 100 * look(network, inputs).statistics()["0"]["constraint_residual"]


def test_gradients_come_without_their_unit():
    network, inputs = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)), torch.rand(16, 4)
    scaled = look(copy.deepcopy(network), inputs, loss=lambda y: 1024 * y.square().sum(), gradient_scale=1024.0)
    plain = look(network, inputs)
    assert scaled.statistics() == plain.statistics()
    for key, sample in plain.values().items():
        assert torch.equal(scaled.values()[key], sample) or sample.isnan().any(), key


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(40, 60, 3, groups=2), lambda: nn.Linear(60, 60)], ids=["conv", "linear"]
)
def test_spectral_norm_in_training_moves_on_as_it_would_unseen(make):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(spectral_norm(make()), nn.Sigmoid()).train()

    watched, plain = network(), network()
    inputs = torch.rand((4, 40, 6, 6) if isinstance(plain[0], nn.Conv2d) else (4, 60))
    look(watched, inputs).statistics()
    plain(inputs)
    for key, value in plain.state_dict().items():
        assert torch.equal(watched.state_dict()[key], value), key


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["plain", "reentrant"])
def test_activation_checkpointing_shows_the_same_numbers(use_reentrant):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=use_reentrant)

    layers, inputs = (
        nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)),
        torch.rand(16, 4, requires_grad=True),
    )
    expected, twin = look(copy.deepcopy(layers), inputs).statistics(), copy.deepcopy(layers)
    found = look(Checkpointed(*layers), inputs).statistics()
    assert found.keys() == expected.keys()
    for name, row in found.items():
        assert row == pytest.approx(expected[name], rel=1e-6), name
    twin(inputs).square().sum().backward()
    assert all(
        torch.equal(one.grad, other.grad) for one, other in zip(layers.parameters(), twin.parameters(), strict=True)
    )


def test_nothing_of_a_step_outlives_its_snapshot():
    network, kept = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)), []
    network[1].register_forward_hook(lambda _, __, output: kept.append(weakref.ref(output)))
    snapshot = look(network, torch.rand(16, 4))
    assert kept[0]() is None  # the snapshot holds sums and samples alone
    samples = weakref.ref(snapshot.samples.values)
    snapshot.statistics()
    del snapshot
    gc.collect()
    assert samples() is None
