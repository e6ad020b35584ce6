"""q and gradient norms of each layer, against plain autograd."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lcw_lightning.analysis.preflight import DepthProfile


def profile_of(network, inputs, layers=None):
    profile = DepthProfile(layers or {name: m for name, m in network.named_children() if [*m.parameters()]})
    with profile.watching():
        outputs = network(inputs)
        (outputs if isinstance(outputs, torch.Tensor) else outputs[0].data).square().sum().backward()
    return profile


def test_rows_are_those_of_plain_autograd_for_each_sample():
    network, images = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)),
        torch.randn(7, 2, 5, 5),
    )
    z1 = network[0](images)
    z2 = network[3](torch.tanh(z1).flatten(1))
    gradients = torch.autograd.grad(z2.square().sum(), (z1, z2))
    q, norms = profile_of(network, images).rows(["0", "3"])
    for row, norm, z, dz in zip(q, norms, (z1, z2), gradients, strict=True):
        torch.testing.assert_close(row, z.detach().double().square().flatten(1).mean(1), rtol=1e-5, atol=0)
        torch.testing.assert_close(norm, dz.double().flatten(1).norm(dim=1), rtol=1e-5, atol=0)


def test_biases_count():
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 3.0)
    q, _ = profile_of(nn.Sequential(layer), torch.rand(5, 4)).rows(["0"])
    assert q.unique().tolist() == [9.0]


def test_squares_that_overflow_float32_do_not_here():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.constant_(network[0].weight, 1e30)
    nn.init.constant_(network[1].weight, 1e-30)
    q, norms = profile_of(network, torch.ones(2, 1)).rows(["0", "1"])
    assert q[0].tolist() == pytest.approx([1e60, 1e60], rel=1e-5)
    assert (norms[1] / norms[0]).tolist() == pytest.approx([1e30, 1e30], rel=1e-5)


def test_a_layer_that_is_called_twice_is_seen_twice():
    layer = nn.Linear(3, 3)
    inputs = torch.randn(4, 3)
    q, _ = profile_of(nn.Sequential(layer, layer), inputs, {"layer": layer}).rows(["layer"])
    both = torch.stack([layer(inputs), layer(layer(inputs))]).detach().double()
    torch.testing.assert_close(q[0], both.square().mean((0, 2)), rtol=1e-5, atol=0)


def test_where_layers_disagree_on_the_number_of_samples_the_batch_is_one():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(3, 5), nn.Linear(5, 2)

        def forward(self, sequences):
            return self.head(self.rnn(sequences)[1][0])

    network, sequences = Tagger(), pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    q, norms = profile_of(network, sequences).rows(["rnn", "head"])
    outputs, last = network.rnn(sequences)
    z = (outputs.data, network.head(last[0]))
    assert q.shape == norms.shape == (2, 1)
    assert q[:, 0].tolist() == pytest.approx([values.square().mean().item() for values in z], rel=1e-5)


def test_what_was_not_seen_is_nan_and_layers_that_nobody_called_are_named():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    profile = DepthProfile({"0": network[0], "spare": network[1]})
    with profile.watching():
        network[0](torch.rand(2, 3))
    q, norms = profile.rows(["0", "spare"])
    assert q.isnan().tolist() == [[False, False], [True, True]]
    assert norms.isnan().all()
    with pytest.raises(ValueError, match="called none of the layers 'spare'"):
        profile.rows(["spare"])


def test_hidden_layers_come_in_the_order_of_their_calls_without_the_last_one():
    network = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("output", "b", "a")})
    profile = DepthProfile(dict(network.named_children()))
    with profile.watching():
        network["output"](network["b"](network["a"](torch.rand(2, 3)))).sum().backward()
    assert profile.hidden_layers() == ["a", "b"]
    assert profile.hidden_layers(["b", "a"]) == ["a", "b"]
    with pytest.raises(ValueError, match=r"at least two hidden layers before the output layer, got 1"):
        profile.hidden_layers(["b", "output"])


def test_hidden_layers_are_those_that_the_loss_depends_on():
    network = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    profile = DepthProfile(dict(network.named_children()))
    with profile.watching():
        hidden = network[0](torch.rand(2, 3)).detach()
        network[3](network[2](network[1](hidden))).sum().backward()
    assert profile.hidden_layers() == ["1", "2"]
    forward_alone = DepthProfile(dict(network.named_children()))
    with forward_alone.watching():
        network(torch.rand(2, 3))
    with pytest.raises(ValueError, match="it needs a loss and at least two"):
        forward_alone.hidden_layers()
