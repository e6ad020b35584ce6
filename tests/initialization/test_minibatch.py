import copy

import pytest
import torch
from torch import nn

from lcw_lightning import MLP, constrain, minibatch_init_
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.initialization.minibatch import rescale_on_first_forward
from lcw_lightning.observation.hooks import observe


def preactivations(network, inputs):
    """The first preactivation of every layer, bias left out, as (samples x positions, units)."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    found = {}

    def keep(name, quantity, tensor):
        if quantity == "preactivation":
            bias = layers[name].bias
            tensor = tensor if bias is None else tensor - bias.view(-1, *[1] * (tensor.dim() - 2))
            found.setdefault(name, tensor.movedim(1, -1).flatten(0, -2))

    with observe(layers, keep), torch.no_grad():
        network(inputs)
    return found


class Graph(nn.Module):
    """A residual add, a branch, a convolution without bias and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Linear(8, 16)
        self.shared = nn.Linear(16, 16)

    def forward(self, images):
        x = self.stem(images).relu()
        x = (x + self.block(x)).relu().mean((2, 3))
        return self.shared(self.shared(self.side(x).sigmoid()).sigmoid())


GRAPHS = {
    "mlp": (lambda: MLP(48, 10, depth=8, width=32), (64, 3, 4, 4)),
    "graph": (Graph, (64, 3, 8, 8)),
}
graphs = pytest.mark.parametrize(("make", "shape"), GRAPHS.values(), ids=GRAPHS)
kinds = pytest.mark.parametrize("kind", ["none", "lcw"])


@graphs
@kinds
def test_every_layer_gets_the_target_std_pooled_over_units_and_samples(make, shape, kind):
    network, inputs = make(), torch.rand(shape)
    constrain(network, kind)
    assert minibatch_init_(network, inputs, target_std=0.5) is network
    found = preactivations(network, inputs)
    assert found
    for name, z in found.items():
        assert z.std(correction=0).item() == pytest.approx(0.5, rel=1e-4), name


@graphs
@kinds
def test_granularity_unit_gives_each_unit_the_target_std(make, shape, kind):
    network, inputs = make(), torch.rand(shape)
    constrain(network, kind)
    for name, z in preactivations(minibatch_init_(network, inputs, granularity="unit"), inputs).items():
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(z.shape[1]), msg=name, rtol=1e-3, atol=0)


def test_without_it_stds_are_elsewhere():
    inputs = torch.rand(64, 48)
    stds = [z.std().item() for z in preactivations(MLP(48, 10, depth=8, width=32), inputs).values()]
    assert max(abs(std - 1) for std in stds) > 0.5


def test_constrained_weights_keep_their_direction_and_their_constraint():
    network = MLP(48, 10, depth=3, width=32)
    constrain(network)
    before = network.output.weight.detach().clone()
    minibatch_init_(network, torch.rand(64, 48))
    after = network.output.weight.detach()
    assert set(constrained_weights(network).values()) == {"lcw"}
    torch.testing.assert_close(after / after.norm(), before / before.norm())
    assert after.sum(1).abs().max() < 1e-5


def test_biases_start_at_zero():
    network = minibatch_init_(MLP(48, 10, depth=3, width=32), torch.rand(64, 48))
    assert all(not parameter.any() for name, parameter in network.named_parameters() if name.endswith("bias"))


def test_modes_buffers_and_random_numbers_stay_as_they_were():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    network[1].eval()
    buffers = copy.deepcopy(dict(network.named_buffers()))
    network[1].train()
    network[3].eval()
    modes = [module.training for module in network.modules()]
    inputs = torch.randn(32, 4)
    rng = torch.get_rng_state()
    minibatch_init_(network, inputs)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_frozen_weights_are_left_alone():
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    network[0].requires_grad_(False)
    before = copy.deepcopy(network[0].state_dict())
    with pytest.warns(UserWarning, match=r"1 of 2 layers rescaled by a factor of .*; left .*: '0\.weight' \(frozen\)$"):
        minibatch_init_(network, torch.randn(32, 4))
    assert torch.equal(network[0].weight, before["weight"])
    assert torch.equal(network[0].bias, before["bias"])


def test_a_frozen_bias_is_left_alone():
    layer = nn.Linear(4, 8)
    layer.bias.requires_grad_(False)
    assert minibatch_init_(layer, torch.randn(32, 4)).bias.all()


def test_of_layers_with_a_tied_weight_the_first_counts():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    inputs = torch.randn(32, 4)
    with rescale_on_first_forward(network):
        network(inputs).sum().backward()
    assert network[0](inputs).std(correction=0).item() == pytest.approx(1)


def test_a_cached_half_precision_weight_is_not_used_again():
    layer, inputs = nn.Linear(64, 8), torch.randn(128, 64)
    with torch.autocast("cpu", torch.bfloat16), rescale_on_first_forward(layer):
        assert layer(inputs).float().std().item() == pytest.approx(1, rel=0.02)


def test_each_layer_acts_once_and_unreached_ones_are_named():
    network = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    with rescale_on_first_forward(network) as waiting:
        network["used"](torch.randn(32, 4))
        once = network["used"].weight.clone()
        network["used"](10 * torch.randn(32, 4))
        assert waiting == {"unused.weight"}
    assert torch.equal(network["used"].weight, once)
    network["unused"](torch.randn(32, 4))  # the block has ended
    assert not any(layer._forward_pre_hooks for layer in network.values())


def test_training_can_use_the_forward_that_initializes():
    network = MLP(48, 10, depth=4, width=32)
    constrain(network)
    with rescale_on_first_forward(network):
        network(torch.rand(64, 48)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("fan_in", [64, 1024, 8192])
def test_half_precision_weights_are_rescaled_under_the_constraint(fan_in):
    layer, inputs = nn.Linear(fan_in, 16).bfloat16(), torch.rand(64, fan_in).bfloat16()
    constrain(layer)
    assert minibatch_init_(layer, inputs)(inputs).float().std().item() == pytest.approx(1, rel=0.05)


class Gained(nn.Module):
    """A parametrization that has a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, original):
        return self.gain * original

    def right_inverse(self, weight):
        return weight / self.gain


def test_somebody_elses_parametrization_is_rescaled_through_its_right_inverse():
    layer, inputs = nn.Linear(4, 8), torch.randn(32, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Gained())
    assert minibatch_init_(layer, inputs)(inputs).std(correction=0).item() == pytest.approx(1)


def test_a_single_sample_without_a_batch_dimension_is_enough():
    layer, sample = nn.Linear(4, 8), torch.randn(4)
    assert minibatch_init_(layer, sample)(sample).std(correction=0).item() == pytest.approx(1)
