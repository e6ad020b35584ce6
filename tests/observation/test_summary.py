"""The numbers that a person reads first."""

import math
from statistics import median

import pytest

from lcw_lightning.observation.summary import summary


def network(gradients, **numbers):
    """Twelve layers with these std of dL/dz and other numbers."""
    return {
        f"layer{n}": {"preactivation_std": 2.0, "shift_ratio": 0.0, "gradient_std": gradient}
        | {name: values[n] for name, values in numbers.items()}
        for n, gradient in enumerate(gradients)
    }


@pytest.mark.parametrize("decades", [-6.0, 0.0, 4.5], ids=["vanish", "flat", "explode"])
def test_gradient_decades_are_below_zero_where_gradients_vanish(decades):
    rows = network([10 ** (decades * (10 - n) / 9) for n in range(12)])  # the medians of three are nine layers apart
    assert summary(rows, {})["shift/gradient_decades"] == pytest.approx(decades)


def test_gradients_are_compared_by_their_norm_whatever_number_of_values_a_layer_has():
    rows = network([1.0] * 6 + [0.1] * 6)
    values = {name: 100 if n >= 6 else 1 for n, name in enumerate(rows)}
    assert summary(rows, values)["shift/gradient_decades"] == pytest.approx(0.0)
    assert summary(rows, {})["shift/gradient_decades"] == pytest.approx(1.0)  # a control


def test_shift_ratios_are_their_median_and_their_maximum():
    shifts = [3.0, 0.5, math.nan, 9.0, *[1.0] * 8]
    found = summary(network([1.0] * 12, shift_ratio=shifts), {})
    known = [shift for shift in shifts if not math.isnan(shift)]
    assert (found["shift/shift_ratio_median"], found["shift/shift_ratio_max"]) == (median(known), 9.0)


def test_zeros_of_the_data_are_not_dead_units():
    found = summary(network([1.0] * 12, dead_units=[0.9, 0.1, 0.3, *[0.0] * 9]), {})
    assert found["shift/dead_units_max"] == 0.3


@pytest.mark.parametrize("rows", [{}, {"only": {"sparsity": 0.5}}], ids=["nothing", "one-layer"])
def test_what_is_not_known_is_nan_so_that_the_metrics_are_always_there(rows):
    found = summary(rows, {})
    assert len(found) == 4
    assert all(math.isnan(number) for number in found.values())
