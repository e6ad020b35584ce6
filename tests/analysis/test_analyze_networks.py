"""What analyze() says of networks that people use, freshly drawn: the large ones are slow, small kin stand in."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy

from lcw_lightning import analyze
from tests.quick import quick

CALLED = (nn.Linear, nn.Conv2d, nn.LSTM, nn.MultiheadAttention)


class StateClassifier(nn.Module):
    """Reads one of the last states of a stacked LSTM, and not its output."""

    def __init__(self, read):
        super().__init__()
        self.lstm, self.head, self.read = nn.LSTM(4, 16, num_layers=2, batch_first=True), nn.Linear(16, 3), read

    def forward(self, sequences):
        _, (hidden, cell) = self.lstm(sequences)
        return self.head(self.read(hidden, cell))


class LSTMClassifier(nn.Module):
    def __init__(self, width=32, num_layers=1):
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.lstm = nn.LSTM(width, width, num_layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0].mean(1))


def small_vit():
    return torchvision.models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64)


def images(size, samples=8):
    return torch.randn(samples, 3, size, size), torch.randint(1000, (samples,))


def tokens():
    return torch.randint(100, (16, 12)), torch.randint(4, (16,))


NETWORKS = {
    "vgg11": (torchvision.models.vgg11, lambda: images(64), ["Activation shift"]),
    "resnet18": (torchvision.models.resnet18, lambda: images(64), []),
    "vit": (small_vit, lambda: images(32), ["No gradient at all"]),
    "lstm": (LSTMClassifier, tokens, []),
}
LARGE_NETWORKS = {
    "vgg16": (torchvision.models.vgg16, lambda: images(224, 4), ["Activation shift"]),
    "resnet50": (torchvision.models.resnet50, lambda: images(224, 4), []),  # normalization ends the shift of each layer
    "vit_b_16": (torchvision.models.vit_b_16, lambda: images(224, 2), ["No gradient at all"]),  # its head is zero
    "lstm": (lambda: LSTMClassifier(128, 2), tokens, []),
}


def called_layers(network, inputs):
    """The layers' names in the order in which the network first calls them, by hooks of the test's own."""
    order = []
    for name, module in network.named_modules():
        if isinstance(module, CALLED):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        network.eval()(inputs)
    return list(dict.fromkeys(order))


def check(make, batch, says):
    network, (inputs, labels) = make(), batch()
    report = analyze(network, (inputs, labels))
    assert [finding.says.split(":")[0].split(" in ")[0] for finding in report.findings] == says
    assert report.loss == pytest.approx(math.log(1000 if labels.max() >= 4 else 4), rel=0.2)
    assert not any("Dead units" in finding.says for finding in report.findings)
    text = str(report)
    for row in report.statistics.values():
        assert len(row) == 11
    assert all(f"\n{name[:12]}" in text for name in report.statistics)
    assert list(report.statistics) == called_layers(network, inputs)
    return report


@pytest.mark.parametrize(("make", "batch", "says"), quick(["resnet18", "vit", "lstm"], NETWORKS))
def test_a_small_network_of_each_sort_gets_a_sensible_verdict(make, batch, says):
    check(make, batch, says)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "batch", "says"), LARGE_NETWORKS.values(), ids=LARGE_NETWORKS)
def test_a_large_network_of_each_sort_gets_a_sensible_verdict(make, batch, says):
    check(make, batch, says)


def test_a_transformer_whose_head_is_drawn_has_gradients():
    network = small_vit()
    nn.init.normal_(network.heads.head.weight, std=0.02)
    report = analyze(network, images(32))
    assert report.condition.zero == []
    assert not any(finding.says.startswith(("No", "Gradients")) for finding in report.findings)


def test_a_frozen_backbone_and_a_spare_layer_are_said_so():
    network = torchvision.models.resnet18()
    network.requires_grad_(False)
    network.fc = nn.Linear(512, 1000)
    network.spare = nn.Linear(512, 2)
    said = [finding.says for finding in analyze(network, images(64)).findings]
    assert said == [
        "Frozen (no weight is trained): 'conv1', 'layer1.0.conv1', 'layer1.0.conv2', 'layer1.1.conv1', "
        "'layer1.1.conv2' and 15 more.",
        "Never reached in this forward pass: 'spare'.",
    ]


NOT_TRAINED = ("The loss does not depend on", "No gradient at all")


def what_is_said_of(read, sequences, penalty=0.0):
    torch.manual_seed(0)
    network = StateClassifier(read)

    def loss(logits, labels):
        return cross_entropy(logits, labels) + penalty * sum(p.square().sum() for p in network.parameters())

    found = analyze(network, (sequences, torch.arange(32) % 3), loss).findings
    return [finding.says for finding in found if finding.says.startswith((*NOT_TRAINED, "No signal"))]


def last_cell_state(hidden, cell):
    return cell[-1]


def last_hidden_state(hidden, cell):
    return hidden[-1]


def state_of_the_lower_layer(hidden, cell):
    return hidden[0]


@pytest.mark.parametrize("read", [last_cell_state, last_hidden_state])
def test_a_recurrent_layer_whose_states_alone_are_read_is_not_called_untrained(read):
    assert what_is_said_of(read, torch.randn(32, 20, 4)) == []


def test_of_a_stack_whose_lower_state_is_read_the_upper_one_is_called_untrained():
    (says,) = what_is_said_of(state_of_the_lower_layer, torch.randn(32, 20, 4))
    assert says == "The loss does not depend on the states 'lstm.h_l1': no gradient gets there."


@pytest.mark.parametrize("read", [last_cell_state, last_hidden_state, state_of_the_lower_layer])
@pytest.mark.parametrize("penalty", [0.0, 1e-4], ids=["", "penalty"])
def test_control_a_state_that_is_detached_is_called_so(read, penalty):
    (says,) = what_is_said_of(lambda *states: read(*states).detach(), torch.randn(32, 20, 4), penalty)
    assert says == "The loss does not depend on 'lstm': no gradient gets there."


@pytest.mark.parametrize("make", [torch.zeros, torch.ones])
def test_an_input_that_is_constant_is_named_behind_a_recurrent_layer_too(make):
    says = what_is_said_of(last_hidden_state, make(32, 20, 4))
    assert says[0] == "No signal: the output of 'head' is identical for all samples (1 of 2 layers)."
