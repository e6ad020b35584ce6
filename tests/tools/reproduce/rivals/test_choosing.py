import math

import pytest

from tools.reproduce.rivals.choosing import BEYOND, Axis, choose

RATE, GAIN = Axis("rate", 0.01, 10.0), Axis("gain", 1.0, 2.0)


def record(accuracy, loss=1.0, diverged=False):
    return {"diverged": diverged, "held_out_accuracy": [accuracy], "held_out_loss": [loss]}


def around(rate, gain):
    """Return a function whose accuracy is highest at the settings, and falls off on every side."""
    return lambda settings: record(-abs(math.log10(settings["rate"] / rate)) - abs(math.log2(settings["gain"] / gain)))


@pytest.mark.parametrize(
    ("rate", "gain", "runs"),
    [
        pytest.param(0.1, 2, 9, id="the middle: no run more"),
        pytest.param(1, 2, 10, id="an edge: one rate more"),
        pytest.param(1, 4, 11, id="a corner: a rate and a gain more"),
        pytest.param(0.001, 0.5, 16, id="outside the grid"),
    ],
)
def test_the_best_is_found_and_no_neighbour_of_it_is_untried(rate, gain, runs):
    tried = choose((RATE, GAIN), around(rate, gain))
    assert (tried[0]["rate"], tried[0]["gain"]) == pytest.approx((rate, gain))
    points = {(round(math.log10(run["rate"])), round(math.log2(run["gain"]))) for run in tried}
    x, y = round(math.log10(rate)), round(math.log2(gain))
    assert {(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)} <= points
    assert len(points) == len(tried) == runs


def test_a_grid_is_extended_to_a_limit():
    tried = choose((RATE,), lambda settings: record(settings["rate"]))
    assert [run["rate"] for run in tried[:1]] == pytest.approx([0.01 * 10 ** (2 + BEYOND)])
    assert len(tried) == 3 + BEYOND


def test_equal_accuracies_are_told_apart_by_the_loss():
    tried = choose((RATE,), lambda settings: record(0.5, loss=abs(settings["rate"] - 0.1)))
    assert tried[0]["rate"] == pytest.approx(0.1)


def test_a_run_that_diverged_is_worse_than_any_other():
    tried = choose(
        (RATE,), lambda settings: record(0.9 if settings["rate"] > 0.05 else 0.1, diverged=settings["rate"] > 0.05)
    )
    assert tried[0]["rate"] < 0.05


def test_what_diverges_on_the_whole_grid_is_tried_at_lower_values():
    tried = choose((RATE,), lambda settings: record(0.3, diverged=settings["rate"] > 0.005))
    assert tried[0]["rate"] == pytest.approx(0.001)


def test_what_cannot_be_done_anywhere_is_not_tried_further():
    tried = choose((RATE, GAIN), lambda _: {"cannot": "no"})
    assert len(tried) == 9
