import copy

import pytest
import torch
from torch import nn

from lcw_lightning.recording import eager_mode, observe


class Recorder(dict):
    """Keeps clones of what was observed, a list a (name, quantity)."""

    def __call__(self, name, quantity, tensor):
        assert not tensor.requires_grad
        self.setdefault((name, quantity), []).append(tensor.clone())


class Residual(nn.Module):
    """Reads its input twice, so that the gradient of the input has two shares."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.first(x) * self.second(x).relu_()


def test_a_layers_tensors_are_those_that_autograd_gives():
    network, inputs = Residual(), torch.randn(5, 4, requires_grad=True)
    recorder = Recorder()
    with observe({"first": network.first, "second": network.second}, recorder):
        (2 * network(inputs)).sum().backward()

    z_1, z_2 = network.first(inputs), network.second(inputs)
    dz_1, dz_2 = 2 * z_2.relu(), 2 * z_1 * (z_2 > 0)
    expected = {
        ("first", "input"): inputs,
        ("first", "preactivation"): z_1,
        ("first", "preactivation_gradient"): dz_1,
        ("first", "input_gradient"): dz_1 @ network.first.weight,  # this layer's share alone
        ("second", "input"): inputs,
        ("second", "preactivation"): z_2,  # before the in-place ReLU
        ("second", "preactivation_gradient"): dz_2,
        ("second", "input_gradient"): dz_2 @ network.second.weight,
    }
    assert set(recorder) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(recorder[key][0], tensor.detach(), msg=lambda text, key=key: f"{key}: {text}")


def test_the_input_gradient_is_seen_even_where_the_network_needs_none():
    layer, recorder = nn.Linear(4, 3), Recorder()
    with observe({"layer": layer}, recorder):
        layer(torch.randn(5, 4)).sum().backward()
    torch.testing.assert_close(recorder["layer", "input_gradient"][0], layer.weight.sum(0).expand(5, 4))


def test_a_layer_that_is_called_twice_is_observed_twice():
    layer, recorder = nn.Linear(4, 4), Recorder()
    with observe({"layer": layer}, recorder):
        layer(layer(torch.randn(5, 4))).sum().backward()
    assert {key: len(tensors) for key, tensors in recorder.items()} == {
        ("layer", quantity): 2 for quantity in ("input", "preactivation", "preactivation_gradient", "input_gradient")
    }


def test_without_gradients_only_the_forward_pass_is_observed():
    layer, recorder = nn.Linear(4, 4), Recorder()
    with observe({"layer": layer}, recorder), torch.no_grad():
        layer(torch.randn(5, 4))
    assert set(recorder) == {("layer", "input"), ("layer", "preactivation")}


def test_keyword_inputs_are_observed():
    layer, recorder = nn.Linear(4, 4), Recorder()
    with observe({"layer": layer}, recorder):
        layer(input=torch.ones(5, 4)).sum().backward()
    assert torch.equal(recorder["layer", "input"][0], torch.ones(5, 4))


def test_values_and_gradients_stay_bit_for_bit():
    observed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 10))
    plain, images = copy.deepcopy(observed), torch.randn(4, 3, 8, 8)
    with observe({"conv": observed[0], "linear": observed[3]}, lambda *_: None):
        logits = observed(images)
        logits.square().sum().backward()
    plain(images).square().sum().backward()
    assert torch.equal(logits, plain(images))
    for ours, theirs in zip(observed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


def test_no_hook_stays_after_the_block_nor_after_an_exception():
    layer, recorder = nn.Linear(4, 4), Recorder()
    with observe({"layer": layer}, recorder):
        assert hooks(layer) == 2
    assert hooks(layer) == 0
    with pytest.raises(RuntimeError, match="mat1 and mat2"), observe({"layer": layer}, recorder):
        layer(torch.randn(5, 3))
    assert hooks(layer) == 0


def test_a_backward_pass_after_the_block_is_not_observed():
    layer, recorder = nn.Linear(4, 4), Recorder()
    with observe({"layer": layer}, recorder):
        output = layer(torch.randn(5, 4))
    output.sum().backward()
    assert set(recorder) == {("layer", "input"), ("layer", "preactivation")}


def test_a_frozen_layer_with_a_frozen_input_stays_out_of_the_graph():
    layer, recorder = nn.Linear(4, 4).requires_grad_(False), Recorder()
    with observe({"layer": layer}, recorder):
        assert not layer(torch.randn(5, 4)).requires_grad
    assert set(recorder) == {("layer", "input"), ("layer", "preactivation")}


def test_a_frozen_layer_between_trained_ones_is_observed_both_ways():
    network, recorder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)), Recorder()
    with observe({"frozen": network[1]}, recorder):
        network(torch.randn(5, 4)).sum().backward()
    assert len(recorder) == 4


def test_an_input_with_another_keyword_is_observed():
    class Named(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    layer, recorder = Named(4, 4), Recorder()
    with observe({"layer": layer}, recorder):
        layer(x=torch.ones(5, 4)).sum().backward()
    assert len(recorder) == 4


def backend_calls(function, *contexts):
    """How often a compiled function's code runs while contexts are entered, then left in the same order."""
    calls = []

    def backend(graph, example_inputs):
        return lambda *args: (calls.append(1), graph.forward(*args))[1]

    torch.compiler.reset()
    compiled = torch.compile(function, backend=backend)
    for context in contexts:
        context.__enter__()
    compiled(torch.ones(3))
    for context in contexts:
        context.__exit__(None, None, None)
    held = len(calls)
    compiled(torch.ones(3))
    return held, len(calls)


def test_eager_mode_ends_with_its_last_holder_in_any_order():
    assert backend_calls(torch.sin, eager_mode, eager_mode) == (0, 1)
    assert backend_calls(torch.sin) == (1, 2)
