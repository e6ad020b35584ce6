from itertools import chain, pairwise

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from lcw_lightning import VGG19, constrain, fold

EACH_RELU = {"norm": "batch", "hidden_norm": "batch"}  # as the paper says


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def draw_norms_(network):
    """Give norms other statistics, gains and shifts: at their initial ones they do next to nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)


@pytest.mark.parametrize(("num_classes", "hidden_width"), [(10, 512), (100, 512), (10, 4096)])
def test_the_papers_network_has_its_number_of_parameters(num_classes, hidden_width):
    channels = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    kernels = sum(9 * fan_in * fan_out for fan_in, fan_out in pairwise(channels))
    # A bias, a gain and a shift for each channel.
    features = kernels + 3 * sum(channels[1:])
    hidden = 512 * hidden_width + hidden_width**2 + 2 * hidden_width
    with torch.device("meta"):
        network = VGG19(num_classes, hidden_width=hidden_width)
    assert parameters(network) == features + hidden + (hidden_width + 1) * num_classes
    assert features == 20_035_392


@pytest.mark.parametrize(("settings", "norms"), [({}, 16), (EACH_RELU, 18)], ids=["default", "each ReLU"])
def test_batch_norms_stand_right_before_the_relus(settings, norms):
    modules = [module for module in VGG19(width=2, **settings).modules() if not list(module.children())]
    before_relu = [type(before) for before, module in pairwise(modules) if isinstance(module, nn.ReLU)]
    assert sum(issubclass(kind, nn.BatchNorm1d | nn.BatchNorm2d) for kind in before_relu) == norms
    assert sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules) == norms
    assert len(before_relu) == 18


@pytest.mark.parametrize(
    ("hidden_norm", "of_a_unit"),
    [("none", 0), ("batch", 2), ("batch+standardization", 4)],
    ids=str,
)
def test_norms_of_the_hidden_layers_add_gains_and_shifts_alone(hidden_norm, of_a_unit):
    more = parameters(VGG19(width=2, hidden_width=24, hidden_norm=hidden_norm)) - parameters(
        VGG19(width=2, hidden_width=24)
    )
    assert more == 2 * 24 * of_a_unit


@pytest.mark.parametrize("kind", ["none", "lcw"])
@pytest.mark.parametrize("hidden_norm", ["none", "batch", "batch+standardization"])
def test_twenty_steps_lower_the_loss_and_the_folded_network_is_the_same(hidden_norm, kind):
    network = VGG19(width=4, hidden_width=16, dropout=0.0, hidden_norm=hidden_norm)
    constrain(network, kind)
    images, labels = torch.rand(32, 3, 8, 8), torch.arange(32) % 10
    sgd, losses = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9), []
    for _ in range(20):
        loss = functional.cross_entropy(network(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    plain = fold(network).eval()
    assert set(plain.state_dict()) == set(VGG19(width=4, hidden_norm=hidden_norm).state_dict())
    with torch.no_grad():
        assert torch.equal(plain(images), network.eval()(images))


def test_features_are_those_of_torchvisions_network():
    network, reference = VGG19(), torchvision.models.vgg19_bn().features
    draw_norms_(reference)
    ours, theirs = network.features.state_dict(), reference.state_dict()
    network.features.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, expected = network.features.eval()(images), reference.eval()(images)
    assert features.shape == (2, 512, 1, 1)
    torch.testing.assert_close(features, expected)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("hidden_norm", ["none", "batch"])
def test_features_are_classified_by_three_linear_layers_with_relu_between_them(hidden_norm):
    network = VGG19(num_classes=7, width=4, hidden_width=16, hidden_norm=hidden_norm).eval()
    draw_norms_(network)
    state, images = network.state_dict(), torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        x = network.features(images).reshape(5, 32)
        for number in (1, 2):
            x = x @ state[f"hidden.linear{number}.weight"].T + state[f"hidden.linear{number}.bias"]
            if hidden_norm == "batch":
                norm = (
                    state[f"hidden.norm{number}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
                )
                x = functional.batch_norm(x, *norm)
            x = functional.relu(x)
        expected = x @ state["output.weight"].T + state["output.bias"]
        torch.testing.assert_close(network(images), expected)
    assert expected.std() > 1e-3


def test_a_norm_stands_between_each_convolution_and_its_relu_and_a_pooling_after_each_block():
    layer = ["Conv2d", "BatchNorm2d", "ReLU"]
    blocks = [[*layer * convolutions, "MaxPool2d"] for convolutions in (2, 2, 4, 4, 4)]
    hidden = ["Linear", "ReLU", "Dropout"] * 2
    called = []
    network = VGG19(width=2, hidden_width=4)
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: called.append(type(module).__name__))
    network(torch.randn(2, 3, 32, 32))
    assert called == [*chain(*blocks), "AdaptiveAvgPool2d", "Flatten", *hidden, "Linear"]


def test_layers_have_names_that_say_where_they_are():
    names = [name for name, module in VGG19(width=2).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    convolutions = [(block, number) for block, last in enumerate((2, 2, 4, 4, 4), 1) for number in range(1, last + 1)]
    features = [f"features.conv{block}_{number}" for block, number in convolutions]
    assert names == [*features, "hidden.linear1", "hidden.linear2", "output"]


def test_each_pooling_halves_the_image():
    network, sizes = VGG19(width=2, hidden_width=4), []
    for module in network.features:
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    network(torch.randn(2, 3, 32, 32))
    assert sizes == [(2, 16, 16), (4, 8, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)]


@pytest.mark.parametrize("size", [8, 28, 48])
def test_images_of_other_sizes_and_channels_are_taken(size):
    network = VGG19(num_classes=5, in_channels=1, width=2, hidden_width=4)
    assert network(torch.randn(3, 1, size, size)).shape == (3, 5)


def test_dropout_acts_in_training_alone():
    images = torch.randn(4, 3, 32, 32)

    def is_random(network):
        return not torch.equal(network(images), network(images))

    network = VGG19(width=2, hidden_width=32)
    assert is_random(network)
    assert not is_random(network.eval())
    assert not is_random(VGG19(width=2, hidden_width=32, dropout=0.0))


@pytest.mark.parametrize("name", ["num_classes", "in_channels", "width", "hidden_width"])
def test_a_size_below_1_is_refused(name):
    with pytest.raises(ValueError, match=f"VGG19 needs a {name} of at least 1, got -3"):
        VGG19(**{name: -3})


def test_an_unknown_norm_of_the_hidden_layers_is_refused():
    with pytest.raises(ValueError, match=r"VGG19 supports the norms none, .*; got 'group'"):
        VGG19(hidden_norm="group")


def test_a_dropout_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 1, but got 1\.5"):
        VGG19(width=2, dropout=1.5)
