"""Propositions 1 to 6 of the paper as statements that run, each with a case in which it must fail.

Expectations and covariances are exact: a distribution is a matrix whose rows are its equally likely values. Only
Proposition 6, which is about Gaussian variables, is sampled.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from lcw_lightning.theory.variance_maps import phi_bw, phi_fw
from lcw_lightning.theory.zero_sum import embed_zero_sum, project_zero_sum

FAN_IN = 16
ONES = torch.ones(FAN_IN, dtype=torch.float64)
GAMMAS = [0.5, -0.5, 0.0]
SIGMA = 0.2


def uncorrelated(mean: float, std: float, size: int = FAN_IN) -> Tensor:
    """A distribution on the corners of a cube: mean ``mean * 1``, covariance ``std**2 * I``, far from Gaussian.

    Its rows are those of a Hadamard matrix without the constant column: pairwise uncorrelated, yet dependent.
    """
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) <= size:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), hadamard)
    return mean + std * hadamard[:, 1 : size + 1]


def variance(values: Tensor) -> Tensor:
    """V of each column."""
    return values.var(0, correction=0)


def pooled_variance(values: Tensor) -> Tensor:
    """V over units and samples alike: what differs between the units' means, the activation shift, counts."""
    return values.var(correction=0)


def plain_weights(num_units: int = FAN_IN) -> Tensor:
    return torch.randn(num_units, FAN_IN, dtype=torch.float64)


def zero_sum_weights(num_units: int = FAN_IN) -> Tensor:
    return embed_zero_sum(torch.randn(num_units, FAN_IN - 1, dtype=torch.float64))


def angle(w: Tensor, direction: Tensor) -> Tensor:
    """The angle between each row and a vector by Kahan's formula, without the inner product that is to be predicted."""
    one, other = w / w.norm(dim=1, keepdim=True), direction / direction.norm()
    return 2 * torch.atan2((one - other).norm(dim=1), (one + other).norm(dim=1))


def circulant(row: Tensor) -> Tensor:
    """A square matrix whose rows all have one norm, and whose columns have it too."""
    return torch.stack([row.roll(shift) for shift in range(len(row))])


def backward(weight: Tensor, output_gradients: Tensor) -> Tensor:
    """The gradients of the layer's input, as autograd gives them."""
    inputs = torch.zeros(len(output_gradients), weight.shape[1], dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(nn.functional.linear(inputs, weight), inputs, output_gradients)[0]


def amplifications(weight: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """V(z)/V(a) and V(dL/da)/V(dL/dz) of a layer, pooled over units."""
    activations = uncorrelated(gamma, SIGMA, weight.shape[1])
    gradients = uncorrelated(0.0, 3.0, len(weight))
    forward = pooled_variance(nn.functional.linear(activations, weight)) / SIGMA**2
    return forward, pooled_variance(backward(weight, gradients)) / 9


def test_the_distributions_have_the_moments_that_the_propositions_assume():
    a = uncorrelated(0.5, SIGMA)
    torch.testing.assert_close(a.mean(0), 0.5 * ONES)
    torch.testing.assert_close(a.T.cov(correction=0), SIGMA**2 * torch.eye(FAN_IN, dtype=torch.float64))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_proposition_1_the_mean_follows_the_angle_to_the_ones(gamma):
    w = plain_weights()
    cosine = angle(w, ONES).cos()
    predicted = gamma * FAN_IN**0.5 * w.norm(dim=1) * cosine
    torch.testing.assert_close((uncorrelated(gamma, SIGMA) @ w.T).mean(0), predicted)


def test_proposition_1_as_printed_has_the_wrong_sign_where_gamma_is_negative():
    # The paper writes |gamma|, which goes with the angle to gamma * 1; to 1 itself it must be gamma.
    w, gamma = plain_weights(), -0.5
    printed = abs(gamma) * FAN_IN**0.5 * w.norm(dim=1) * angle(w, ONES).cos()
    measured = (uncorrelated(gamma, SIGMA) @ w.T).mean(0)
    torch.testing.assert_close(measured, -printed)
    assert printed.abs().min() > 1e-3
    towards_mean = angle(w, gamma * ONES).cos()
    torch.testing.assert_close(measured, abs(gamma) * FAN_IN**0.5 * w.norm(dim=1) * towards_mean)


@pytest.fixture
def skewed() -> Tensor:
    """A distribution whose features have means of their own."""
    return torch.rand(7, FAN_IN, dtype=torch.float64).square() - 0.2


def test_proposition_2_the_mean_follows_the_angle_to_the_mean_input(skewed):
    w, mean = plain_weights(), skewed.mean(0)
    predicted = w.norm(dim=1) * mean.norm() * angle(w, mean).cos()
    torch.testing.assert_close((skewed @ w.T).mean(0), predicted)
    centered = skewed - mean
    torch.testing.assert_close((centered @ w.T).mean(0), torch.zeros_like(predicted), atol=1e-14, rtol=0)


def test_proposition_2_fails_for_the_angle_to_the_ones(skewed):
    w, mean = plain_weights(), skewed.mean(0)
    predicted = w.norm(dim=1) * mean.norm() * angle(w, ONES).cos()
    assert ((skewed @ w.T).mean(0) - predicted).abs().max() > 0.1


@pytest.mark.parametrize("gamma", GAMMAS)
def test_proposition_3_zero_sum_weights_have_no_activation_shift(gamma):
    z = uncorrelated(gamma, SIGMA) @ zero_sum_weights().T
    torch.testing.assert_close(z.mean(0), torch.zeros_like(ONES), atol=1e-14, rtol=0)


@pytest.mark.parametrize("weights", [plain_weights, lambda: zero_sum_weights() + 0.1], ids=["plain", "nearly_zero_sum"])
def test_proposition_3_fails_off_the_subspace(weights):
    assert (uncorrelated(0.5, SIGMA) @ weights().T).mean(0).abs().max() > 0.5


def test_proposition_3_fails_where_features_differ_in_their_means(skewed):
    w = zero_sum_weights()
    assert (skewed @ w.T).mean(0).abs().max() > 0.1
    # What is left is the shift by the means' own deviations from their average.
    torch.testing.assert_close((skewed @ w.T).mean(0), w @ project_zero_sum(skewed.mean(0)))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_proposition_4_mean_zero_and_variance_by_the_squared_norm(gamma):
    w = zero_sum_weights()
    z = uncorrelated(gamma, SIGMA) @ w.T
    torch.testing.assert_close(z.mean(0), torch.zeros_like(ONES), atol=1e-14, rtol=0)
    torch.testing.assert_close(variance(z), SIGMA**2 * w.square().sum(1))
    torch.testing.assert_close(pooled_variance(z), SIGMA**2 * w.square().sum(1).mean())


def test_proposition_4_off_the_subspace_the_shift_adds_to_the_pooled_variance():
    w = plain_weights()
    z = uncorrelated(0.5, SIGMA) @ w.T
    torch.testing.assert_close(variance(z), SIGMA**2 * w.square().sum(1))  # unit by unit nothing is different
    assert z.mean(0).abs().max() > 0.5
    assert pooled_variance(z) > 2 * SIGMA**2 * w.square().sum(1).mean()


def test_proposition_4_fails_for_a_bias():
    z = uncorrelated(0.5, SIGMA) @ zero_sum_weights().T + 0.3
    assert z.mean(0).min() > 0.29


def test_proposition_4_fails_for_correlated_activations():
    a = uncorrelated(0.5, SIGMA)
    a[:, 1] = a[:, 0]
    w = zero_sum_weights()
    assert (variance(a @ w.T) / (SIGMA**2 * w.square().sum(1)) - 1).abs().max() > 0.05


@pytest.mark.parametrize("weights", [plain_weights, zero_sum_weights])
def test_proposition_5_gradients_are_amplified_by_the_columns_squared_norm(weights):
    w = weights(num_units=12)
    gradients = backward(w, uncorrelated(0.0, 3.0, size=12))
    torch.testing.assert_close(gradients.mean(0), torch.zeros_like(ONES), atol=1e-14, rtol=0)
    torch.testing.assert_close(variance(gradients), 9 * w.square().sum(0))


def test_proposition_5_fails_for_correlated_gradients():
    w = plain_weights(num_units=12)
    gradients = uncorrelated(0.0, 3.0, size=12)
    gradients[:, 1] = gradients[:, 0]
    assert (variance(backward(w, gradients)) / (9 * w.square().sum(0)) - 1).abs().max() > 0.05


def test_proposition_5_fails_for_gradients_with_a_mean():
    assert backward(plain_weights(), uncorrelated(0.5, 3.0)).mean(0).abs().max() > 0.5


def test_a_square_matrix_amplifies_alike_in_both_directions():
    w = circulant(zero_sum_weights(1)[0])
    eta, xi = w.square().sum(1), w.square().sum(0)
    torch.testing.assert_close(eta, eta[0].expand(FAN_IN))
    torch.testing.assert_close(xi, eta)
    torch.testing.assert_close(*amplifications(w, gamma=0.5))


def test_a_rectangular_matrix_amplifies_by_the_ratio_of_its_sides():
    w = torch.cat((circulant(zero_sum_weights(1)[0]), circulant(zero_sum_weights(1)[0])))
    w[:FAN_IN] *= w[-1].norm() / w[0].norm()
    eta, xi = w.square().sum(1), w.square().sum(0)
    torch.testing.assert_close(eta, eta[0].expand(2 * FAN_IN))
    torch.testing.assert_close(xi, 2 * eta[0].expand(FAN_IN))
    forward, backward = amplifications(w, gamma=0.5)
    torch.testing.assert_close(backward, 2 * forward)


@pytest.mark.parametrize("weights", [plain_weights, zero_sum_weights])
def test_rescaling_a_layer_rescales_both_amplifications_by_the_square(weights):
    # True of plain weights as well: off the subspace it is their equality that is lost, not this.
    w, kappa = weights(), 1.7
    for rescaled, original in zip(amplifications(kappa * w, gamma=0.5), amplifications(w, gamma=0.5), strict=True):
        torch.testing.assert_close(rescaled, kappa**2 * original)


def test_rescaling_beside_biases_that_stay_does_not_rescale_by_the_square():
    w, a, bias = zero_sum_weights(), uncorrelated(0.5, SIGMA), torch.randn(FAN_IN, dtype=torch.float64)
    growth = pooled_variance(a @ (1.7 * w).T + bias) / pooled_variance(a @ w.T + bias)
    assert growth < 0.9 * 1.7**2


def test_plain_weights_amplify_more_forward_than_backward_by_the_activation_shift():
    w = plain_weights()
    forward, backward = amplifications(w, gamma=0.5)
    shift = 0.5**2 * w.sum(1).var(correction=0) / SIGMA**2
    torch.testing.assert_close(forward, backward + shift)
    assert forward > 3 * backward


@pytest.mark.parametrize(
    ("weights", "gamma"), [(plain_weights, 0.0), (zero_sum_weights, 0.5)], ids=["no_mean", "zero_sum_weights"]
)
def test_without_a_shift_both_directions_are_alike(weights, gamma):
    torch.testing.assert_close(*amplifications(weights(), gamma))


@pytest.fixture
def gaussians() -> tuple[Tensor, Tensor]:
    """A million preactivations of std 1.5 and, independent of them, gradients of std 0.4."""
    return 1.5 * torch.randn(1_000_000, dtype=torch.float64), 0.4 * torch.randn(1_000_000, dtype=torch.float64)


def relu_layer(z: Tensor, activation_gradients: Tensor) -> tuple[Tensor, Tensor]:
    """V(a) and V(dL/dz) over V(dL/da), each with its standard error."""
    z = z.clone().requires_grad_()
    a = torch.relu(z)
    (gradients,) = torch.autograd.grad(a, z, activation_gradients)
    return variance_and_error(a.detach()), variance_and_error(gradients / activation_gradients.std())


def variance_and_error(values: Tensor) -> Tensor:
    squares = (values - values.mean()).square()
    return torch.stack((squares.mean(), squares.std() / math.sqrt(len(values))))


def test_proposition_6_relu_amplifies_variance_by_less_than_half_forward_and_by_half_backward(gaussians):
    (forward, forward_error), (backward, backward_error) = relu_layer(*gaussians)
    assert abs(forward - 1.5**2 / 2 * (1 - 1 / math.pi)) < 5 * forward_error
    assert abs(forward - 1.5**2 * phi_fw(nn.ReLU(), 1.5)) < 5 * forward_error
    assert abs(backward - phi_bw(nn.ReLU(), 1.5)) < 5 * backward_error
    assert forward_error < 0.005
    assert backward_error < 0.005


def test_proposition_6_fails_for_preactivations_with_a_mean(gaussians):
    z, gradients = gaussians
    (forward, forward_error), (backward, backward_error) = relu_layer(z + 0.5, gradients)
    assert forward - 1.5**2 * phi_fw(nn.ReLU(), 1.5) > 50 * forward_error
    assert backward - phi_bw(nn.ReLU(), 1.5) > 50 * backward_error


def test_proposition_6_fails_for_gradients_that_depend_on_the_preactivation(gaussians):
    z, _ = gaussians
    _, (backward, backward_error) = relu_layer(z, z)
    assert phi_bw(nn.ReLU(), 1.5) - backward > 50 * backward_error
