import math

import pytest
import torch
from torch.nn import functional

from lcw_lightning.initialization.random_weights import at_centre, gaussian_rows, orthogonal_rows

zero_sums = pytest.mark.parametrize("zero_sum", [False, True], ids=["plain", "zero-sum"])
draws = pytest.mark.parametrize("draw", [gaussian_rows, orthogonal_rows])
shapes = pytest.mark.parametrize(("units", "fan_in"), [(5, 9), (8, 9), (9, 9), (20, 9), (7, 2)])
DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("fan_in", [2, 3, 50])
@zero_sums
def test_elements_of_gaussian_rows_have_variance_one_over_fan_in(fan_in, zero_sum):
    units = 200_000 // fan_in
    rows = gaussian_rows(units, fan_in, zero_sum, **DOUBLE)
    tolerance = 5 * math.sqrt(2 / (units * (fan_in - zero_sum)))  # five standard errors
    assert rows.square().mean().item() * fan_in == pytest.approx(1, rel=tolerance)


def test_projecting_plain_rows_alone_would_lose_variance():
    rows = gaussian_rows(66_666, 3)
    assert (rows - rows.mean(1, keepdim=True)).square().mean().item() * 3 == pytest.approx(2 / 3, rel=0.02)


@draws
@shapes
def test_zero_sum_rows_sum_to_zero_and_plain_ones_do_not(draw, units, fan_in):
    assert draw(units, fan_in, True, **DOUBLE).sum(1).abs().max() < 1e-14
    assert draw(units, fan_in, **DOUBLE).sum(1).abs().max() > 0.1


@draws
@zero_sums
def test_a_row_answers_with_the_mean_square_of_its_input_or_with_its_sample_variance(draw, zero_sum):
    inputs = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0], **DOUBLE)
    expected = inputs.var() if zero_sum else inputs.square().mean()
    answers = torch.stack([draw(4, 6, zero_sum, **DOUBLE) @ inputs for _ in range(10_000)]).square()
    assert answers.mean().item() == pytest.approx(expected.item(), rel=5 * math.sqrt(2 / answers.numel()))


@shapes
@zero_sums
def test_orthogonal_rows_or_columns_have_mean_square_row_norm_one(units, fan_in, zero_sum):
    rows = orthogonal_rows(units, fan_in, zero_sum, **DOUBLE)
    dimensions = fan_in - zero_sum
    if units <= dimensions:
        gram, expected = rows @ rows.T, torch.eye(units, **DOUBLE)
    else:
        gram, expected = rows.T @ rows, torch.eye(fan_in, **DOUBLE) - zero_sum / fan_in
        expected *= units / dimensions
    torch.testing.assert_close(gram, expected)
    assert rows.square().sum(1).mean().item() == pytest.approx(1)


def test_gaussian_rows_are_not_orthogonal():
    rows = gaussian_rows(5, 9, **DOUBLE)
    assert (rows @ rows.T - torch.eye(5)).abs().max() > 0.1


@draws
@zero_sums
def test_the_seed_decides_what_is_drawn(draw, zero_sum):
    def drawn(seed):
        torch.manual_seed(seed)
        return draw(5, 9, zero_sum)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("kernel_size", [(), (1,), (3,), (3, 5), (1, 3, 5)])
def test_a_matrix_at_the_centre_maps_each_position_by_itself(kernel_size):
    matrix, images = torch.randn(4, 6, **DOUBLE), torch.randn(2, 6, *[7] * len(kernel_size), **DOUBLE)
    kernel = at_centre(matrix, *kernel_size)
    assert kernel.shape == (4, 6, *kernel_size)
    assert kernel.count_nonzero() == 24
    operations = [functional.linear, functional.conv1d, functional.conv2d, functional.conv3d]
    settings = {"padding": "same"} if kernel_size else {}
    answer = operations[len(kernel_size)](images, kernel, **settings)
    torch.testing.assert_close(answer, torch.einsum("oi,bi...->bo...", matrix, images))
