"""Bad settings are refused where they are given, in one sentence that says what fits."""

import re

import pytest
import torch
from torch import nn

from lcw_lightning import (
    ConstraintCallback,
    EdgeOfChaosInitCallback,
    MinibatchInitCallback,
    ShiftMonitor,
    constrain,
    convert_,
    edge_of_chaos_init_,
    minibatch_init_,
    plan_constraints,
)

KINDS = "kind is one of 'none', 'lcw', 'cwn', 'wn', 'sn'; got "
CALLBACKS = [ConstraintCallback, MinibatchInitCallback, EdgeOfChaosInitCallback, ShiftMonitor]


def network():
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))


FUNCTIONS = {
    "constrain": lambda **settings: constrain(network(), **settings),
    "plan_constraints": lambda **settings: plan_constraints(network(), **settings),
    "convert_": lambda **settings: convert_(network(), torch.rand(8, 6), **settings),
    "minibatch_init_": lambda **settings: minibatch_init_(network(), torch.rand(8, 6), **settings),
    "edge_of_chaos_init_": lambda **settings: edge_of_chaos_init_(network(), torch.rand(8, 6), **settings),
}
TAKE_PATTERNS = {**{callback.__name__: callback for callback in CALLBACKS}, **FUNCTIONS}


@pytest.mark.parametrize("take", TAKE_PATTERNS.values(), ids=TAKE_PATTERNS)
@pytest.mark.parametrize("setting", ["include", "exclude"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param("0.*", "is a list of patterns, got the string '0.*'; write {}=['0.*'].", id="string"),
        pytest.param([1], "is a list of patterns such as ['head.*'], got [1].", id="numbers"),
        pytest.param(None, "is a list of patterns such as ['head.*'], got None.", id="none"),
        pytest.param({"0.*"}, "is a list of patterns such as ['head.*'], got {{'0.*'}}.", id="set"),
    ],
)
def test_patterns_that_are_no_list_are_refused(take, setting, given, says):
    with pytest.raises(ValueError, match=re.escape(f": {setting} {says.format(setting)}") + "$"):
        take(**{setting: given})


@pytest.mark.parametrize("take", TAKE_PATTERNS.values(), ids=TAKE_PATTERNS)
@pytest.mark.parametrize("patterns", [["0.*"], ("0.*",)], ids=["list", "tuple"])
def test_patterns_in_a_list_or_tuple_are_taken(take, patterns):
    take(include=patterns)


SETTINGS = {
    "kind-upper-case": (ConstraintCallback, {"kind": "LCW"}, KINDS + "'LCW', near it is 'lcw'."),
    "kind-misspelt": (ConstraintCallback, {"kind": "lwc"}, KINDS + "'lwc', near it is 'lcw'."),
    "kind-none": (ConstraintCallback, {"kind": None}, KINDS + "None."),
    "kind-list": (
        ConstraintCallback,
        {"kind": ["head.*"]},
        KINDS + "['head.*']; give patterns by name, include=[...] or exclude=[...].",
    ),
    "constrain-upper-case": (FUNCTIONS["constrain"], {"kind": "LCW"}, KINDS + "'LCW', near it is 'lcw'."),
    "plan-list": (FUNCTIONS["plan_constraints"], {"kind": ["0.*"]}, KINDS + "['0.*']; give patterns by name"),
    "convert-kind": (FUNCTIONS["convert_"], {"kind": "cwnn"}, KINDS + "'cwnn', near it is 'cwn'."),
    "method": (
        ConstraintCallback,
        {"method": "projct"},
        "method is one of 'parametrize', 'project'; got 'projct', near it is 'project'.",
    ),
    "granularity": (
        MinibatchInitCallback,
        {"granularity": "Layer"},
        "granularity is one of 'none', 'layer', 'unit'; got 'Layer', near it is 'layer'.",
    ),
    "std-negative": (MinibatchInitCallback, {"target_std": -1.0}, "needs target_std > 0, got -1.0."),
    "std-list": (MinibatchInitCallback, {"target_std": ["head.*"]}, "needs target_std > 0, got ['head.*']."),
    "weights": (
        EdgeOfChaosInitCallback,
        {"weights": "orthogonal"},
        "weights is one of 'none', 'gaussian', 'delta_orthogonal'; got 'orthogonal', near it is 'delta_orthogonal'.",
    ),
    "q": (EdgeOfChaosInitCallback, {"q": 0}, "needs q > 0, got 0."),
    "activation-name": (
        FUNCTIONS["edge_of_chaos_init_"],
        {"activation": "relu"},
        "torch.relu or nn.ReLU(); got 'relu'.",
    ),
    "steps-string": (ShiftMonitor, {"every_n_steps": "50"}, "a whole number every_n_steps >= 0, got '50'."),
    "steps-list": (ShiftMonitor, {"every_n_steps": ["head.*"]}, "a whole number every_n_steps >= 0, got ['head.*']."),
}


@pytest.mark.parametrize(("take", "settings", "says"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_that_does_not_fit_is_refused_with_what_fits(take, settings, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        take(**settings)
    assert "\n" not in str(error.value)


MODELS = {
    "class": (nn.Linear, "got the class Linear itself; make a module of it: Linear(...)."),
    "list": ([nn.Linear(2, 2)], "got a list; give the network itself."),
    "state-dict": (nn.Linear(2, 2).state_dict(), "got a OrderedDict; give the network itself."),
}
TAKE_MODELS = {
    "constrain": constrain,
    "plan_constraints": plan_constraints,
    "convert_": lambda model: convert_(model, torch.rand(8, 2)),
    "minibatch_init_": lambda model: minibatch_init_(model, torch.rand(8, 2)),
    "edge_of_chaos_init_": lambda model: edge_of_chaos_init_(model, torch.rand(8, 2), activation=torch.relu),
}


@pytest.mark.parametrize("take", TAKE_MODELS.values(), ids=TAKE_MODELS)
@pytest.mark.parametrize(("model", "says"), MODELS.values(), ids=MODELS)
def test_what_is_no_module_is_refused(take, model, says):
    with pytest.raises(ValueError, match=re.escape(f"the model must be a torch.nn.Module, {says}")):
        take(model)
