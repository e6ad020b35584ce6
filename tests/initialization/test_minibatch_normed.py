"""Minibatch initialization of weights with trained gains, as Salimans & Kingma do it, and of those of fixed norm."""

import copy

import pytest
import torch
from torch import nn

from lcw_lightning import MLP, constrain, minibatch_init_
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.initialization.minibatch import rescale_on_first_forward
from lcw_lightning.observation.hooks import observe

normed = pytest.mark.parametrize("kind", ["cwn", "wn"])
granularities = pytest.mark.parametrize("granularity", ["layer", "unit"])


class Graph(nn.Module):
    """A convolution without bias, a residual add, a grouped transposed convolution and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.shared = nn.Linear(6, 6)

    def forward(self, images):
        x = self.stem(images).relu()
        x = self.up((x + self.block(x)).relu()).mean((2, 3))
        return self.shared(self.shared(x).sigmoid())


GRAPHS = {"mlp": (lambda: MLP(48, 10, depth=8, width=32), (64, 3, 4, 4)), "graph": (Graph, (64, 3, 8, 8))}
graphs = pytest.mark.parametrize(("make", "shape"), GRAPHS.values(), ids=GRAPHS)


def outputs(network, inputs):
    """What every layer puts out when it is first called, bias included, as (samples x positions, units)."""
    layers = {name: module for name, module in network.named_modules() if hasattr(module, "weight")}
    found = {}

    def keep(name, quantity, tensor):
        if quantity == "preactivation":
            found.setdefault(name, tensor.movedim(1, -1).flatten(0, -2))

    with observe(layers, keep), torch.no_grad():
        network(inputs)
    return found


@graphs
@normed
@granularities
def test_every_unit_gets_mean_zero_and_the_target_std_whatever_the_granularity(make, shape, kind, granularity):
    network, inputs = make(), torch.rand(shape)
    constrain(network, kind)
    minibatch_init_(network, inputs, target_std=0.5, granularity=granularity)
    found = outputs(network, inputs)
    for name, z in found.items():
        torch.testing.assert_close(z.std(0, correction=0), torch.full((z.shape[1],), 0.5), msg=name, rtol=1e-3, atol=0)
        mean = z.mean(0).abs().max().item()
        assert mean < 1e-3 or name == "stem", name
    assert set(constrained_weights(network).values()) == {kind}
    if "stem" in found and kind == "wn":
        assert found["stem"].mean(0).abs().max() > 0.1  # without a bias there is nothing to shift by


@pytest.mark.parametrize("kind", ["lcw", "none"])
def test_other_kinds_keep_their_activation_shift_and_biases_of_zero(kind):
    network, inputs = MLP(48, 10, depth=3, width=32), torch.rand(64, 48)
    constrain(network, kind)
    minibatch_init_(network, inputs, granularity="unit")
    assert not network.output.bias.any()
    assert max(z.mean(0).abs().max().item() for z in outputs(network, inputs).values()) > 0.1


@normed
def test_gains_and_biases_are_those_of_salimans_and_kingma(kind):
    layer, inputs = nn.Linear(48, 16), 0.5 + torch.rand(200, 48)
    constrain(layer, kind)
    v = layer.parametrizations.weight.original1.detach().double()
    v = v - v.mean(1, keepdim=True) if kind == "cwn" else v
    t = inputs.double() @ (v / v.norm(dim=1, keepdim=True)).T
    mu, sigma = t.mean(0), t.std(0, correction=0)
    minibatch_init_(layer, inputs)
    torch.testing.assert_close(layer.parametrizations.weight.original0.flatten().double(), 1 / sigma, rtol=1e-4, atol=0)
    torch.testing.assert_close(layer.bias.double(), -mu / sigma, rtol=1e-4, atol=1e-4)


@normed
def test_directions_stay_and_get_the_length_of_the_gain(kind):
    layer = nn.Linear(48, 16)
    constrain(layer, kind)
    before = layer.weight.detach().clone()
    minibatch_init_(layer, torch.rand(64, 48))
    cosines = nn.functional.cosine_similarity(layer.weight, before)
    torch.testing.assert_close(cosines, torch.ones(16))
    lengths = layer.parametrizations.weight.original1.norm(dim=1, keepdim=True)
    torch.testing.assert_close(lengths, layer.parametrizations.weight.original0)


@normed
def test_a_frozen_bias_and_a_frozen_weight_are_left_alone(kind):
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    constrain(network, kind)
    network[0].bias.requires_grad_(False)
    network[1].requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    inputs = torch.randn(32, 4)
    with pytest.warns(UserWarning, match=r"'1\.weight' \(frozen\)"):
        minibatch_init_(network, inputs)
    torch.testing.assert_close(network[0](inputs).std(0, correction=0), torch.ones(8), rtol=1e-3, atol=0)
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == [f"0.parametrizations.weight.original{number}" for number in (0, 1)]


def test_a_spectrally_normalized_layer_is_left_alone_and_the_others_are_not():
    network, inputs = MLP(48, 10, depth=3, width=32), torch.rand(64, 48)
    for layer in (*(hidden.linear for hidden in network.hidden), network.output):
        nn.init.ones_(layer.bias)
    constrain(network, "sn", include=["hidden.*"])
    before = copy.deepcopy(network.state_dict())
    with rescale_on_first_forward(network) as waiting:
        assert waiting == {"output.weight"}
        network(inputs)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    moved = {key for key in changed if "_u" in key or "_v" in key}  # by the training forward
    assert changed - moved == {"output.weight", "output.bias"}


def test_a_half_precision_bias_of_before_is_not_used_again():
    layer, inputs = nn.Linear(64, 8), 1 + torch.randn(128, 64)
    constrain(layer, "wn")
    with torch.autocast("cpu", torch.bfloat16), rescale_on_first_forward(layer):
        z = layer(inputs).float()
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=0.03, rtol=0)


def test_a_dead_unit_is_named_and_left_as_it_is_and_the_others_are_rescaled():
    layer, inputs = nn.Linear(4, 3), torch.randn(32, 4)
    with torch.no_grad():
        layer.weight[1] = 0.5
    constrain(layer, "cwn")
    before = copy.deepcopy(layer.state_dict())
    with pytest.warns(UserWarning, match=r"'weight' \(1 of 3 units, which do not vary\)"):
        minibatch_init_(layer, inputs)
    assert all(torch.equal(value[1], before[key][1]) for key, value in layer.state_dict().items())
    torch.testing.assert_close(layer(inputs)[:, ::2].std(0, correction=0), torch.ones(2), rtol=1e-3, atol=0)


def _train(model, network, inputs):
    """Initialize on the first of four forward passes, and take three steps; the weights before and after."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    with rescale_on_first_forward(network):
        model(inputs).square().mean().backward()
    initial = copy.deepcopy(network.state_dict())
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
    return initial, network.state_dict()


def _make(kind):
    torch.manual_seed(0)
    network = MLP(12, 5, depth=3, width=8)
    constrain(network, kind)
    return network


def _train_on_rank(rank, kinds, inputs):
    trained = {}
    for kind in kinds:
        network = _make(kind)
        trained[kind] = _train(nn.parallel.DistributedDataParallel(network), network, inputs[rank])
    return trained


def test_two_ranks_initialize_and_train_on_the_union_of_their_batches_and_end_bit_equal(on_two_ranks):
    inputs, kinds = torch.randn(2, 40, 12) * torch.tensor([1.0, 5.0]).view(2, 1, 1), ["cwn", "wn", "sn"]
    ranks = on_two_ranks(_train_on_rank, kinds, inputs)
    for kind in kinds:
        first, second = (trained[kind] for trained in ranks)
        network = _make(kind)
        for one, other, expected in zip(first, second, _train(network, network, inputs.flatten(0, 1)), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)
            for key, value in expected.items():
                torch.testing.assert_close(one[key], value, rtol=1e-3, atol=1e-5)
