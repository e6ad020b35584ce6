import copy
import math

import pytest
import torch
from torch import nn

from lcw_lightning import MLP, ClippedShiftedReLU, ShiftedReLU, constrain
from lcw_lightning.initialization.edge_of_chaos import draw_and_match_on_first_forward, edge_of_chaos_init_
from lcw_lightning.weights.weight_ref import named_weights

# ReLU_tau of sparsity 0.7 at q* = 1: the note's table, and for zero-sum weights the design's.
TAU, SIGMA_W, SIGMA_B = 0.5244, 1.8257, {False: 0.5769, True: 0.674}
ZERO_SUM = {"none": False, "wn": False, "lcw": True, "cwn": True}
kinds = pytest.mark.parametrize("kind", ZERO_SUM)


def make_mlp(kind="none", depth=4, width=200, activation=lambda: ShiftedReLU(TAU)):
    network = MLP(48, 10, depth=depth, width=width, activation=activation)
    constrain(network, kind)
    return network


def mean_square_without_bias(layer, inputs):
    """E[(W a)^2] over all of a layer's first output."""
    bias = layer.bias.view(-1, *[1] * (layer.weight.dim() - 2))
    return (layer(inputs) - bias).square().mean().item()


def close(squares, variance, errors=5):
    """Whether the mean of squared Gaussian numbers is within as many standard errors of their variance."""
    return abs(squares.mean().item() / variance - 1) < errors * math.sqrt(2 / squares.numel())


@kinds
def test_weights_and_biases_have_the_variances_of_the_edge_of_chaos(kind):
    network = make_mlp(kind)
    assert edge_of_chaos_init_(network, torch.rand(64, 48)) is network
    layers = [*(hidden.linear for hidden in network.hidden[1:]), network.output]  # the first is matched to the data
    for layer in layers:
        assert close(layer.weight.detach().square(), SIGMA_W**2 / 200)
    biases = torch.cat([layer.bias.detach() for layer in layers])
    assert close(biases.square(), SIGMA_B[ZERO_SUM[kind]] ** 2)
    assert abs(biases.mean()) < 5 * biases.std() / math.sqrt(len(biases))


@kinds
def test_units_sum_to_zero_where_the_constraint_has_it_so(kind, request):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), ShiftedReLU(TAU), nn.ConvTranspose2d(8, 6, 3, groups=2))
    constrain(network, kind)
    edge_of_chaos_init_(network, torch.rand(4, 3, 8, 8))
    for ref in named_weights(network).values():
        sums = ref.units.detach().sum(1).abs()
        assert sums.max() < 1e-5 if ZERO_SUM[kind] else sums.min() > 1e-3


def test_each_layer_of_a_mixed_network_gets_what_its_own_weight_needs():
    network = nn.Sequential(nn.Linear(48, 2000), ShiftedReLU(TAU), nn.Linear(2000, 2000))
    constrain(network, "lcw", include=["2.*"])
    edge_of_chaos_init_(network, torch.rand(64, 48))
    for layer, zero_sum in ((network[0], False), (network[2], True)):
        assert close(layer.bias.detach().square(), SIGMA_B[zero_sum] ** 2)
        assert not close(layer.bias.detach().square(), SIGMA_B[not zero_sum] ** 2)


@pytest.mark.parametrize("weights", ["gaussian", "delta_orthogonal"])
@pytest.mark.parametrize("kind", ["none", "lcw"])
@pytest.mark.parametrize("shape", [(3, 40, 3), (40, 40, 5), (40, 12, 1)], ids=str)
def test_convolutions_have_the_stated_variance_per_unit(kind, shape, weights):
    channels, units, size = shape
    network = nn.Sequential(nn.Linear(7, 7), ShiftedReLU(TAU), nn.Conv2d(channels, units, size, padding="same"))
    constrain(network, kind)
    with draw_and_match_on_first_forward(network, weights=weights):
        pass  # nothing ran, nothing is matched
    weight = network[2].weight.detach()
    norms = weight.flatten(1).square().sum(1)
    if weights == "gaussian":
        assert close(weight.square(), SIGMA_W**2 / (channels * size**2))
        return
    assert norms.mean().item() == pytest.approx(SIGMA_W**2, rel=1e-3)
    centre = weight[:, :, size // 2, size // 2]
    assert (weight.abs() > 1e-6).sum() == (centre.abs() > 1e-6).sum()  # zero-sum coordinates round
    zero_sum = kind == "lcw"
    dimensions = channels - zero_sum
    if units <= dimensions:
        torch.testing.assert_close(centre @ centre.T, SIGMA_W**2 * torch.eye(units), rtol=1e-3, atol=1e-4)
    else:
        expected = SIGMA_W**2 * units / dimensions * (torch.eye(channels) - zero_sum / channels)
        torch.testing.assert_close(centre.T @ centre, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("q", [1.0, 4.0])
@pytest.mark.parametrize("weights", ["gaussian", "delta_orthogonal"])
@kinds
def test_the_first_layer_starts_at_q_whatever_the_scale_of_the_data(kind, weights, q):
    network, inputs = make_mlp(kind, activation=lambda: ShiftedReLU(TAU * math.sqrt(q))), 20 + 7 * torch.randn(64, 48)
    edge_of_chaos_init_(network, inputs, q=q, weights=weights)
    expected = q * (1 - SIGMA_B[ZERO_SUM[kind]] ** 2)
    assert mean_square_without_bias(network.hidden[0].linear, inputs) == pytest.approx(expected, rel=2e-3)
    assert network.hidden[0].linear.bias.detach().std().item() == pytest.approx(
        math.sqrt(q) * SIGMA_B[ZERO_SUM[kind]], rel=5 / math.sqrt(2 * 200)
    )


def test_without_matching_layer_one_starts_where_the_data_say():
    network, inputs = make_mlp(), 20 + 7 * torch.randn(64, 48)
    with draw_and_match_on_first_forward(network):
        pass
    assert mean_square_without_bias(network.hidden[0].linear, inputs) > 100


@pytest.mark.parametrize("kind", ["none", "lcw"])
def test_the_first_layer_can_be_a_convolution(kind):
    conv = nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular")
    network, images = nn.Sequential(conv, ShiftedReLU(TAU)), torch.rand(8, 3, 6, 6)
    constrain(network, kind)
    edge_of_chaos_init_(network, images)
    expected = 1 - SIGMA_B[ZERO_SUM[kind]] ** 2
    assert mean_square_without_bias(conv, images) == pytest.approx(expected, rel=2e-3)


def test_first_is_the_layer_that_is_called_first_of_those_that_are_drawn():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.frozen = nn.Linear(9, 30), nn.Linear(9, 9), nn.Linear(9, 9)
            self.activation = ShiftedReLU(TAU)
            self.frozen.requires_grad_(False)

        def forward(self, inputs):
            return self.last(self.activation(self.middle(input=self.frozen(inputs))))

    network, inputs = Backwards(), 5 * torch.randn(64, 9)
    before = copy.deepcopy(network.frozen.state_dict())
    with draw_and_match_on_first_forward(network) as waiting:
        assert set(waiting) == {"last.weight", "middle.weight"}
        network(inputs)
        assert not waiting
    assert all(torch.equal(value, before[key]) for key, value in network.frozen.state_dict().items())
    expected = 1 - SIGMA_B[False] ** 2
    assert mean_square_without_bias(network.middle, network.frozen(inputs)) == pytest.approx(expected, rel=1e-3)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_frozen_bias_is_left_alone():
    network = make_mlp()
    network.output.bias.requires_grad_(False).fill_(3.0)
    assert (edge_of_chaos_init_(network, torch.rand(64, 48)).output.bias == 3).all()


def test_a_tied_weight_is_drawn_once_and_matched():
    network, inputs = nn.Sequential(nn.Linear(40, 40), ShiftedReLU(TAU), nn.Linear(40, 40)), 9 * torch.randn(64, 40)
    network[2].weight = network[0].weight
    edge_of_chaos_init_(network, inputs)
    assert network[2].weight is network[0].weight
    assert mean_square_without_bias(network[0], inputs) == pytest.approx(1 - SIGMA_B[False] ** 2, rel=1e-3)


def test_a_weight_that_is_tied_to_an_embedding_is_left():
    network = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 40), ShiftedReLU(TAU), nn.Linear(40, 50))
    network[3].weight = network[0].weight
    drawn = network[0].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"left as they are: '3\.weight' \(tied to '0\.weight'\)"):
        edge_of_chaos_init_(network, torch.arange(50))
    assert torch.equal(network[0].weight, drawn)


def test_other_activations_than_ours_go_by_themselves_or_by_hand():
    networks = [make_mlp(activation=nn.ReLU), make_mlp(activation=nn.Sequential)]
    for network, settings in zip(networks, ({}, {"activation": torch.relu}), strict=True):
        torch.manual_seed(0)
        edge_of_chaos_init_(network, torch.rand(64, 48), **settings)
    assert close(networks[0].output.weight.detach().square(), 2 / 200)  # He et al.
    assert not networks[0].output.bias.any()
    assert torch.equal(networks[0].output.weight, networks[1].output.weight)


def test_a_layer_without_bias_will_do_where_biases_are_zero():
    network = nn.Sequential(nn.Linear(48, 20, bias=False), nn.ReLU())
    inputs = torch.rand(64, 48)
    assert edge_of_chaos_init_(network, inputs)[0](inputs).square().mean().item() == pytest.approx(1)


@pytest.mark.parametrize("weights", ["gaussian", "delta_orthogonal"])
def test_the_seed_decides_the_weights(weights):
    def drawn(seed):
        torch.manual_seed(seed)
        return edge_of_chaos_init_(network, inputs, weights=weights).output.weight.detach().clone()

    network, inputs = make_mlp("lcw"), torch.rand(64, 48)
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_modes_and_buffers_stay_as_they_were():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2).eval())
    modes = [module.training for module in network.modules()]
    buffers = copy.deepcopy(dict(network.named_buffers()))
    edge_of_chaos_init_(network, torch.randn(32, 4))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("kind", ["none", "lcw"])
def test_half_precision_is_drawn_in_full_and_rounded(kind):
    network, inputs = make_mlp(kind).bfloat16(), torch.rand(64, 48).bfloat16()
    edge_of_chaos_init_(network, inputs)
    assert network.output.weight.dtype == torch.bfloat16
    expected = 1 - SIGMA_B[ZERO_SUM[kind]] ** 2
    assert mean_square_without_bias(network.hidden[0].linear, inputs) == pytest.approx(expected, rel=0.05)
    assert close(network.output.weight.detach().float().square(), SIGMA_W**2 / 200)


def test_a_cached_half_precision_weight_is_not_used_again():
    network, inputs = nn.Sequential(nn.Linear(64, 8), ShiftedReLU(TAU)), 30 * torch.randn(128, 64)
    with torch.autocast("cpu", torch.bfloat16), draw_and_match_on_first_forward(network):
        z = network[0](inputs)
        again = network[0](inputs)
    assert torch.equal(z, again)
    assert z.float().square().mean().item() == pytest.approx(1, rel=0.5)


def test_training_can_use_the_forward_that_matches():
    network = make_mlp("lcw", activation=lambda: ClippedShiftedReLU(TAU, 1.4469))
    with draw_and_match_on_first_forward(network):
        network(torch.rand(64, 48)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
