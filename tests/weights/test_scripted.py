"""Scripted modules of torch.jit within a network are left alone, and said."""

import warnings

import pytest
import torch
from torch import nn

from lcw_lightning import analyze, constrain, minibatch_init_
from lcw_lightning.weights.plan import plan_weights
from lcw_lightning.weights.restoring import restored, undisturbed, unless_it_fails

X = torch.rand(16, 8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch call it deprecated
        scripted = torch.jit.script(inner)
    return nn.Sequential(nn.Linear(8, 8), scripted, nn.Linear(8, 3))


def test_they_are_named_as_what_is_left_out(network):
    assert plan_weights(network, "lcw").left_out == {"1.0.weight": "in a module of torch.jit, which cannot be changed"}
    with pytest.warns(UserWarning, match=r"'1\.0\.weight' \(in a module of torch.jit"):
        assert constrain(network) == ["0.weight", "2.weight"]


def test_layers_around_them_are_initialized_and_analyzed(network):
    minibatch_init_(network, X)
    report = analyze(network, (X, torch.randint(3, (16,))))
    assert list(report.statistics) == ["0", "2"]
    assert "not those of '1.0.weight' (in a module of torch.jit, which cannot be changed)." in report.findings[-1].says
    assert float(network(X).detach().std(correction=0)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("keeps", [undisturbed, restored, unless_it_fails])
def test_their_tensors_are_put_back(network, keeps):
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def change():
        with keeps(network):
            network(X)  # moves the statistics of BatchNorm
            if keeps is not undisturbed:
                network[1][0].weight.detach().zero_()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_without_putting_them_back_they_stay_changed(network):
    before = network.state_dict()["1.1.running_mean"].clone()
    network(X)
    assert not torch.equal(network.state_dict()["1.1.running_mean"], before)
