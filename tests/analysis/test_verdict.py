"""The verdict on made-up statistics, whose decades are known."""

import math
from pathlib import Path

import numpy as np
import pytest

from lcw_lightning.analysis.verdict import (
    DECADES,
    LARGE_SHIFT,
    LARGE_UNNORMALIZED,
    MANY_DEAD,
    NEARLY_ALL,
    Condition,
    findings,
)

HEALTHY = {
    "input_mean": 0.4,
    "shift_ratio": 0.7,
    "preactivation_std": 1.0,
    "gradient_std": 0.01,
    "sparsity": 0.5,
    "dead_units": 0.0,
    "constraint_residual": 3.0,
}


def layers(count=5, **changes):
    """Healthy layers 'l0', 'l1' ..., but for what is given by statistic: one number for all or a list."""
    rows = {f"l{n}": dict(HEALTHY) for n in range(count)}
    for name, given in changes.items():
        for n, row in enumerate(rows.values()):
            row[name] = given[n] if isinstance(given, list) else given
    return rows


def says(statistics, *args, **kwargs):
    return [finding.says for finding in findings(statistics, *args, **kwargs)]


def advice(statistics, *args, **kwargs):
    return " ".join(line for finding in findings(statistics, *args, **kwargs) for line in finding.advice)


def test_of_a_healthy_network_nothing_is_said():
    assert findings(layers()) == []
    assert findings(layers(), Condition(zero_sum=["l0", "l3"]), loss=2.3) == []
    assert findings(layers(1)) == []
    assert findings({}) == []


VANISH = (
    "Gradients vanish: rms(z) x norm(dL/dz) falls by {:.1f} decades from the last layers back to the first; it is "
    "smallest in 'l0'."
)


@pytest.mark.parametrize("lost", [2.4, 2.6, 12.0])
def test_gradients_that_vanish_do_so_by_their_decades(lost):
    found = says(layers(9, gradient_std=[10 ** (lost * (n - 8) / 6) for n in range(9)]))
    assert found == ([] if lost < 2.5 else [VANISH.format(lost)])  # medians of the first and the last three are 6 apart


@pytest.mark.parametrize("won", [2.4, 2.6, 12.0])
def test_gradients_that_explode_do_so_by_their_decades(won):
    found = says(layers(9, gradient_std=[10 ** (won * (8 - n) / 6) for n in range(9)]))
    assert len(found) == (won > 2.5)
    assert all(f"grows by {won:.1f} decades from the last layers back to the first" in said for said in found)


def test_a_convolution_that_shares_its_gradient_out_among_positions_does_not_vanish():
    stds = layers(3, gradient_std=[1e-3, 1e-2, 1.0])
    positions = Condition(gradient_values={"l0": 10**6, "l1": 10**4, "l2": 1})
    assert says(stds, positions) == []
    assert "falls by 3.0 decades" in says(stds)[0]


def test_a_layer_that_a_normalization_rescales_does_not_explode():
    scales = [10.0 ** (-n) for n in range(8)]
    rows = layers(8, gradient_std=[1 / scale for scale in scales], preactivation_std=scales)
    assert not any("Gradients" in said for said in says(rows))
    unmoved = layers(8, gradient_std=[1 / scale for scale in scales[::-1]])
    assert any("Gradients explode" in said for said in says(unmoved))


def test_branches_with_little_gradient_are_not_taken_for_depth():
    assert findings(layers(9, gradient_std=[1e-9, 0.01, 0.01, 1e-9, 0.01, 0.01, 0.01, 1e-9, 0.01])) == []


@pytest.mark.parametrize(("small", "found"), [(2, 0), (6, 1)], ids=["query and key", "half of the layers"])
def test_gradients_of_a_query_and_a_key_alone_do_not_vanish(small, found):
    assert len(says(layers(12, gradient_std=[1e-5] * small + [0.01] * (12 - small)))) == found


@pytest.mark.parametrize(
    ("body", "found"), [([0.01] * 10, 0), (list(10.0 ** np.arange(-8, 2)), 1)], ids=["flat", "falls"]
)
def test_a_head_that_starts_small_is_not_taken_for_depth(body, found):
    assert len(says(layers(12, gradient_std=[*body, 30.0, 100.0]))) == found


def test_activation_shift_is_a_part_of_what_is_compared():
    falling = {"gradient_std": [10.0 ** (n - 8) for n in range(9)]}
    assert not any(
        "Gradients" in said
        for said in says(layers(9, preactivation_std=[10.0 ** (8 - n) for n in range(9)], **falling))
    )
    shifted = layers(9, shift_ratio=[10.0**n for n in range(9)], **falling)
    assert "falls by 12.0 decades" in says(shifted)[0]


def test_layers_that_the_loss_does_not_reach_are_compared_with_none():
    rows = layers(gradient_std=[1e-9, 1e-9, 1.0, 1.0, 1e9])
    del rows["l4"]["gradient_std"]
    assert "falls by 9.0 decades" in says(rows)[0]


@pytest.mark.parametrize(("factor", "verb"), [(1e3, "explode: their std grows"), (1e-3, "vanish: their std falls")])
def test_preactivations_that_grow_or_fall(factor, verb):
    found = says(layers(2, preactivation_std=[1.0, factor], gradient_std=[0.01, 0.01 / factor]))
    assert found == [f"Preactivations {verb} by 3.0 decades from the first layers to the last."]
    assert says(layers(2, preactivation_std=[1.0, factor ** (1 / 2)])) == []


def test_activation_shift_names_the_worst_layers_first():
    found = says(layers(shift_ratio=[0.1, 3.0, 50.0, 1.9, 2.1]), Condition(normalized=True))
    assert found == [
        "Activation shift in 3 of 5 layers: the means of the preactivations are up to 50 times their std, more than 2 "
        "times in 'l2', 'l1', 'l4'; batch normalization directly behind a layer removes it."
    ]


@pytest.mark.parametrize(
    ("ratio", "normalized", "said"), [(1.9, True, 0), (1.9, False, 1), (2.1, True, 1), (1.2, False, 0)]
)
def test_shift_is_larger_before_it_matters_where_there_is_normalization(ratio, normalized, said):
    assert len(says(layers(shift_ratio=ratio), Condition(normalized=normalized))) == said


def test_shift_in_less_than_half_of_the_layers_is_that_of_averages_over_positions():
    assert says(layers(shift_ratio=[0.1, 8.0, 0.1, 8.0, 0.1])) == []
    assert len(says(layers(shift_ratio=[0.1, 8.0, 8.0, 8.0, 0.1]))) == 1


def test_shift_of_the_last_layer_alone_is_no_matter():
    assert says(layers(shift_ratio=[0.1, 0.1, 0.1, 0.1, 5.0])) == []
    assert len(says(layers(1, shift_ratio=5.0))) == 1


def test_a_shift_that_drowns_the_rest_is_a_shift():
    """A deep sigmoid network: its last layers give every sample the same float32 numbers."""
    rows = layers(shift_ratio=[0.5, 300.0, 1e5, math.inf, 3e8], preactivation_std=[1.0, 1e-2, 1e-5, 0.0, 1e-9])
    found = says(rows)
    assert any("Activation shift in 4 of 5 layers" in line for line in found)
    assert not any("No signal" in line for line in found)


def test_advice_fits_the_constraint():
    shifted = layers(shift_ratio=9.0, gradient_std=[10.0 ** (n - 9) for n in range(5)])
    assert "constrain the weights" in advice(shifted)
    assert "constrain the weights" in advice(shifted, Condition(zero_sum=["l0", "l1"]))
    constrained = advice(shifted, Condition(zero_sum=list(shifted)))
    assert "constrain the weights" not in constrained
    assert "normalize each input feature" in constrained


def test_advice_fits_the_initialization():
    vanishing = [10.0 ** (n - 9) for n in range(5)]
    drawn = layers(gradient_std=vanishing, preactivation_std=0.1)
    assert "minibatch_init_" in advice(drawn)
    # What minibatch_init_ leaves: unit scale, activation shift included.
    shift = [0.5, 3.0, 9.0, 30.0, 90.0]
    rescaled = layers(gradient_std=vanishing, shift_ratio=shift, preactivation_std=[(1 + r * r) ** -0.5 for r in shift])
    assert "minibatch_init_" not in advice(rescaled)


@pytest.mark.parametrize(
    ("dead", "sparsity", "values", "said"),
    [
        (0.0, 0.5, 1000, False),
        (0.1, 0.5, 1000, False),
        (0.3, 0.5, 1000, True),
        (0.3, 0.5, 15, False),
        (1.0, 1.0, 1000, True),
        (0.9**16, 0.9, 16, False),
        (0.9**16 + 0.3, 0.94, 16, True),
    ],
    ids=["none", "few", "many", "few-samples", "all", "by-chance", "more-than-by-chance"],
)
def test_dead_units_are_more_than_chance(dead, sparsity, values, said):
    rows = layers(3, dead_units=[0.0, dead, 0.0], sparsity=sparsity)
    found = says(rows, Condition(input_values=dict.fromkeys(rows, values)))
    assert len(found) == said
    if said:
        assert found[0] == (
            f"Dead units: {dead:.0%} of the inputs of 'l1' are zero on the whole batch, more than 10% in 'l1'."
        )


def test_zeros_in_the_data_are_no_dead_units():
    assert says(layers(3, dead_units=[0.9, 0.0, 0.0], sparsity=[0.9, 0.5, 0.5])) == []


@pytest.mark.parametrize("finding", ["dead_units", "shift_ratio"])
def test_activations_that_are_sparse_by_design_have_neither_dead_units_nor_shift(finding):
    rows = layers(**({"dead_units": 0.4, "sparsity": 0.8} if finding == "dead_units" else {"shift_ratio": 9.0}))
    values = dict.fromkeys(rows, 128)
    assert len(says(rows, Condition(input_values=values))) == 1
    assert says(rows, Condition(input_values=values, sparse=True)) == []


def test_the_page_has_the_limits_of_the_verdict():
    page = (Path(__file__).parents[2] / "docs" / "analyze.md").read_text()
    assert f"over {DECADES} decades from the first layers to the last" in page
    assert f"over {LARGE_UNNORMALIZED}, or over {LARGE_SHIFT:g} if the network has a layer of normalization" in page
    assert (MANY_DEAD, NEARLY_ALL) == (0.1, 0.9)  # in words on the page
