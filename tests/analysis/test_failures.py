"""What is said of numbers that are not finite, of signals that are gone, and of layers left out."""

import math

import pytest
import torch
from torch import nn

from lcw_lightning import analyze
from lcw_lightning.analysis.verdict import Condition, findings

ROW = {
    "input_mean": 0.4,
    "constraint_residual": 3.0,
    "shift_ratio": 0.7,
    "preactivation_std": 1.0,
    "gradient_std": 0.01,
    "sparsity": 0.5,
    "dead_units": 0.0,
}


def layers(**changes):
    """Three healthy layers, but for what is given by layer."""
    return {name: {**ROW, **changes.get(name, {})} for name in ("l0", "l1", "l2")}


def says(statistics, *args, **kwargs):
    return [finding.says for finding in findings(statistics, *args, **kwargs)]


NAN = {"input_mean": math.nan, "constraint_residual": math.nan, "preactivation_std": math.nan}
AFTER = {"l2": NAN | {"constraint_residual": 3.0}}
NOT_FINITE = {
    "data": (layers(l0=NAN, l1=NAN), None, "the input of 'l0'."),
    "activation": (
        layers(l1={"input_mean": math.inf}, **AFTER),
        None,
        "the input of 'l1'; an activation before it overflows.",
    ),
    "sums": (layers(l1={"preactivation_std": math.nan}, **AFTER), None, "the output of 'l1'; its sums overflow."),
    "weights": (
        layers(l1={"constraint_residual": math.nan, "preactivation_std": math.nan}),
        None,
        "the weights of 'l1'.",
    ),
    "loss": (
        layers(l2={"gradient_std": math.nan}),
        math.inf,
        "the loss is inf, although the outputs of all layers are finite.",
    ),
    "gradients": (
        layers(l0={"gradient_std": math.nan}, l1={"gradient_std": math.nan}),
        2.3,
        "dL/dz of 'l1', 'l0', although the forward pass is finite.",
    ),
}


@pytest.mark.parametrize(("statistics", "loss", "cause"), NOT_FINITE.values(), ids=NOT_FINITE)
def test_numbers_that_are_not_finite_are_said_where_they_begin_and_no_consequence(statistics, loss, cause):
    (found,) = says(statistics, loss=loss)
    assert found.startswith(f"Not finite: {cause}")


def test_what_is_said_is_by_layers_in_forward_order():
    backwards = dict(reversed(layers(l0={"preactivation_std": math.nan}, l2={"input_mean": math.nan}).items()))
    assert says(backwards) == ["Not finite: the input of 'l2'."]


def test_gradients_that_are_zero_are_blamed_on_weights_that_are():
    rows = layers(l0={"gradient_std": 0.0}, l1={"gradient_std": 0.0})
    assert says(rows) == ["No gradient at all: dL/dz is exactly zero in 2 of 3 layers ('l0', 'l1')."]
    zero = Condition(zero=["l2"])
    assert says(rows, zero)[0].endswith("('l0', 'l1'), because the weights of 'l2' are zero.")
    assert says(layers(), zero) == []  # the gradient comes another way


def test_a_layer_of_zeros_is_no_lost_signal():
    rows = layers(l2={"preactivation_std": 0.0, "shift_ratio": math.nan})
    assert says(rows, Condition(zero=["l2"])) == []
    assert says(rows) == ["No signal: the output of 'l2' is identical for all samples (1 of 3 layers)."]


def test_one_sample_is_too_few():
    same = {"preactivation_std": 0.0, "shift_ratio": math.inf, "gradient_std": 0.0}
    assert says(layers(l0=same, l1=same, l2=same)) == [
        "No signal: the output of 'l0', 'l1', 'l2' is identical for all samples (3 of 3 layers)."
    ]
    # A convolution has many positions even so.
    found = says(layers(l2=same), Condition(input_values={"l0": 100, "l1": 100, "l2": 1}))
    assert found == ["No signal: the output of 'l2' is identical for all samples (1 of 3 layers)."]


def test_layers_left_out_are_said():
    rows = layers()
    del rows["l0"]["gradient_std"], rows["l1"]["gradient_std"]
    condition = Condition(frozen=["l0"], unreached=["spare", "other"])
    assert says(rows, condition) == [
        "Frozen (no weight is trained): 'l0'.",
        "Never reached in this forward pass: 'spare', 'other'.",
        "The loss does not depend on 'l1': no gradient gets there.",
    ]


def test_without_a_backward_pass_no_gradient_is_missed():
    rows = {name: {key: value for key, value in row.items() if key != "gradient_std"} for name, row in layers().items()}
    assert says(rows) == []


def test_behind_dead_units_there_is_no_signal_either_and_the_batch_is_not_to_blame():
    torch.manual_seed(0)
    network = [nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2)]
    network[0].bias.data.fill_(-10)
    first, *others = analyze(nn.Sequential(*network), (torch.rand(32, 10), torch.arange(32) % 2)).findings
    assert first.says == "No signal: the output of '2', '4' is identical for all samples (2 of 3 layers)."
    assert first.advice == ("look for dead or saturated units, and for constant inputs",)
    assert "in 1 of 1 layers with a signal ('0')" in others[0].says
