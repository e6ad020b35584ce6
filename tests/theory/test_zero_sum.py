import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lcw_lightning.theory.zero_sum import embed_zero_sum, project_zero_sum, zero_sum_coordinates

FAN_INS = [2, 3, 64, pytest.param(4608, marks=pytest.mark.slow)]


def basis(fan_in: int) -> torch.Tensor:
    """B as a matrix (fan_in, fan_in - 1), column by column."""
    return embed_zero_sum(torch.eye(fan_in - 1, dtype=torch.float64)).T


def qr_basis(fan_in: int) -> torch.Tensor:
    """The dense basis of the paper's Appendix B."""
    spanning = torch.cat((torch.eye(fan_in - 1), -torch.ones(1, fan_in - 1))).to(torch.float64)
    return torch.linalg.qr(spanning).Q


@pytest.mark.parametrize("fan_in", FAN_INS)
def test_the_basis_is_orthonormal(fan_in):
    torch.testing.assert_close(basis(fan_in).T @ basis(fan_in), torch.eye(fan_in - 1, dtype=torch.float64))


@pytest.mark.parametrize("fan_in", FAN_INS)
def test_every_basis_vector_sums_to_zero(fan_in):
    torch.testing.assert_close(basis(fan_in).sum(0), torch.zeros(fan_in - 1, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("fan_in", [2, 3, 64, 512])
def test_the_basis_spans_the_subspace_of_the_papers_qr_basis(fan_in):
    ours, papers = basis(fan_in), qr_basis(fan_in)
    torch.testing.assert_close(ours @ ours.T, papers @ papers.T)


@pytest.mark.parametrize("fan_in", FAN_INS)
def test_the_basis_is_the_householder_reflection_without_its_first_column(fan_in):
    # e_1 -> -1/sqrt(m); a change here makes every checkpoint unreadable and needs another BASIS_VERSION.
    e_1 = torch.zeros(fan_in, dtype=torch.float64)
    e_1[0] = 1
    normal = e_1 + torch.full_like(e_1, fan_in**-0.5)
    reflection = torch.eye(fan_in, dtype=torch.float64) - 2 * torch.outer(normal, normal) / normal.dot(normal)
    torch.testing.assert_close(basis(fan_in), reflection[:, 1:])


@pytest.mark.parametrize("fan_in", FAN_INS)
def test_coordinates_come_back_and_keep_their_norm(fan_in):
    v = torch.randn(5, fan_in - 1, dtype=torch.float64)
    torch.testing.assert_close(zero_sum_coordinates(embed_zero_sum(v)), v)
    torch.testing.assert_close(embed_zero_sum(v).norm(dim=1), v.norm(dim=1))


@pytest.mark.parametrize("fan_in", FAN_INS)
def test_embedding_after_coordinates_is_the_orthogonal_projection(fan_in):
    w = torch.randn(5, fan_in, dtype=torch.float64)
    projected = embed_zero_sum(zero_sum_coordinates(w))
    torch.testing.assert_close(projected, w - w.mean(1, keepdim=True))
    torch.testing.assert_close(projected, project_zero_sum(w))


@pytest.mark.parametrize("function", [embed_zero_sum, zero_sum_coordinates, project_zero_sum])
def test_first_and_second_derivatives_are_exact_in_float64(function):
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, x)
    assert gradgradcheck(function, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    v = torch.randn(4, 511).to(dtype)
    assert torch.equal(embed_zero_sum(v), embed_zero_sum(v.float()).to(dtype))
    assert torch.equal(zero_sum_coordinates(v), zero_sum_coordinates(v.float()).to(dtype))


def test_float32_sums_stay_at_rounding_for_a_large_fan_in():
    w = embed_zero_sum(torch.randn(16, 4607))
    assert (w.double().sum(1).abs() / w.norm(dim=1)).max() < 1e-5


@pytest.fixture
def activations() -> torch.Tensor:
    """200,000 samples with mean 0.5 * ones and covariance 0.04 * I: P_gamma of Definition 1, not Gaussian."""
    return 0.5 + 0.2 * 3**0.5 * (2 * torch.rand(200_000, 64, dtype=torch.float64) - 1)


def test_proposition_1_plain_weights_have_the_predicted_mean(activations):
    w = torch.randn(8, 64, dtype=torch.float64)
    predicted = 0.5 * 64**0.5 * w.norm(dim=1) * torch.cosine_similarity(w, torch.ones_like(w))
    torch.testing.assert_close((activations @ w.T).mean(0), predicted, atol=0.02, rtol=0)
    assert predicted.abs().max() > 1


def test_proposition_3_zero_sum_weights_have_zero_mean(activations):
    w = embed_zero_sum(torch.randn(8, 63, dtype=torch.float64))
    z = activations @ w.T
    standard_error = z.std(0) / len(z) ** 0.5
    assert (z.mean(0).abs() < 5 * standard_error).all()


def test_proposition_4_zero_sum_weights_amplify_the_variance_by_their_squared_norm(activations):
    w = embed_zero_sum(torch.randn(8, 63, dtype=torch.float64))
    torch.testing.assert_close((activations @ w.T).var(0), 0.04 * w.square().sum(1), atol=0, rtol=0.02)
