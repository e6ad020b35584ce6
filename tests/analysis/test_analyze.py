"""analyze() against plain autograd, on all sorts of batches, and what it leaves behind: nothing."""

import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, linear, mse_loss
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.rnn import pack_sequence

from lcw_lightning import analyze, constrain
from lcw_lightning.constraints.zero_sum import ZeroSum


class ConvNet(nn.Module):
    """Registers its layers in another order than it calls them in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.conv = nn.Conv2d(2, 6, 3)

    def forward(self, images):
        return self.head(torch.relu(self.conv(images)).mean((2, 3)))


def mlp(*widths, activation=nn.ReLU):
    layers = [layer for m, n in pairwise(widths) for layer in (nn.Linear(m, n), activation())]
    return nn.Sequential(*layers[:-1])


def data(width=8, samples=32, classes=3):
    return torch.randn(samples, width), torch.randint(classes, (samples,))


def variance(values, channel_dim=1):
    return values.double().transpose(0, channel_dim).flatten(1).var(1, correction=0).mean()


def test_statistics_are_those_of_plain_autograd_in_the_order_of_the_forward_pass():
    network, images, labels = ConvNet(), torch.randn(16, 2, 7, 7).requires_grad_(), torch.randint(3, (16,))
    report = analyze(network, (images.detach(), labels))

    z1 = conv2d(images, network.conv.weight)
    a2 = torch.relu(z1 + network.conv.bias.view(1, -1, 1, 1)).mean((2, 3))
    z2 = linear(a2, network.head.weight)
    loss = cross_entropy(z2 + network.head.bias, labels)
    d_images, d1, da2, d2 = torch.autograd.grad(loss, (images, z1, a2, z2))

    assert report.loss == pytest.approx(loss.item())
    assert list(report.statistics) == ["conv", "head"]
    layers = {"conv": (images, z1, d_images, d1), "head": (a2, z2, da2, d2)}
    for name, (a, z, da, dz) in layers.items():
        row = report.statistics[name]
        means = z.double().transpose(0, 1).flatten(1).mean(1)
        expected = {
            "shift_ratio": (means.square().mean() / variance(z)).sqrt(),
            "preactivation_std": variance(z).sqrt(),
            "gradient_std": variance(dz).sqrt(),
            "amplification_forward": variance(z) / variance(a),
            "amplification_backward": variance(da) / variance(dz),
            "sparsity": (a == 0).double().mean(),
        }
        assert {key: row[key] for key in expected} == pytest.approx(
            {key: value.item() for key, value in expected.items()}, rel=1e-4
        )
        assert report.condition.gradient_values[name] == dz.numel()
        assert report.condition.input_values[name] == a.numel() // a.shape[1]


class Everything(nn.Module):
    """Has all that a forward pass in training mode alters: statistics, buffers, random numbers."""

    def __init__(self):
        super().__init__()
        self.first = spectral_norm(nn.Linear(8, 16))
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.5)
        self.still = nn.BatchNorm1d(16).eval()
        self.last = nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.first.bias.requires_grad_(False)

    def forward(self, inputs, fail=False):
        self.calls = self.calls + 1
        outputs = self.last(self.still(self.drop(torch.relu(self.norm(self.first(inputs))))))
        if fail:
            raise RuntimeError("the forward pass fails")
        return outputs


def hooks(network):
    return [
        len(held)
        for module in network.modules()
        for held in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    ]


@pytest.mark.parametrize("how", ["well", "forward-fails", "loss-fails", "loss-is-no-scalar"])
def test_the_network_is_left_bit_for_bit_as_it_was(how):
    network, (inputs, targets) = Everything(), data()
    network.last.weight.grad = torch.randn(3, 16)
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    trained = [parameter.requires_grad for parameter in network.parameters()]
    tensors = [*network.parameters(), *network.buffers()]
    gradient, held = network.last.weight.grad, network.last.weight.grad.clone()
    inputs_before, rng, hooked = inputs.clone(), torch.get_rng_state(), hooks(network)

    def loss(outputs, targets):
        if how == "loss-fails":
            raise RuntimeError("the loss fails")
        return cross_entropy(outputs, targets, reduction="none" if how == "loss-is-no-scalar" else "mean")

    if how == "well":
        analyze(network, (inputs, targets), loss)
    else:
        with pytest.raises((RuntimeError, ValueError), match=r"fails|one number"):
            analyze(network, ({"inputs": inputs, "fail": how == "forward-fails"}, targets), loss)

    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(one is other for one, other in zip([*network.parameters(), *network.buffers()], tensors, strict=True))
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == trained
    assert network.last.weight.grad is gradient
    assert torch.equal(gradient, held)
    assert all(p.grad is None for name, p in network.named_parameters() if name != "last.weight")
    assert hooks(network) == hooked
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(inputs, inputs_before)
    assert not inputs.requires_grad
    assert inputs.grad is None


def test_a_plain_training_step_changes_what_analyze_leaves():
    network, (inputs, targets) = Everything(), data()
    before, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    cross_entropy(network(inputs), targets).backward()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert {"calls", "norm.running_mean", "norm.num_batches_tracked", "first.parametrizations.weight.0._u"} <= changed
    assert not torch.equal(torch.get_rng_state(), rng)
    assert network.last.weight.grad is not None


def test_hooks_that_wait_for_an_accumulated_gradient_do_not_fire():
    network, fired = mlp(8, 16, 3), []
    network[0].weight.register_post_accumulate_grad_hook(fired.append)
    batch = data()
    analyze(network, batch)
    assert not fired
    cross_entropy(network(batch[0]), batch[1]).backward()
    assert len(fired) == 1


def test_a_first_layer_that_works_in_place_is_no_hindrance():
    inputs, targets = data()
    before = inputs.clone()
    report = analyze(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3)), (inputs, targets))
    assert torch.equal(inputs, before)
    assert report.statistics["1"]["sparsity"] == pytest.approx((inputs <= 0).double().mean().item())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, left, right=0.0):
        return self.layer(left - right)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(50, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[1][0][-1])


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 6), nn.Linear(6, 3)

    def forward(self, sequences):
        return self.head(self.lstm(sequences)[1][0][-1])


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = mlp(8, 16, 3)

    def forward(self, inputs):
        return self.network(inputs)

    def training_step(self, batch, batch_idx):
        raise AssertionError("analyze() calls forward alone")


X, Y = torch.randn(16, 8), torch.arange(16) % 3
BATCHES = {
    "pair": (lambda: mlp(8, 3), (X, Y), None, True),
    "list": (lambda: mlp(8, 3), [X, Y], None, True),
    "inputs-alone": (lambda: mlp(8, 3), X, None, False),
    "inputs-and-a-loss": (lambda: mlp(8, 3), X, lambda outputs: outputs.square().mean(), True),
    "two-arguments": (TwoInputs, ((X, X.flip(0)), Y), None, True),
    "keywords": (TwoInputs, ({"left": X, "right": X.flip(0)}, Y), None, True),
    "keywords-alone": (TwoInputs, {"left": X}, None, False),
    "tokens": (Tokens, (torch.randint(50, (16, 5)), Y), None, True),
    "packed": (Packed, (pack_sequence([torch.randn(n, 8) for n in range(16, 0, -1)]), Y), None, True),
    "packed-alone": (Packed, pack_sequence([torch.randn(n, 8) for n in (5, 3)]), None, False),
    "regression": (lambda: mlp(8, 1), (X, torch.randn(16, 1)), mse_loss, True),
    "lightning-module": (Module, (X, Y), None, True),
    "double": (lambda: mlp(8, 3).double(), (X.double(), Y), None, True),
    "half": (lambda: mlp(8, 3).half(), (X.half(), Y), None, True),
    "bfloat16": (lambda: mlp(8, 3).bfloat16(), (X.bfloat16(), Y), None, True),
}


@pytest.mark.parametrize(("make", "batch", "loss", "backward"), BATCHES.values(), ids=BATCHES)
def test_batches_of_all_sorts(make, batch, loss, backward):
    report = analyze(make(), batch, loss)
    assert report.statistics
    assert all(math.isfinite(row["preactivation_std"]) for row in report.statistics.values())
    assert all((row.get("gradient_std", 0.0) > 0) == backward for row in report.statistics.values())
    assert (report.loss is not None) == backward
    assert ("no gradient was seen" in str(report)) == (not backward)


def test_two_arguments_reach_the_network_as_they_are():
    network = TwoInputs()
    for inputs in ((X, X.flip(0)), {"right": X.flip(0), "left": X}):
        row = analyze(network, (inputs, Y)).statistics["layer"]
        z = linear(X - X.flip(0), network.layer.weight)
        assert row["preactivation_std"] == pytest.approx(variance(z).sqrt().item(), rel=1e-5)


def test_the_callers_autocast_and_no_grad_are_minded():
    network = mlp(8, 3)
    seen = []
    network[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        analyze(network, (X, Y))
    with torch.no_grad():
        report = analyze(network, (X, Y))
    assert seen == [torch.bfloat16, torch.float32]
    assert report.statistics["0"]["gradient_std"] > 0


def test_patterns_choose_layers():
    report = analyze(mlp(8, 16, 16, 3), (X, Y), include=["*.weight"], exclude=["2.*"])
    assert list(report.statistics) == ["0", "4"]
    with pytest.raises(ValueError, match=r"'5\.\*' matches no weight"):
        analyze(mlp(8, 16, 3), (X, Y), include=["5.*"])


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, inputs):
        return linear(inputs, self.layer.weight)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, inputs):
        return self.layer(inputs), None


LOSS = "the cross-entropy of logits and class numbers unless it is given a loss="
MISTAKES = {
    "network-without-layers": (nn.ReLU, (X, Y), None, "ReLU has no weight .* it needs a layer of Linear"),
    "functional-network": (Functional, (X, Y), None, "none of the layers 'layer' was called"),
    "outputs-are-a-tuple": (Pair, (X, Y), None, f"{LOSS}.*; got outputs of tuple and targets of torch.int64"),
    "targets-are-numbers": (lambda: mlp(8, 1), (X, X[:, :1]), None, f"{LOSS}.*targets of torch.float32"),
    "targets-are-too-few": (lambda: mlp(8, 3), (X, Y[:3]), None, rf"{LOSS}.*\(16, 3\) and targets of shape \(3,\)"),
    "class-out-of-range": (lambda: mlp(8, 2), (X, Y), None, f"{LOSS}.*Target 2 is out of bounds"),
    "loss-of-each-sample": (
        lambda: mlp(8, 3),
        (X, Y),
        nn.CrossEntropyLoss(reduction="none"),
        r"one number, got a tensor of shape \(16,\)",
    ),
    "loss-is-the-targets": (lambda: mlp(8, 3), X, Y, r"got a Tensor; inputs and targets are one argument: analyze\("),
    "loss-is-a-class": (lambda: mlp(8, 3), (X, Y), nn.CrossEntropyLoss, "got the class CrossEntropyLoss itself"),
    "loss-is-a-name": (lambda: mlp(8, 3), (X, Y), "mse", "got a str"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3)), (X, Y), None, r"'0.weight', '0.bias' are lazy;"),
    "loss-is-a-number": (lambda: mlp(8, 3), (X, Y), lambda *_: 1.5, "one number, got float"),
    "detached": (lambda: mlp(8, 3), X, lambda outputs: outputs.detach().sum(), "depends on the network's inputs or"),
    "of-something-else": (
        lambda: mlp(8, 3),
        X,
        lambda outputs: torch.ones((), requires_grad=True) * 2,
        "depends on the network's inputs or",
    ),
}


@pytest.mark.parametrize(("make", "batch", "loss", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_message(make, batch, loss, says):
    with pytest.raises(ValueError, match=says):
        analyze(make(), batch, loss)


class Exp(nn.Module):
    def forward(self, inputs):
        return (1000 * inputs).exp()


class Root(nn.Module):
    def forward(self, inputs):
        return (inputs - inputs.detach()).sqrt() + inputs


class Cut(nn.Module):
    def forward(self, inputs):
        return inputs.detach()


def with_weights(value):
    network = mlp(8, 8, 3)
    nn.init.constant_(network[2].weight, value)
    return network


FINDINGS = {
    "activation-overflows": (
        lambda: nn.Sequential(nn.Linear(8, 8), Exp(), nn.Linear(8, 3)),
        X,
        "Not finite: the input of '2'; an activation before it overflows.",
    ),
    "sums-overflow": (
        lambda: with_weights(3e4).half(),
        10 + X.half(),
        "Not finite: the output of '2'; its sums overflow.",
    ),
    "weights-are-nan": (lambda: with_weights(math.nan), X, "Not finite: the weights of '2'."),
    "data-are-nan": (lambda: mlp(8, 8, 3), X * math.nan, "Not finite: the input of '0'."),
    "gradient-is-nan": (
        lambda: nn.Sequential(nn.Linear(8, 8), Root(), nn.Linear(8, 3)),
        X,
        "Not finite: dL/dz of '0', although the forward pass is finite.",
    ),
    "head-of-zeros": (
        lambda: with_weights(0.0),
        X,
        "No gradient at all: dL/dz is exactly zero in 1 of 2 layers ('0'), because the weights of '2' are zero.",
    ),
    "cut": (
        lambda: nn.Sequential(nn.Linear(8, 8), Cut(), nn.Linear(8, 3)),
        X,
        "The loss does not depend on '0': no gradient gets there.",
    ),
    "one-sample": (
        lambda: mlp(8, 8, 3),
        X[:1],
        "No signal: the output of '0', '2' is identical for all samples (2 of 2 layers).",
    ),
    "equal-samples": (
        lambda: mlp(8, 8, 3),
        X[:1].expand(16, -1),
        "No signal: the output of '0', '2' is identical for all samples (2 of 2 layers).",
    ),
    "all-is-well": (lambda: mlp(8, 8, 3), X, None),
}


@pytest.mark.parametrize(("make", "inputs", "says"), FINDINGS.values(), ids=FINDINGS)
def test_what_is_the_matter_is_said_first(make, inputs, says):
    report = analyze(make(), (inputs, Y[: len(inputs)]))
    assert [finding.says for finding in report.findings][:1] == ([] if says is None else [says])


def test_a_loss_that_is_nan_is_said_so():
    report = analyze(mlp(8, 8, 3), X, lambda outputs: (outputs - 10).log().mean())
    assert report.findings[0].says == "Not finite: the loss is nan, although the outputs of all layers are finite."


def test_sums_that_overflow_in_half_precision_do_not_in_float32():
    report = analyze(with_weights(3e4), (10 + X, Y))
    assert not any(finding.says.startswith("Not finite") for finding in report.findings)


def test_frozen_and_unreached_layers_are_said_so():
    network = mlp(8, 8, 3)
    network[0].requires_grad_(False)
    network.spare = nn.Linear(3, 3)
    network.forward = lambda inputs: network[2](network[1](network[0](inputs)))
    report = analyze(network, (X, Y))
    assert [finding.says for finding in report.findings] == [
        "Frozen (no weight is trained): '0'.",
        "Never reached in this forward pass: 'spare'.",
    ]
    assert report.condition.unreached == ["spare"]


def test_a_constrained_network_is_known_as_one_in_every_precision():
    for dtype in (torch.float32, torch.bfloat16):
        network = mlp(64, 64, 3).to(dtype)
        assert analyze(network, torch.rand(16, 64, dtype=dtype)).condition.zero_sum == []
        constrain(network)
        assert isinstance(network[0].parametrizations.weight[0], ZeroSum)
        assert analyze(network, torch.rand(16, 64, dtype=dtype)).condition.zero_sum == ["0", "2"]


@pytest.mark.parametrize("samples", [2, 64])
def test_dropout_on_a_small_batch_does_not_look_like_dead_units(samples):
    network = nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )
    report = analyze(network, data(samples=samples))
    assert not any("Dead" in finding.says for finding in report.findings)
    with torch.no_grad():
        network[0].bias[:32] = -100  # truly dead
    report = analyze(network, data(samples=samples))
    assert any("Dead units" in finding.says for finding in report.findings) == (samples == 64)
    assert report.statistics["3"]["dead_units"] >= 0.5


def test_no_layer_is_cut_off_whose_output_is_a_view_that_an_activation_changes_in_place():
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Linear(40, 3)),
    )
    report = analyze(network, (torch.randn(32, 5, 8), torch.randint(3, (32,))))
    assert "does not depend" not in str(report)
    assert all(row["gradient_std"] > 0 for row in report.statistics.values())


def test_a_network_with_one_output_needs_a_loss_and_a_batch_needs_samples():
    with pytest.raises(ValueError, match=r"over one class that is always 0; give the loss"):
        analyze(mlp(8, 1), (X, torch.zeros(len(X), dtype=torch.long)))
    with pytest.raises(ValueError, match="got one of 0 samples"):
        analyze(mlp(8, 3), (X[:0], Y[:0]))


class OutputsWithLoss(nn.Module):
    """Returns its own loss if it is given labels, as networks of transformers do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, inputs, labels=None):
        logits = self.layer(inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


def test_without_targets_the_loss_is_that_of_the_outputs():
    network = OutputsWithLoss()
    report = analyze(network, {"inputs": X, "labels": Y})
    assert report.loss == pytest.approx(nn.functional.cross_entropy(network.layer(X), Y).item())
    assert report.statistics["layer"]["gradient_std"] > 0
    assert analyze(network, {"inputs": X}).loss is None


def test_a_lazy_network_is_left_lazy():
    network = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match="needs a network that is built"):
        analyze(network, X)
    assert network[0].has_uninitialized_params()
