"""The image networks under every norm and every kind of constraint."""

import copy

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lcw_lightning import VGG19, PreActResNet18, analyze, constrain, fold, minibatch_init_
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.models.norms import normed_activation
from lcw_lightning.observation.hooks import observe
from lcw_lightning.weights.weight_ref import named_weights
from tests.quick import quick

ORDERS = {
    "none": ["activation"],
    "batch": ["norm", "activation"],
    "standardization": ["activation", "norm"],
    "batch+standardization": ["norm", "activation", "standardization"],
    "layer": ["norm", "activation"],
}
KINDS = ["none", "lcw", "cwn", "wn", "sn"]
NETWORKS = {
    "vgg19": lambda **settings: VGG19(**{"width": 4, "hidden_width": 16, **settings}),
    "resnet18": lambda **settings: PreActResNet18(**{"width": 4, **settings}),
}
networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
norms = pytest.mark.parametrize("norm", ORDERS)
kinds = pytest.mark.parametrize("kind", KINDS)


def without_dropout(make):
    return {"dropout": 0.0} if make is NETWORKS["vgg19"] else {}


def batch(size=16):
    return torch.randn(size, 3, 32, 32), torch.randint(10, (size,))


def step(network, images, labels):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loss = nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@networks
@norms
def test_norms_stand_where_the_paper_puts_them(make, norm):
    network = make(norm=norm)
    orders = [
        [name for name, _ in module.named_children()]
        for name, module in network.named_modules()
        if name.rpartition(".")[2].startswith("activation") and list(module.children())
    ]
    assert orders == [ORDERS[norm]] * (16 if isinstance(network, VGG19) else 17)


def test_layer_norm_makes_each_sample_standard_over_channels_and_positions():
    images = torch.randn(6, 4, 3, 5) * 3 + torch.arange(6.0).view(6, 1, 1, 1)
    normed = nn.Sequential(normed_activation(4, nn.Identity, "layer"))(images)
    torch.testing.assert_close(normed, nn.functional.layer_norm(images, images.shape[1:]))


@networks
@norms
def test_every_parameter_gets_a_gradient(make, norm):
    network = make(norm=norm)
    images, labels = batch()
    step(network, images, labels)
    assert all(parameter.grad is not None for parameter in network.parameters())
    # A bias right before BatchNorm changes nothing.
    weights = {name: parameter for name, parameter in network.named_parameters() if name.endswith("weight")}
    assert [name for name, parameter in weights.items() if not parameter.grad.any()] == []


@pytest.mark.filterwarnings("ignore:minibatch initialization. 0 of .* layers rescaled.*under sn its norm is always 1")
@networks
@kinds
@norms
def test_every_method_trains_and_folds_to_the_same_outputs(make, kind, norm):
    network = make(norm=norm)
    images, labels = batch()
    constrain(network, kind)
    minibatch_init_(network, images)
    before = {name: ref.value.clone() for name, ref in named_weights(network).items()}
    first = step(network, images, labels)
    assert torch.tensor(first).isfinite()
    assert set(constrained_weights(network)) == (set(before) if kind != "none" else set())
    assert [name for name, ref in named_weights(network).items() if torch.equal(ref.value, before[name])] == []
    with torch.no_grad():
        torch.testing.assert_close(fold(network).eval()(images), network.eval()(images))
    assert network(images).isfinite().all()


@networks
@norms
@pytest.mark.parametrize("kind", ["none", "lcw", "wn"])
def test_minibatch_initialization_gives_every_layer_unit_preactivations(make, norm, kind):
    network, (images, _) = make(norm=norm, **without_dropout(make)), batch()
    constrain(network, kind)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}

    def furthest_from_1():
        errors = []

        def keep(name, quantity, z):
            if quantity == "preactivation":
                by_unit = z.movedim(1, 0).flatten(1)  # gains are set for each unit by itself
                stds = by_unit.std(1, correction=0) if kind == "wn" else by_unit.std(correction=0)
                errors.append((stds - 1).abs().max().item())

        with torch.no_grad(), observe(layers, keep):
            network(images)
        assert len(errors) == len(layers)
        return max(errors)

    assert furthest_from_1() > 0.3
    minibatch_init_(network, images)
    assert furthest_from_1() < 1e-3


@networks
@pytest.mark.parametrize("kind", ["none", "lcw"])
def test_analysis_shows_every_layer_in_the_order_of_the_forward_pass(make, kind):
    network = make()
    constrain(network, kind)
    report = analyze(network, batch())
    first, second, *_, last = report.statistics
    assert last == "output"
    assert (first, second) == (
        ("features.conv1_1", "features.conv1_2") if isinstance(network, VGG19) else ("stem", "stage1.unit1.conv1")
    )
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sorted(report.statistics) == sorted(names)


@networks
@pytest.mark.parametrize("kind", ["none", "lcw"])
def test_channels_last_passes_through_every_layer(make, kind):
    network = make().eval()
    constrain(network, kind)
    images = torch.randn(4, 3, 32, 32)
    expected = network(images)
    network = network.to(memory_format=torch.channels_last)
    strays = []

    def look(name, output):
        if output.dim() == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            strays.append(name)

    for name, module in network.named_modules():
        if "parametrizations" not in name:
            module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
    torch.testing.assert_close(network(images.contiguous(memory_format=torch.channels_last)), expected)
    assert strays == []


@networks
@pytest.mark.parametrize("kind", quick(["lcw"], KINDS))
def test_a_compiled_network_is_one_graph_with_the_same_outputs_and_gradients(make, kind):
    network = make(norm="layer", **without_dropout(make))
    constrain(network, kind)
    network.eval()
    twin, (images, labels) = copy.deepcopy(network), batch(4)
    torch.compiler.reset()  # so many graphs of one function are taken for a mistake
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    nn.functional.cross_entropy(compiled(images), labels).backward()
    nn.functional.cross_entropy(twin(images), labels).backward()
    for (name, one), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@networks
def test_any_activation_comes_by_its_class_path(make):
    parser = ArgumentParser()
    parser.add_class_arguments(type(make()), "network")
    flags = ["--network.activation=torch.nn.PReLU", "--network.width=2", "--network.norm=none"]
    network = parser.instantiate_classes(parser.parse_args(flags)).network
    activations = [module for module in network.modules() if isinstance(module, nn.PReLU)]
    assert len(activations) == (18 if isinstance(network, VGG19) else 17)


@networks
def test_an_unknown_norm_lists_the_known_ones(make):
    known = r"none, batch, standardization, batch\+standardization, layer"
    with pytest.raises(ValueError, match=f"supports the norms {known}; got 'group'"):
        make(norm="group")
