from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from lcw_lightning import MLP, constrain, fold, minibatch_init_

NORMS = {
    "none": ["linear", "activation"],
    "batch": ["linear", "norm", "activation"],
    "standardization": ["linear", "activation", "norm"],
    "batch+standardization": ["linear", "norm", "activation", "standardization"],
    "layer": ["linear", "norm", "activation"],
}


def digits_like(size=64):
    """Random images of the digits' shape, and labels that depend on them."""
    images = torch.rand(size, 1, 8, 8)
    return images, images.flatten(1)[:, :10].argmax(1)


def train(network, images, labels, steps=20):
    """The losses of SGD by the paper's recipe, one a step."""
    sgd, losses = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), []
    for _ in range(steps):
        loss = functional.cross_entropy(network(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return losses


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


@pytest.mark.parametrize("norm", NORMS)
def test_each_norm_adds_a_gain_and_a_shift_for_each_unit(norm):
    norms = {"none": 0, "batch+standardization": 2}.get(norm, 1)
    widths = [64, *[32] * 3, 10]
    linear = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))
    network = MLP(64, 10, depth=3, width=32, norm=norm)
    assert sum(parameter.numel() for parameter in network.parameters()) == linear + norms * 3 * 2 * 32


def standard(x, gain, shift):
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * gain + shift


@torch.no_grad()
def test_both_norms_are_the_papers_bn_then_sigmoid_then_sl():
    network = MLP(64, 10, depth=2, width=8, norm="batch+standardization")
    for name, parameter in network.named_parameters():
        if "norm" in name or "standardization" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)  # at their initial values both orders are much the same
    images, _ = digits_like()
    bn_sl, sl_bn = images.flatten(1), images.flatten(1)
    for layer in network.hidden:
        bn, sl = (tuple(norm.parameters()) for norm in (layer.norm, layer.standardization))
        bn_sl = standard(standard(layer.linear(bn_sl), *bn).sigmoid(), *sl)
        sl_bn = standard(standard(layer.linear(sl_bn).sigmoid(), *sl), *bn)
    torch.testing.assert_close(network(images), network.output(bn_sl), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(images), network.output(sl_bn), rtol=0.01)


@pytest.mark.parametrize("kind", ["none", "lcw"])
@pytest.mark.parametrize("norm", NORMS)
def test_twenty_steps_lower_the_loss_and_the_folded_network_is_the_same(norm, kind):
    network, (images, labels) = MLP(64, 10, depth=5, width=32, norm=norm), digits_like()
    constrain(network, kind)
    minibatch_init_(network, images)
    losses = train(network, images, labels)
    assert losses[-1] < 0.9 * losses[0]
    plain = fold(network).eval()
    assert set(plain.state_dict()) == set(MLP(64, 10, depth=5, width=32, norm=norm).state_dict())
    with torch.no_grad():
        assert torch.equal(plain(images), network.eval()(images))


def test_any_activation_is_made_anew_for_each_layer():
    network = MLP(12, 5, depth=2, width=8, activation=nn.PReLU)
    assert sum(isinstance(module, nn.PReLU) for module in network.modules()) == 2


def test_an_unknown_norm_lists_the_known_ones():
    known = r"none, batch, standardization, batch\+standardization, layer"
    with pytest.raises(ValueError, match=f"supports the norms {known}; got 'group'"):
        MLP(12, 5, norm="group")


def test_a_depth_below_1_is_refused():
    with pytest.raises(ValueError, match="MLP needs a depth of at least 1, got 0"):
        MLP(12, 5, depth=0)


def test_weights_are_drawn_as_glorot_and_bengio_do_and_biases_are_zero():
    network = MLP(in_features=64, num_classes=10, depth=2, width=256)
    for layer in (network.hidden[0].linear, network.hidden[1].linear, network.output):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.bias.any()
    assert nn.Linear(64, 256).bias.any()  # what torch draws
