"""The iteration that finds the factors of gates, on statistics with a known answer."""

import math

import pytest
import torch

from lcw_lightning.initialization.gate_factors import Factors, Free, Statistics, UnsettledError, find_factors

YES, NO, NONE = torch.tensor([True]), torch.tensor([False]), torch.zeros(0, dtype=torch.bool)


def measured(given, fed_back):
    """A measurement of parts without correlation."""

    def measure(factors: Factors) -> Statistics:
        inputs, recurrent = given * factors.ih, fed_back(factors)
        nothing = torch.zeros(0, dtype=torch.float64)
        return Statistics(inputs, recurrent, (inputs**2 + recurrent**2).sqrt(), torch.zeros_like(inputs), nothing)

    return measure


FEEDBACK = {
    "constant states": lambda f: 3 * f.hh,
    "bounded states": lambda f: 4 * f.hh * torch.tanh(5 * f.hh + f.ih),
    "growing states": lambda f: 0.1 * f.hh * f.ih * (f.hh**4).exp(),
    "overflow at first": lambda f: torch.where(f.hh > 0.9, math.inf, 3 * f.hh),
}


@pytest.mark.parametrize("fed_back", FEEDBACK.values(), ids=FEEDBACK)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_std_and_share_are_found(fed_back, share):
    measure = measured(7.0, fed_back)
    seen = measure(find_factors(measure, Free(YES, YES, NONE, NONE), 2.0, share))
    assert seen.total.item() == pytest.approx(2, rel=1e-3)
    assert (seen.recurrent**2 / seen.total**2).item() == pytest.approx(share, abs=1e-2)


def test_a_part_that_is_not_free_keeps_its_factor():
    measure = measured(0.5, lambda f: 3 * f.hh)
    factors = find_factors(measure, Free(NO, YES, NONE, NONE), 1.0, 0.5)
    assert factors.ih.item() == 1
    assert measure(factors).total.item() == pytest.approx(1, rel=1e-3)


def test_what_has_no_answer_is_an_error_with_the_number_of_its_group():
    measure = measured(torch.tensor([0.5, 2.0]).double(), lambda f: 3 * f.hh)
    no, yes = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    with pytest.raises(UnsettledError) as error:
        find_factors(measure, Free(no, yes, NONE, NONE), 1.0, 0.5)
    assert error.value.group == 1  # of which the inputs alone have more than the target
