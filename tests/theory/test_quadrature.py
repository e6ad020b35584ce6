import math

import pytest
import torch

from lcw_lightning.theory.quadrature import adaptive_rule


def panels(count: int) -> torch.Tensor:
    return torch.linspace(0, 1, count + 1, dtype=torch.float64)


@pytest.mark.parametrize("power", range(10))
def test_one_panel_is_exact_for_polynomials_up_to_degree_9(power):
    nodes, weights, error = adaptive_rule(lambda z: z**power, panels(1))
    assert len(nodes) == 20
    assert float((weights * nodes**power).sum()) == pytest.approx(1 / (power + 1), rel=1e-11)
    assert error < 1e-11


def test_a_rule_has_ascending_nodes_within_its_range_and_weights_that_sum_to_it():
    nodes, weights, _ = adaptive_rule(lambda z: (z > 0.3).double(), panels(3))
    assert (nodes.diff() >= 0).all()
    assert 0 < nodes[0] < nodes[-1] < 1
    assert float(weights.sum()) == pytest.approx(1.0, rel=1e-12)


def test_the_error_of_a_root_is_small_and_that_of_a_pole_is_not():
    nodes, weights, error = adaptive_rule(lambda z: z**-0.5, panels(1))
    assert float((weights * nodes**-0.5).sum()) == pytest.approx(2.0, rel=1e-5)
    assert error < 1e-5
    *_, error = adaptive_rule(lambda z: 1 / z, panels(1))
    assert error > 1.0


def test_noise_ends_the_search_and_is_reported():
    def noisy(z):
        return 1 + 1e-3 * torch.frac(1e6 * torch.sin(1e6 * z))

    nodes, weights, error = adaptive_rule(noisy, panels(1))
    assert 1e-6 < error < 1e-2
    assert abs(float((weights * noisy(nodes)).sum()) - 1) < error


def test_a_sum_over_many_panels_is_that_over_one():
    def integrand(z):
        return torch.stack((z.exp(), z.sin()))

    for count in (1, 2, 100):
        nodes, weights, _ = adaptive_rule(integrand, panels(count))
        exact = torch.tensor([math.e - 1, 1 - math.cos(1)], dtype=torch.float64)
        torch.testing.assert_close((weights * integrand(nodes)).sum(-1), exact, rtol=1e-11, atol=0)
