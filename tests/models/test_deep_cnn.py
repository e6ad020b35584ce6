import pytest
import torch
from torch import nn

from lcw_lightning import ClippedShiftedReLU, DeepCNN, ShiftedReLU, constrain, fold
from lcw_lightning.checkpoints.export import export


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (8, 8), (7, 5), (1, 1)], ids=str)
def test_every_parameter_gets_a_gradient_at_any_image_size(size):
    network = DeepCNN(in_channels=3, num_classes=5, depth=4, channels=8)
    logits = network(torch.randn(6, 3, *size))
    assert logits.shape == (6, 5)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_papers_network_has_50_convolutions_of_300_channels_and_biases():
    network = DeepCNN()
    convolutions = [layer.conv for layer in network.hidden]
    assert [conv.out_channels for conv in convolutions] == [300] * 50
    expected = 27 * 300 + 49 * 9 * 300**2 + 50 * 300 + 3010
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_the_second_and_third_convolution_halve_the_resolution():
    network = DeepCNN(depth=5, channels=4)
    sizes, images = [], torch.randn(1, 3, 32, 32)
    for layer in network.hidden:
        images = layer(images)
        sizes.append(tuple(images.shape[2:]))
    assert sizes == [(32, 32), (16, 16), (8, 8), (8, 8), (8, 8)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_network_may_be_shallow(depth):
    network = DeepCNN(depth=depth, channels=4)
    assert len(network.hidden) == depth
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def zero_padded(network):
    for layer in network.hidden:
        layer.conv.padding_mode = "zeros"
    return network


@torch.no_grad()
def draw_gaussian(network, sigma_w, sigma_b):
    for layer in network.hidden:
        nn.init.normal_(layer.conv.weight, std=sigma_w / layer.conv.weight[0].numel() ** 0.5)
        nn.init.normal_(layer.conv.bias, std=sigma_b)
    return network


@torch.no_grad()
def mean_squares(network, images):
    """q at each position of each layer: the mean of h^2 over images and channels."""
    maps = []
    for layer in network.hidden:
        preactivations = layer.conv(images)
        maps.append(preactivations.square().mean((0, 1)))
        images = layer.activation(preactivations)
    return maps


@pytest.mark.parametrize(("pad", "equal"), [(nn.Identity(), True), (zero_padded, False)], ids=["circular", "zeros"])
def test_q_is_the_same_at_corners_as_in_the_centre(pad, equal):
    # Clipped ReLU of sparsity 0.6 and slope 0.7 on the edge of chaos at q = 1.
    network = DeepCNN(depth=6, channels=48, activation=lambda: ClippedShiftedReLU(0.2533, 1.6258))
    network = pad(draw_gaussian(network, sigma_w=1.6442, sigma_b=0.4884))
    for q in mean_squares(network, torch.randn(128, 3, 16, 16)):
        quarter = len(q) // 4
        corners, centre = q[:: len(q) - 1, :: len(q) - 1], q[quarter:-quarter, quarter:-quarter]
        assert ((corners.mean() / centre.mean()).item() == pytest.approx(1, abs=0.1)) is equal


@torch.no_grad()
def test_logits_do_not_change_when_images_are_rolled_by_the_stride():
    network, images = DeepCNN(depth=5, channels=8), torch.randn(4, 3, 16, 16)
    rolled = images.roll((4, 8), dims=(2, 3))
    torch.testing.assert_close(network(rolled), network(images))
    assert not torch.allclose(network(images.roll(1, dims=2)), network(images))  # less than the stride
    zero_padded(network)
    assert not torch.allclose(network(rolled), network(images))


def test_constrained_it_trains_and_folds():
    network, images = DeepCNN(depth=4, channels=8, activation=lambda: ShiftedReLU(0.25)), torch.randn(4, 3, 16, 16)
    names = constrain(network, include=["hidden.*"])
    assert names == [f"hidden.{number}.conv.weight" for number in range(4)]
    network(images).square().mean().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for layer in network.hidden:
        torch.testing.assert_close(layer.conv.weight.sum((1, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    plain = fold(network)
    assert set(plain.state_dict()) == set(DeepCNN(depth=4, channels=8).state_dict())
    torch.testing.assert_close(plain(images), network(images))


def test_it_is_exported_with_its_padding(tmp_path):
    assert export(DeepCNN(depth=4, channels=8), tmp_path / "model.pt2", torch.randn(1, 3, 16, 16)).exists()


def test_any_activation_is_made_anew_for_each_layer():
    network = DeepCNN(depth=3, channels=4, activation=nn.PReLU)
    assert len({id(module) for module in network.modules() if isinstance(module, nn.PReLU)}) == 3


@pytest.mark.parametrize("name", ["in_channels", "num_classes", "depth", "channels"])
def test_a_size_below_1_is_refused(name):
    with pytest.raises(ValueError, match=f"DeepCNN needs a {name} of at least 1, got 0"):
        DeepCNN(**{name: 0})
