import pickle
from collections import namedtuple

import pytest
import torch
from torch import nn

from lcw_lightning import constrain
from lcw_lightning.checkpoints.hyperparameters import fold_hyperparameters
from lcw_lightning.constraints.constrain import constrained_weights

KEY, DATA_KEY = "hyper_parameters", "datamodule_hyper_parameters"
METHODS = {"parametrize": ("sn", "parametrize"), "project": ("lcw", "project")}
methods = pytest.mark.parametrize(("kind", "method"), METHODS.values(), ids=METHODS)
Pair = namedtuple("Pair", "first second")


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


@methods
def test_networks_become_plain_ones_wherever_they_lie(kind, method, network):
    constrain(network, kind, method=method)
    rate, given = object(), {"net": network, "nested": [{"a": (network[0], "b")}, Pair(network, 1)], "lr": None}
    given["lr"] = rate
    checkpoint = {KEY: given, "state_dict": network.state_dict()}
    fold_hyperparameters(checkpoint)
    held = checkpoint[KEY]
    plain = held["net"]
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert torch.equal(plain[0].weight, network.eval()[0].weight)
    assert held["nested"] == [{"a": (plain[0], "b")}, Pair(plain, 1)]  # shared, as the live ones are
    assert type(held["nested"][1]) is Pair
    assert held["lr"] is rate
    assert b"lcw_lightning" not in pickle.dumps(plain)
    assert b"lcw_lightning" in pickle.dumps(network)


@methods
def test_what_is_live_stays_as_it_is(kind, method, network):
    names = constrain(network, kind, method=method)
    given = {"net": network, "nested": [network]}
    fold_hyperparameters({KEY: given})
    assert given["net"] is network is given["nested"][0]
    assert list(constrained_weights(network)) == names


def test_module_and_data_module_share_what_they_share(network):
    constrain(network)
    checkpoint = {KEY: {"net": network}, DATA_KEY: {"featurizer": network[0]}}
    fold_hyperparameters(checkpoint)
    assert checkpoint[DATA_KEY]["featurizer"] is checkpoint[KEY]["net"][0]
    assert constrained_weights(checkpoint[KEY]["net"]) == {}


def test_without_constrained_networks_nothing_is_copied(network):
    given = {"net": network, "nested": [network]}
    checkpoint = {KEY: given}
    fold_hyperparameters(checkpoint)
    assert checkpoint[KEY] is given
    fold_hyperparameters(empty := {})
    assert empty == {}


def test_a_kind_of_dict_stays_what_it_is(network):
    class Settings(dict):
        pass

    constrain(network)
    checkpoint = {KEY: Settings(inner=Settings(net=network))}
    fold_hyperparameters(checkpoint)
    assert type(checkpoint[KEY]) is type(checkpoint[KEY]["inner"]) is Settings
