"""What edge_of_chaos_init_ is for: variance and gradients keep their size through depth."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from lcw_lightning import MLP, ClippedShiftedReLU, ShiftedReLU, constrain
from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_

WIDTH, SAMPLES = 300, 16
TAU, CLIP, SIGMA_W = 1.0364, 1.1704, 2.7083  # the note's CReLU of sparsity 0.85 and slope 0.7
kinds = pytest.mark.parametrize("kind", ["none", "lcw"])


def initialized(kind, depth, activation, seed, **settings):
    torch.manual_seed(seed)
    network, inputs = MLP(64, 10, depth=depth, width=WIDTH, activation=activation), torch.randn(SAMPLES, 64)
    constrain(network, kind)
    return edge_of_chaos_init_(network, inputs, **settings), inputs


def variances(network, inputs):
    """q of each hidden layer: the mean square of its preactivations."""
    found = []
    handles = [
        hidden.linear.register_forward_hook(lambda layer, given, z: found.append(z.square().mean().item()))
        for hidden in network.hidden
    ]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    return found


def numpy_log_q(zero_sum, sigma_b, rng, depth):
    """Log of the mean q over the layers behind the first, by the definitions alone."""
    z, logs = rng.standard_normal((SAMPLES, WIDTH)), []
    for _ in range(depth - 1):
        weight = rng.standard_normal((WIDTH, WIDTH)) * SIGMA_W / math.sqrt(WIDTH)
        if zero_sum:
            weight = (weight - weight.mean(1, keepdims=True)) * math.sqrt(WIDTH / (WIDTH - 1))
        z = np.clip(z - TAU, 0, CLIP) @ weight.T + sigma_b * rng.standard_normal(WIDTH)
        logs.append(np.log((z**2).mean()))
    return np.mean(logs)


@kinds
def test_q_stays_where_an_independent_simulation_has_it(kind):
    depth, draws, zero_sum = 30, 16, kind == "lcw"
    phi = lambda z: min(max(z - TAU, 0), CLIP)  # noqa: E731
    mean, square = (quad(lambda z, p=p: phi(z) ** p * norm.pdf(z), TAU, 12, points=[TAU + CLIP])[0] for p in (1, 2))
    sigma_b = math.sqrt(1 - SIGMA_W**2 * (square - mean**2 * zero_sum))
    rng = np.random.default_rng(0)
    expected = [numpy_log_q(zero_sum, sigma_b, rng, depth) for _ in range(draws)]
    found = []
    for seed in range(draws):
        found.append(
            np.log(variances(*initialized(kind, depth, lambda: ClippedShiftedReLU(TAU, CLIP), seed))[1:]).mean()
        )
    error = math.sqrt((np.var(expected, ddof=1) + np.var(found, ddof=1)) / draws)
    assert error < 0.05
    assert abs(np.mean(found) - np.mean(expected)) < 4 * error
    assert abs(np.mean(found)) < 0.25


@pytest.mark.parametrize("weights", ["gaussian", "delta_orthogonal"])
def test_a_hundred_unclipped_layers_keep_q_under_lcw_and_explode_without(weights):
    def last(kind, seed):
        return variances(*initialized(kind, 100, lambda: ShiftedReLU(sparsity=0.7), seed, weights=weights))[-1]

    assert all(0.3 < last("lcw", seed) < 3 for seed in range(4))
    assert max(last("none", seed) for seed in range(4)) > 1e3


def gradient_growth(network, inputs):
    """log10 of the gradient's norm at the first hidden layer's preactivations, over that at the last one's."""
    outputs = []
    for hidden in network.hidden:
        hidden.linear.register_forward_hook(lambda layer, given, z: outputs.append(z))
    logits = network(inputs)
    first, last = torch.autograd.grad(logits, [outputs[0], outputs[-1]], torch.randn_like(logits))
    return math.log10(first.norm() / last.norm())


@kinds
def test_gradients_keep_their_size(kind):
    growth = [
        gradient_growth(*initialized(kind, 30, lambda: ClippedShiftedReLU(sparsity=0.7), seed)) for seed in range(8)
    ]
    # The note: the natural logarithm of its square has mean -beta / 2 and variance beta = L (3 sigma_w^2 - 1) / N.
    beta = 30 * (3 * 1.9047**2 - 1) / WIDTH
    assert abs(np.mean(growth) + 0.109 * beta) < 5 * 0.217 * math.sqrt(beta / 8)


def test_gradients_of_torchs_own_draw_vanish():
    torch.manual_seed(0)
    network = MLP(64, 10, depth=30, width=WIDTH, activation=lambda: ClippedShiftedReLU(sparsity=0.7))
    network.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Linear) else None)
    outputs = network(torch.randn(SAMPLES, 64))
    outputs.sum().backward()
    assert not network.hidden[0].linear.weight.grad.norm() > 1e-6 * network.output.weight.grad.norm()


@pytest.mark.parametrize("weights", ["gaussian", "delta_orthogonal"])
@kinds
def test_q_is_the_same_at_borders_of_circularly_padded_images(kind, weights):
    torch.manual_seed(0)
    layers = []
    for number in range(8):
        channels = 100 if number else 5
        layers += [nn.Conv2d(channels, 100, 3, padding=1, padding_mode="circular"), ClippedShiftedReLU(sparsity=0.7)]
    network, images = nn.Sequential(*layers), torch.randn(4, 5, 8, 8)
    constrain(network, kind)
    edge_of_chaos_init_(network, images, weights=weights)
    q = network[:-1](images).square().mean((0, 1)).detach()
    edges = torch.ones(8, 8, dtype=torch.bool)
    edges[1:-1, 1:-1] = False
    assert 0.6 < q.mean() < 1.6
    assert q[edges].mean().item() == pytest.approx(q[~edges].mean().item(), rel=0.15)


@pytest.mark.parametrize(("exclude", "sees"), [(["0.weight"], True), ([], False)], ids=["unconstrained", "constrained"])
def test_grey_images_reach_a_delta_orthogonal_network_whose_first_convolution_is_unconstrained(exclude, sees):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 50, 3, padding=1), ShiftedReLU(sparsity=0.7), nn.Conv2d(50, 50, 1))
    constrain(network, "lcw", exclude=exclude)
    edge_of_chaos_init_(network, torch.randn(4, 3, 8, 8), weights="delta_orthogonal")
    dark, bright = (network(torch.full((1, 3, 8, 8), grey)) for grey in (-1.0, 1.0))
    assert bool((dark - bright).abs().max() > 1e-3) is sees
