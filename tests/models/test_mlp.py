import pytest
import torch
from torch import nn

from lcw_lightning import MLP

NORMS = {
    "none": ["linear", "activation"],
    "batch": ["linear", "norm", "activation"],
    "standardization": ["linear", "activation", "norm"],
    "layer": ["linear", "norm", "activation"],
}


@pytest.mark.parametrize(("norm", "order"), NORMS.items(), ids=NORMS)
def test_norms_stand_where_the_paper_puts_them(norm, order):
    network = MLP(12, 5, depth=3, width=8, norm=norm)
    assert [[name for name, _ in layer.named_children()] for layer in network.hidden] == [order] * 3


@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_gets_a_gradient(norm):
    network = MLP(12, 5, depth=3, width=8, norm=norm)
    logits = network(torch.randn(16, 3, 2, 2))
    assert logits.shape == (16, 5)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_papers_network_has_its_number_of_parameters():
    # 3 x 32 x 32 inputs, 50 hidden layers of 256 units, 10 classes.
    network = MLP(in_features=3072, num_classes=10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 3072 * 256 + 49 * 256**2 + 50 * 256 + 2570


def test_any_activation_is_made_anew_for_each_layer():
    network = MLP(12, 5, depth=2, width=8, activation=nn.PReLU)
    assert sum(isinstance(module, nn.PReLU) for module in network.modules()) == 2


def test_an_unknown_norm_lists_the_known_ones():
    with pytest.raises(ValueError, match="supports the norms none, batch, layer, standardization; got 'group'"):
        MLP(12, 5, norm="group")


def test_a_depth_below_1_is_refused():
    with pytest.raises(ValueError, match="at least 1 hidden layer, got 0"):
        MLP(12, 5, depth=0)


def test_weights_are_drawn_as_glorot_and_bengio_do_and_biases_are_zero():
    network = MLP(in_features=64, num_classes=10, depth=2, width=256)
    for layer in (network.hidden[0].linear, network.hidden[1].linear, network.output):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.bias.any()
    assert nn.Linear(64, 256).bias.any()  # what torch draws
