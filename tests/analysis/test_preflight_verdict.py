"""What is said of draws whose growth is known."""

import math

import pytest
import torch

from lcw_lightning.analysis.preflight import Preflight
from lcw_lightning.analysis.preflight_verdict import preflight_findings

INF = math.inf


def preflight_of(growth=(0.0,), q=(1.0,)):
    draws = max(len(growth), len(q))
    growth, q = (torch.tensor([*values] * (draws // len(values)), dtype=torch.float64) for values in (growth, q))
    return Preflight(
        ["first", "last"],
        torch.stack([torch.ones_like(q), q], dim=1),
        torch.stack([growth, torch.zeros_like(growth)], dim=1),
    )


def says(*args, **kwargs):
    return [finding.says for finding in preflight_findings(preflight_of(*args, **kwargs))]


def test_of_a_healthy_network_nothing_is_said():
    assert says() == []
    assert says(growth=[-2.4], q=[1e4]) == []
    assert says(growth=[1.2], q=[1e-4]) == []


@pytest.mark.parametrize(("growth", "verb"), [(1.21, "may explode"), (2.4, "may explode"), (2.5, "explode")])
def test_gradients_that_explode_do_so_by_the_growth_of_failed_runs(growth, verb):
    assert says(growth=[growth]) == [
        f"Pre-flight: gradients {verb}: their norm grows by {growth:.1f} decades in the median of 1 draws of the "
        f"weights and grows by {growth:.1f} at the 90% quantile from 'last' back to 'first'. Deep sparse networks "
        "trained with up to 1.2 at this quantile; from about 2.5 on, some or all of their runs failed (Price et al. "
        "2024, Table 2)."
    ]


def test_it_is_the_worst_tenth_of_the_draws_that_counts():
    assert says(growth=[0.0] * 19 + [9.0]) == []
    (said,) = says(growth=[0.0] * 17 + [9.0] * 3)
    assert "grows by 0.0 decades in the median of 20 draws of the weights and grows by 9.0 at the 90% quantile" in said


def test_draws_that_are_not_finite_are_counted_as_failures():
    (said,) = says(growth=[0.0] * 15 + [INF] * 5)
    assert "explode" in said
    assert "grows by inf at the 90% quantile, where 5 draws without finite numbers count as infinite, from" in said


@pytest.mark.parametrize("growth", [-2.6, -INF])
def test_gradients_that_vanish(growth):
    (said,) = says(growth=[0.0] * 16 + [growth] * 4)
    assert said.startswith("Pre-flight: gradients vanish: their norm grows by 0.0 decades in the median")
    assert f"falls by {-growth:.1f} at the 10% quantile from 'last' back to 'first'." in said


@pytest.mark.parametrize(("q", "verb"), [(1e6, "explode"), (INF, "explode"), (1e-6, "vanish"), (0.0, "vanish")])
def test_preactivations_that_explode_or_vanish(q, verb):
    (said,) = says(q=[q])
    does = "grows" if verb == "explode" else "falls"
    size = "sqrt(q), their root mean square with activation shift,"
    decades = abs(0.5 * math.log10(q) if q else INF)
    assert said.startswith(f"Pre-flight: preactivations {verb}: {size} {does} by {decades:.1f} decades in the median")
    assert "from 'first' to 'last'." in said


def advice(zero_sum=(), **kwargs):
    return " ".join(line for f in preflight_findings(preflight_of(**kwargs), zero_sum) for line in f.advice)


def test_advice_fits_what_is_the_matter_and_the_constraint():
    for kwargs in ({"growth": [3.0]}, {"growth": [-3.0]}, {"q": [1e6]}):
        assert "constrain the weights" in advice(**kwargs)
        assert "constrain the weights" in advice(["first"], **kwargs)
        assert "constrain the weights" not in advice(["first", "last"], **kwargs)
    assert all(word in advice(growth=[3.0]) for word in ("clip", "smaller slope", "wider layers", "fewer layers"))
    assert "edge_of_chaos_init_" in advice(growth=[-3.0])
