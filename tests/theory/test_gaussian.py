import pytest
import torch
from scipy.stats import norm

from lcw_lightning.theory.gaussian import gaussian_expectation


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 5.0, 100.0])
def test_expectations_of_powers_are_the_gaussian_moments(sigma):
    moments = gaussian_expectation(lambda z: torch.stack([(z / sigma) ** k for k in range(9)]), sigma)
    expected = torch.tensor([1, 0, 1, 0, 3, 0, 15, 0, 105], dtype=torch.float64)
    torch.testing.assert_close(moments, expected, rtol=1e-11, atol=1e-9)
    assert gaussian_expectation(torch.square, sigma).shape == ()


# Panels end at 38 / 2^k and at their halves. Rules without nodes at the ends do not see what happens right beside them.
PLACES = [
    end + sign * distance
    for end in (0.59375, 0.890625, 1.1875)
    for sign in (-1, 1)
    for distance in (1e-2, 1e-3, 1e-5, 1e-9)
]


@pytest.mark.parametrize("place", [*PLACES, -0.7, 0.0, 3.3])
def test_jumps_and_kinks_are_found_wherever_they_are(place):
    jump = gaussian_expectation(lambda z: (z > place).double(), 1.0)
    kink = gaussian_expectation(lambda z: (z - place).clamp(min=0), 1.0)
    assert float(jump) == pytest.approx(norm.sf(place), rel=1e-8)
    assert float(kink) == pytest.approx(norm.pdf(place) - place * norm.sf(place), rel=1e-10)
