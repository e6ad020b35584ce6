"""Layers of complex numbers within a network are left alone, and said."""

import copy

import pytest
import torch
from torch import nn

from lcw_lightning import analyze, centered_weight_norm, constrain, linearly_constrained, minibatch_init_
from lcw_lightning.weights.plan import plan_weights

X = torch.rand(16, 8)


class Magnitude(nn.Module):
    def forward(self, x):
        return x.abs()


@pytest.fixture(params=[torch.complex64, torch.float32], ids=["complex", "real"])
def network(request):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8, dtype=request.param), Magnitude(), nn.Linear(8, 3))


@pytest.fixture
def is_complex(network):
    return network[0].weight.is_complex()


@pytest.fixture
def inputs(network):
    return X.to(network[0].weight.dtype)


def test_they_are_named_as_what_is_left_out(network, is_complex):
    assert plan_weights(network, "lcw").left_out == ({"0.weight": "complex numbers"} if is_complex else {})


@pytest.mark.filterwarnings("ignore:.* left out. '0.weight' .complex numbers.:UserWarning")
@pytest.mark.parametrize("kind", ["lcw", "wn", "cwn", "sn"])
def test_every_kind_takes_the_real_weights_alone(kind, network, is_complex, inputs):
    assert constrain(network, kind) == (["2.weight"] if is_complex else ["0.weight", "2.weight"])
    network(inputs).sum().backward()
    assert network[0].bias.grad is not None


def test_layers_around_them_are_initialized_and_analyzed(network, is_complex, inputs):
    before = copy.deepcopy(network[0])
    minibatch_init_(network, inputs)
    assert torch.equal(network[0].weight, before.weight) == is_complex
    assert float(network(inputs).detach().std(correction=0)) == pytest.approx(1, rel=1e-4)
    report = analyze(network, (inputs, torch.randint(3, (16,))))
    assert list(report.statistics) == (["2"] if is_complex else ["0", "2"])
    assert ("not those of '0.weight' (complex numbers)" in str(report)) == is_complex


@pytest.mark.parametrize("verb", [linearly_constrained, centered_weight_norm])
def test_one_layer_of_them_is_refused(verb):
    with pytest.raises(ValueError, match=r"Linear\.weight of shape \(4, 3\) cannot be constrained: complex numbers"):
        verb(nn.Linear(3, 4, dtype=torch.complex64))
