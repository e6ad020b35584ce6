import operator
from itertools import pairwise

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from lcw_lightning import PreActResNet18
from lcw_lightning.models.preact_resnet import ResidualUnit


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_papers_network_has_its_number_of_parameters():
    with torch.device("meta"):
        network = PreActResNet18()
    # A public implementation for CIFAR (kuangliu/pytorch-cifar) has so many, without the last norm's 2 x 512.
    assert parameters(network) == 11_171_146 + 1024


@pytest.mark.parametrize(("num_classes", "in_channels", "width"), [(10, 3, 64), (100, 3, 64), (7, 1, 4)])
def test_numbers_of_parameters_follow_from_the_table_of_stages(num_classes, in_channels, width):
    with torch.device("meta"):
        network = PreActResNet18(num_classes, in_channels, width)
    stages = [width, 2 * width, 4 * width, 8 * width]
    expected = 9 * in_channels * width
    for before, after in pairwise([width, *stages]):
        expected += 9 * before * after + 3 * 9 * after**2  # four convolutions
        expected += before * after if before != after else 0  # the shortcut
        expected += 2 * before + 3 * 2 * after  # four norms
    assert parameters(network) == expected + 2 * stages[-1] + (stages[-1] + 1) * num_classes


def by_hand(images, state):
    """The network in functions, from its weights in their order."""
    values = iter(value for key, value in state.items() if "num_batches" not in key)

    def norm_relu(x):
        weight, bias, mean, var = (next(values) for _ in range(4))
        return functional.relu(functional.batch_norm(x, mean, var, weight, bias))

    x = functional.conv2d(images, next(values), padding=1)
    for channels, first_stride in ((4, 1), (8, 2), (16, 2), (32, 2)):
        for stride in (first_stride, 1):
            activated = norm_relu(x)
            branch = functional.conv2d(activated, next(values), stride=stride, padding=1)
            branch = functional.conv2d(norm_relu(branch), next(values), padding=1)
            changes = x.shape[1] != channels
            x = branch + (functional.conv2d(activated, next(values), stride=stride) if changes else x)
    features = norm_relu(x).mean((2, 3))
    return features @ next(values).T + next(values)


def test_outputs_are_those_of_the_network_written_in_functions():
    network, images = PreActResNet18(num_classes=7, width=4).eval(), torch.randn(5, 3, 32, 32)
    for key, value in network.state_dict().items():
        if "norm" in key and value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)  # at their initial values norms do next to nothing
    with torch.no_grad():
        expected = by_hand(images, network.state_dict())
        torch.testing.assert_close(network(images), expected)
    assert expected.std() > 1e-3


@pytest.fixture
def graph():
    """What is called in a forward pass, and what each call is given."""
    return fx.symbolic_trace(PreActResNet18(width=2))


def kind_of(graph, node):
    return type(graph.get_submodule(node.target)).__name__ if node.op == "call_module" else node.op


def test_a_norm_stands_before_each_relu(graph):
    relus = [node for node in graph.graph.nodes if kind_of(graph, node) == "ReLU"]
    assert [kind_of(graph, node.args[0]) for node in relus] == ["BatchNorm2d"] * 17


def test_nothing_stands_between_a_sum_and_the_next_sum_on_the_way_past_a_unit(graph):
    sums = [node for node in graph.graph.nodes if node.target is operator.add]
    pairs = [[kind_of(graph, summand) for summand in node.args] for node in sums]
    same, shortcut = ["call_function", "Conv2d"], ["Conv2d", "Conv2d"]
    # The first unit adds to the stem.
    assert pairs == [["Conv2d", "Conv2d"], same, shortcut, same, shortcut, same, shortcut, same]
    assert sums[0].args[0].target == "stem"
    readers = [sorted(kind_of(graph, user) for user in node.users) for node in sums]
    assert readers == [["BatchNorm2d", "call_function"], ["BatchNorm2d"]] * 4


def test_shortcuts_read_what_the_first_convolution_reads(graph):
    nodes = {node.target: node for node in graph.graph.nodes}
    for stage in (2, 3, 4):
        unit = f"stage{stage}.unit1"
        assert nodes[f"{unit}.shortcut"].args == nodes[f"{unit}.conv1"].args
        assert kind_of(graph, nodes[f"{unit}.shortcut"].args[0]) == "ReLU"


def test_layers_have_names_that_say_where_they_are():
    names = [name for name, module in PreActResNet18(width=2).named_modules() if isinstance(module, nn.Conv2d)]
    units = [f"stage{stage}.unit{unit}" for stage in (1, 2, 3, 4) for unit in (1, 2)]
    convolutions = [f"{unit}.conv{number}" for unit in units for number in (1, 2)]
    shortcuts = [f"stage{stage}.unit1.shortcut" for stage in (2, 3, 4)]
    assert set(names) == {"stem", *convolutions, *shortcuts}
    assert len(names) == 20


def test_stages_after_the_first_halve_the_image():
    network, sizes = PreActResNet18(width=2), []
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    network(torch.randn(2, 3, 32, 32))
    assert sizes == [size for size in [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)] for _ in range(2)]


@pytest.mark.parametrize("size", [8, 28, 48])
def test_images_of_other_sizes_and_channels_are_taken(size):
    assert PreActResNet18(num_classes=5, in_channels=1, width=2)(torch.randn(3, 1, size, size)).shape == (3, 5)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("batch", 0), ("batch+standardization", 0), ("layer", 0), ("none", 17), ("standardization", 17)],
)
def test_convolutions_have_a_bias_where_no_norm_before_the_activation_has_one(norm, expected):
    network = PreActResNet18(width=2, norm=norm)
    biases = [
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and module.bias is not None
    ]
    assert len(biases) == expected
    assert not any("shortcut" in name for name in biases)


@pytest.mark.parametrize("name", ["num_classes", "in_channels", "width"])
def test_a_size_below_1_is_refused(name):
    with pytest.raises(ValueError, match=f"PreActResNet18 needs a {name} of at least 1, got 0"):
        PreActResNet18(**{name: 0})
