"""A weight that stands twice is found, also within one layer."""

import pytest
from torch import nn

from lcw_lightning import constrain, plan_constraints


def attention():
    layer = nn.MultiheadAttention(8, 2, kdim=8, vdim=6)
    layer.k_proj_weight = layer.q_proj_weight
    return layer


def cell():
    layer = nn.GRUCell(5, 5)
    layer.weight_hh = layer.weight_ih
    return layer


def both_directions():
    layer = nn.LSTM(5, 5, bidirectional=True)
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    return layer


@pytest.mark.parametrize(
    ("make", "twins"),
    [
        (attention, {"q_proj_weight": "k_proj_weight", "k_proj_weight": "q_proj_weight"}),
        (cell, {"weight_ih": "weight_hh", "weight_hh": "weight_ih"}),
        (both_directions, {"weight_hh_l0": "weight_hh_l0_reverse", "weight_hh_l0_reverse": "weight_hh_l0"}),
    ],
    ids=["attention", "cell", "lstm"],
)
def test_twins_within_one_layer_are_left_out_both(make, twins):
    plan = plan_constraints(nn.Sequential(make(), nn.Linear(4, 4)))
    assert plan.left_out == {f"0.{name}": f"tied to '0.{twin}'" for name, twin in twins.items()}


def test_a_constrained_weight_is_not_tied_to_its_own_coordinates():
    model = nn.Sequential(nn.LSTM(5, 5, bidirectional=True))
    names = constrain(model)
    assert list(plan_constraints(model).weights) == names
