import pytest
import torch

from lcw_lightning.theory.gaussian import gaussian_expectation


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 5.0, 100.0])
def test_expectations_of_powers_are_the_gaussian_moments(sigma):
    moments = gaussian_expectation(lambda z: torch.stack([(z / sigma) ** k for k in range(9)]), sigma)
    expected = torch.tensor([1, 0, 1, 0, 3, 0, 15, 0, 105], dtype=torch.float64)
    torch.testing.assert_close(moments, expected, rtol=1e-11, atol=1e-9)
    assert gaussian_expectation(torch.square, sigma).shape == ()
