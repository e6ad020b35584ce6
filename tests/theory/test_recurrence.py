"""Against recurrent networks that are drawn and run, and against closed forms."""

import math

import pytest
import torch

from lcw_lightning.theory.edge_of_chaos import edge_of_chaos_stds
from lcw_lightning.theory.recurrence import recurrence
from lcw_lightning.theory.variance_maps import phi_bw, phi_fw

UNITS, DRAWS, SETTLING, STEPS, PROBES, SEQUENCES = 300, 100, 20, 4, 8, 4
INPUT_STD = 0.7
GAINS = {torch.sigmoid: (1.0, 3.0, 5.0), torch.tanh: (0.6, 1.0, 1.4), torch.relu: (0.6, 0.9, 1.2)}
CASES = [
    pytest.param(activation, gain, zero_sum, id=f"{activation.__name__}-{gain}-{'zero_sum' if zero_sum else 'plain'}")
    for activation, gains in GAINS.items()
    for gain in gains
    for zero_sum in (False, True)
]


def run_one(activation, gain, zero_sum, generator):
    """One network over several sequences: its q, its shift, and the factor of some steps on mean squares of gradients.

    Zero-sum rows are drawn as the constraint makes them: a plain draw less its mean, with the variance restored.
    """
    weight = gain / math.sqrt(UNITS) * torch.randn(UNITS, UNITS, generator=generator)
    if zero_sum:
        weight = (weight - weight.mean(1, keepdim=True)) * math.sqrt(UNITS / (UNITS - 1))
    state, slopes = torch.zeros(SEQUENCES, UNITS), []
    for _ in range(SETTLING + STEPS):
        drive = INPUT_STD * torch.randn(SEQUENCES, UNITS, generator=generator)
        z = (state @ weight.T + drive).requires_grad_()
        last, state = state, activation(z)
        slopes.append(torch.autograd.grad(state.sum(), z)[0])
        state = state.detach()
    gradient = torch.randn(SEQUENCES, PROBES, UNITS, generator=generator)
    before = gradient.square().mean()
    for slope in slopes[: -STEPS - 1 : -1]:
        gradient = (gradient * slope[:, None]) @ weight
    shift = (last.mean() * weight.sum(1)).square().mean()
    return torch.stack((z.detach().square().mean(), shift, gradient.square().mean() / before))


def measured(activation, gain, zero_sum):
    """Means over draws, and their standard errors."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([run_one(activation, gain, zero_sum, generator) for _ in range(DRAWS)]).double()
    return draws.mean(0), draws.std(0) / math.sqrt(DRAWS)


@pytest.mark.parametrize(("activation", "gain", "zero_sum"), CASES)
def test_networks_that_are_run_have_the_variance_the_shift_and_the_gradients_of_the_theory(activation, gain, zero_sum):
    q, shift, chi = recurrence(activation, gain, INPUT_STD, zero_sum)
    mean, error = measured(activation, gain, zero_sum)
    expected = torch.tensor([q, shift, chi**STEPS], dtype=torch.float64)
    away = (mean - expected).abs()
    bound = torch.minimum(3 * error, 0.05 * expected)
    if shift < 1e-9:
        bound[1] = 0.01 * q  # means over finitely many units scatter
    assert (away <= bound).all(), (away / error, away / expected)


def test_zero_sum_sigmoids_are_critical_at_the_share_of_the_two_amplifications():
    sigma_w, input_std = edge_of_chaos_stds(torch.sigmoid, q=1.0, zero_sum=True)
    q, _, chi = recurrence(torch.sigmoid, sigma_w, input_std, zero_sum=True)
    assert (q, chi) == pytest.approx((1, 1))
    assert 1 - input_std**2 / q == pytest.approx(phi_fw(torch.sigmoid, 1.0) / phi_bw(torch.sigmoid, 1.0))
    plain = recurrence(torch.sigmoid, sigma_w, input_std)
    assert plain.chi < 0.5
    assert plain.shift > 0.5 * plain.q


def test_no_gain_makes_plain_sigmoids_critical_unless_they_are_saturated():
    for q in (1.0, 4.0, 45.0):
        with pytest.raises(ValueError, match="needs biases of variance"):
            edge_of_chaos_stds(torch.sigmoid, q)
    sigma_w, input_std = edge_of_chaos_stds(torch.sigmoid, 46.0)
    assert recurrence(torch.sigmoid, sigma_w, input_std).chi == pytest.approx(1)


def shifted_tanh(z):
    """An odd function no longer, as with a bias that all units share."""
    return torch.tanh(z + 0.5)


@pytest.mark.parametrize(("activation", "gains"), [(torch.tanh, False), (shifted_tanh, True)], ids=["odd", "shifted"])
def test_odd_activations_gain_nothing(activation, gains):
    plain, zero_sum = (recurrence(activation, 1.4, INPUT_STD, zero_sum) for zero_sum in (False, True))
    assert (plain.chi == pytest.approx(zero_sum.chi)) is not gains
    assert (plain.shift > 0.01 * plain.q) is gains


def test_relu_with_zero_sum_weights_settles_beyond_the_edge_of_plain_ones():
    q, _, chi = recurrence(torch.relu, math.sqrt(2), 1.0, zero_sum=True)
    assert (q, chi) == pytest.approx((math.pi, 1))
    with pytest.raises(ValueError, match="settles at no variance below 1e"):
        recurrence(torch.relu, math.sqrt(2), 1.0)


def step(z):
    """A smooth step at 3, whose variance map has several fixed points."""
    return 4 * torch.sigmoid(8 * (z - 3))


def test_of_several_fixed_points_it_is_the_one_that_is_reached_from_zero_states():
    q = variance = 0.25
    z = torch.linspace(-9, 9, 100_001, dtype=torch.float64)
    for _ in range(200):
        weights = torch.exp(-z.square() / (2 * variance))
        variance = 4 * float((step(z).square() * weights).sum() / weights.sum()) + q
    found = recurrence(step, 2.0, math.sqrt(q))
    assert found.q == pytest.approx(variance, rel=1e-6)
