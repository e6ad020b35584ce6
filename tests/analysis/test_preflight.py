"""The Monte Carlo of a pre-flight check, against one in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lcw_lightning.analysis.preflight import Preflight, monte_carlo

DEPTH, WIDTH, SAMPLES = 6, 40, 8
INF, NAN = math.inf, math.nan


def network_of(depth=DEPTH, width=WIDTH, activation=nn.ReLU):
    return nn.Sequential(*[layer for _ in range(depth) for layer in (activation(), nn.Linear(width, width))])


def linears(network):
    return {name: layer for name, layer in network.named_children() if isinstance(layer, nn.Linear)}


def drawn(layers, gain, bias=0.0):
    for layer in layers.values():
        nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
        nn.init.normal_(layer.bias, std=bias) if bias else nn.init.zeros_(layer.bias)


def preflight_of(network, gain, draws=100, samples=SAMPLES, given=None, **settings):
    layers = linears(network)
    inputs, towards = torch.randn(2, samples, WIDTH) if given is None else given
    step = lambda: (network(inputs) * towards).sum().backward()  # noqa: E731
    return monte_carlo(layers, lambda: drawn(layers, gain, **settings), step, draws)


def numpy_draw(rng, gain, bias, inputs, towards):
    """One draw: q of the last layer, and the gradient growth of the lower median sample."""
    z, zs, ws = inputs, [], []
    for _ in range(DEPTH):
        ws.append(rng.normal(0, gain / math.sqrt(WIDTH), (WIDTH, WIDTH)))
        z = np.maximum(z, 0) @ ws[-1] + rng.normal(0, bias, WIDTH)
        zs.append(z)
    delta = towards
    for w, before in zip(ws[:0:-1], zs[-2::-1], strict=True):
        delta = (delta @ w.T) * (before > 0)
    growth = np.log10(np.linalg.norm(delta, axis=1) / np.linalg.norm(towards, axis=1))
    return (z**2).mean(), np.sort(growth)[(SAMPLES - 1) // 2]


def test_quantiles_are_those_of_a_monte_carlo_in_numpy():
    given, rng = torch.randn(2, SAMPLES, WIDTH), np.random.default_rng(0)
    found = preflight_of(network_of(), gain=2.0, bias=0.5, draws=400, given=given)
    q, growth = np.array([numpy_draw(rng, 2.0, 0.5, *given.double().numpy()) for _ in range(400)]).T
    assert math.log10(found.q_median) == pytest.approx(np.log10(np.median(q)), abs=0.06)
    assert math.log10(found.q_90th_percentile) == pytest.approx(np.log10(np.quantile(q, 0.9)), abs=0.1)
    assert found.growth_median == pytest.approx(np.median(growth), abs=0.03)
    assert found.growth_90th_percentile == pytest.approx(np.quantile(growth, 0.9), abs=0.04)
    assert np.std(growth) > 0.08  # more than what is allowed for


def test_numbers_of_a_draw_are_those_of_plain_autograd():
    network = network_of()
    layers = linears(network)
    inputs, weights = torch.randn(1, WIDTH), []

    def redraw():
        drawn(layers, 2.0)
        weights.append([layer.weight.detach().double() for layer in layers.values()])

    found = monte_carlo(layers, redraw, lambda: network(inputs).sum().backward(), draws=1)
    z, zs = inputs.double(), []
    for weight in [layer.weight.detach().double().requires_grad_() for layer in layers.values()]:
        z = torch.relu(z) @ weight.T
        zs.append(z)
    first, last = torch.autograd.grad(z.sum(), (zs[0], zs[-1]))
    assert found.last_q.item() == pytest.approx(z.square().mean().item(), rel=1e-4)
    assert found.gradient_growth.item() == pytest.approx((first.norm() / last.norm()).log10().item(), rel=1e-4)
    assert found.draws == len(weights) == 1


def test_gain_two_explodes_and_the_edge_of_chaos_does_not():
    exploding = preflight_of(network_of(30), gain=2.0, draws=30)
    steady = preflight_of(network_of(30), gain=math.sqrt(2), draws=30)
    # A gain of 2 is sqrt(2) over that of the edge, in each of 29 layers.
    assert exploding.growth_median - steady.growth_median == pytest.approx(29 * math.log10(math.sqrt(2)), abs=0.6)
    assert steady.growth_90th_percentile < 1.2
    assert exploding.growth_median > 2.5


def test_the_number_of_samples_does_not_move_the_growth():
    few, many = (preflight_of(network_of(30), gain=math.sqrt(2), draws=60, samples=samples) for samples in (1, 64))
    assert few.growth_median == pytest.approx(many.growth_median, abs=0.25)


def test_a_seed_repeats_it():
    def run(seed):
        torch.manual_seed(seed)
        return preflight_of(network_of(), gain=2.0, draws=5)

    first, again, other = run(3), run(3), run(4)
    assert torch.equal(first.q_by_layer, again.q_by_layer)
    assert torch.equal(first.growth_by_layer, again.growth_by_layer)
    assert not torch.equal(first.q_by_layer, other.q_by_layer)


@pytest.mark.parametrize("value", [NAN, INF, 1e30], ids=["nan", "inf", "overflow"])
def test_a_draw_that_is_not_finite_counts_as_infinite(value):
    network, calls = network_of(), []
    layers = linears(network)
    inputs = torch.rand(SAMPLES, WIDTH)

    def redraw():
        drawn(layers, math.sqrt(2))
        calls.append(None)
        if len(calls) % 5 == 0:
            for layer in layers.values():
                nn.init.constant_(layer.weight, value)

    found = monte_carlo(layers, redraw, lambda: network(inputs).square().mean().backward(), draws=10)
    failed = [n % 5 == 4 for n in range(10)]
    assert found.gradient_growth.isposinf().tolist() == failed
    assert found.last_q.isposinf().tolist() == failed
    assert found.growth_90th_percentile == found.q_90th_percentile == INF
    assert math.isfinite(found.growth_median)
    assert math.isfinite(found.q_median)


def test_samples_without_any_gradient_say_nothing_and_if_all_are_it_has_vanished():
    network = network_of()
    layers = linears(network)
    inputs = torch.randn(SAMPLES, WIDTH)

    def growth(kept):
        torch.manual_seed(0)
        weights = torch.zeros(SAMPLES, 1)
        weights[:kept] = 1.0
        step = lambda: (network(inputs) * weights).sum().backward()  # noqa: E731
        return monte_carlo(layers, lambda: drawn(layers, 1.0), step, draws=3).gradient_growth

    assert growth(2).isfinite().all()
    assert growth(0).isneginf().all()


def test_a_gradient_that_dies_on_the_way_is_minus_infinite():
    network = network_of()
    layers = linears(network)

    def dead():
        drawn(layers, 1.0)
        nn.init.constant_(layers["3"].bias, -1e3)

    found = monte_carlo(layers, dead, lambda: network(torch.rand(4, WIDTH)).sum().backward(), draws=3)
    assert found.gradient_growth.isneginf().all()


def test_draws_are_at_least_one():
    with pytest.raises(ValueError, match="at least one draw of the weights, got draws=0"):
        preflight_of(network_of(), gain=1.0, draws=0)


def test_text_and_dictionary_hold_the_numbers():
    found = Preflight(["a", "b"], torch.tensor([[1.0, 4.0], [1.0, 6.0]]), torch.tensor([[0.5, 0.0], [1.5, 0.0]]))
    assert str(found) == (
        "pre-flight, 2 draws of the weights: q at 'b' has the median 5 (90th percentile 5.8); gradients grow from "
        "there back to 'a' by 1.0 decades (1.4)"
    )
    assert found.as_dict() == {
        "draws": 2,
        "first_layer": "a",
        "last_layer": "b",
        "q": [4.0, 6.0],
        "q_median": 5.0,
        "q_90th_percentile": pytest.approx(5.8),
        "gradient_growth": [0.5, 1.5],
        "growth_median": 1.0,
        "growth_90th_percentile": pytest.approx(1.4),
    }
