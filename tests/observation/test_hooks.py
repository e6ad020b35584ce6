import copy
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from lcw_lightning.observation.hooks import observe


class Collector(dict):
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


SHAPES = {"vectors": (5, 4), "sequences": (2, 5, 4), "grids": (2, 3, 5, 4)}


# Of inputs with three or more dimensions Linear's output is a view under some versions of torch.
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_layers_tensors_are_those_that_autograd_gives(shape):
    network, inputs = Residual(), torch.randn(shape, requires_grad=True)
    collector = Collector()
    with observe({"first": network.first, "second": network.second}, collector):
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
    assert set(collector) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(collector[key][0], tensor.detach(), msg=lambda text, key=key: f"{key}: {text}")


class Viewed(nn.Linear):
    """Sends a view, alone or in what contains it."""

    def __init__(self, wrap):
        super().__init__(4, 6)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(super().forward(x)[..., 1:4])


Outputs = namedtuple("Outputs", ["states", "length"])
WRAPPED = {
    "tensor": (lambda z: z, lambda out: out),
    "tuple": (lambda z: (z, 3), lambda out: out[0]),
    "namedtuple": (lambda z: Outputs(z, 3), lambda out: out.states),
    "packed": (lambda z: pack_sequence([z]), lambda out: out.data),
}


@pytest.mark.parametrize(("wrap", "unwrap"), WRAPPED.values(), ids=WRAPPED)
def test_the_gradient_of_a_view_is_seen_where_a_later_layer_changes_it_in_place(wrap, unwrap):
    layer, inputs, collector = Viewed(wrap), torch.randn(5, 4), Collector()
    plain = layer(inputs)
    with observe({"layer": layer}, collector):
        output = layer(inputs)
        assert type(output) is type(plain)
        unwrap(output).relu_().square().sum().backward()
    z = unwrap(plain).detach()
    torch.testing.assert_close(collector["layer", "preactivation"][0], z)
    torch.testing.assert_close(collector["layer", "preactivation_gradient"][0], 2 * z.relu())


def test_the_input_gradient_is_seen_even_where_the_network_needs_none():
    layer, collector = nn.Linear(4, 3), Collector()
    with observe({"layer": layer}, collector):
        layer(torch.randn(5, 4)).sum().backward()
    torch.testing.assert_close(collector["layer", "input_gradient"][0], layer.weight.sum(0).expand(5, 4))


def test_a_layer_that_is_called_twice_is_observed_twice():
    layer, collector = nn.Linear(4, 4), Collector()
    with observe({"layer": layer}, collector):
        layer(layer(torch.randn(5, 4))).sum().backward()
    assert {key: len(tensors) for key, tensors in collector.items()} == {
        ("layer", quantity): 2 for quantity in ("input", "preactivation", "preactivation_gradient", "input_gradient")
    }


def test_without_gradients_only_the_forward_pass_is_observed():
    layer, collector = nn.Linear(4, 4), Collector()
    with observe({"layer": layer}, collector), torch.no_grad():
        layer(torch.randn(5, 4))
    assert set(collector) == {("layer", "input"), ("layer", "preactivation")}


def test_keyword_inputs_are_observed():
    layer, collector = nn.Linear(4, 4), Collector()
    with observe({"layer": layer}, collector):
        layer(input=torch.ones(5, 4)).sum().backward()
    assert torch.equal(collector["layer", "input"][0], torch.ones(5, 4))


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
    layer, collector = nn.Linear(4, 4), Collector()
    with observe({"layer": layer}, collector):
        assert hooks(layer) == 2
    assert hooks(layer) == 0
    with pytest.raises(RuntimeError, match="mat1 and mat2"), observe({"layer": layer}, collector):
        layer(torch.randn(5, 3))
    assert hooks(layer) == 0


def test_a_backward_pass_after_the_block_is_not_observed():
    layer, collector = nn.Linear(4, 4), Collector()
    with observe({"layer": layer}, collector):
        output = layer(torch.randn(5, 4))
    output.sum().backward()
    assert set(collector) == {("layer", "input"), ("layer", "preactivation")}


def test_a_frozen_layer_with_a_frozen_input_stays_out_of_the_graph():
    layer, collector = nn.Linear(4, 4).requires_grad_(False), Collector()
    with observe({"layer": layer}, collector):
        assert not layer(torch.randn(5, 4)).requires_grad
    assert set(collector) == {("layer", "input"), ("layer", "preactivation")}


def test_a_frozen_layer_between_trained_ones_is_observed_both_ways():
    network, collector = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)), Collector()
    with observe({"frozen": network[1]}, collector):
        network(torch.randn(5, 4)).sum().backward()
    assert len(collector) == 4


def test_an_input_with_another_keyword_is_observed():
    class Named(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    layer, collector = Named(4, 4), Collector()
    with observe({"layer": layer}, collector):
        layer(x=torch.ones(5, 4)).sum().backward()
    assert len(collector) == 4


def test_keyword_inputs_are_told_apart_by_name_not_by_place():
    attention, collector = nn.MultiheadAttention(4, 2), Collector()
    query, memory = torch.randn(3, 5, 4), torch.randn(7, 5, 4)
    with observe({"attention": attention}, collector):
        attention(need_weights=False, value=memory, key=memory, query=query)[0].sum().backward()
    assert torch.equal(collector["attention", "input"][0], query)
    assert collector["attention", "input_gradient"][0].shape == query.shape


def test_self_attention_shows_the_gradient_of_all_that_its_input_is():
    attention, collector, inputs = nn.MultiheadAttention(4, 2), Collector(), torch.randn(3, 5, 4, requires_grad=True)
    with observe({"attention": attention}, collector):
        attention(inputs, inputs, inputs)[0].square().sum().backward()
    assert torch.equal(collector["attention", "input_gradient"][0], inputs.grad)
    # A control: as query alone it has another.
    query = inputs.detach().requires_grad_()
    attention(query, inputs.detach(), inputs.detach())[0].square().sum().backward()
    assert not torch.allclose(query.grad, inputs.grad)


@pytest.mark.parametrize("arguments", [(), (None,), ([1.0, 2.0],)], ids=["nothing", "none", "list"])
def test_an_input_that_is_mistaken_ends_in_the_layers_own_error(arguments):
    layer = nn.Linear(4, 4)
    with pytest.raises(TypeError, match=r"missing 1 required|must be Tensor"), observe({"layer": layer}, Collector()):
        layer(*arguments)


def test_of_a_layer_that_takes_numbers_of_classes_the_output_is_observed():
    class OneHot(nn.Linear):
        def forward(self, classes):
            return super().forward(nn.functional.one_hot(classes, self.in_features).float())

    layer, collector = OneHot(4, 3), Collector()
    with observe({"layer": layer}, collector):
        layer(torch.tensor([0, 3])).sum().backward()
    assert set(collector) == {("layer", "preactivation"), ("layer", "preactivation_gradient")}


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
def test_a_recurrent_layer_shows_gradients_of_its_output_and_of_its_last_state(make):
    layer, inputs = make(4, 3), torch.randn(6, 5, 4)

    def seen(loss):
        collector = Collector()
        with observe({"layer": layer}, collector):
            output, state = layer(inputs)
            loss(output, state if isinstance(state, torch.Tensor) else state[0]).backward()
        (gradient,) = collector["layer", "preactivation_gradient"]
        return gradient

    at_the_end = torch.zeros(6, 5, 3)
    at_the_end[-1] = 1
    assert torch.equal(seen(lambda z, h: z.sum()), torch.ones(6, 5, 3))
    assert torch.equal(seen(lambda z, h: 2 * h.sum()), 2 * at_the_end)
    assert torch.equal(seen(lambda z, h: z.sum() + 2 * h.sum()), 1 + 2 * at_the_end)
    assert torch.equal(seen(lambda z, h: z[-1].sum()), seen(lambda z, h: h[-1].sum()))


def test_packed_sequences_show_their_data():
    layer, collector = nn.GRU(4, 3), Collector()
    packed = pack_sequence([torch.randn(length, 4) for length in (5, 2)])
    with observe({"layer": layer}, collector):
        output, _ = layer(packed)
        output.data.sum().backward()
    assert torch.equal(collector["layer", "input"][0], packed.data)
    assert torch.equal(collector["layer", "preactivation"][0], output.data.detach())
    assert collector["layer", "preactivation_gradient"][0].shape == (7, 3)
    assert collector["layer", "input_gradient"][0].shape == (7, 4)


TRANSFORMS = {
    "vmap": lambda layer, inputs: torch.func.vmap(layer)(inputs),
    "grad": lambda layer, inputs: torch.func.grad(lambda inputs: layer(inputs).sum())(inputs),
    "jacrev": lambda layer, inputs: torch.func.vmap(torch.func.jacrev(layer))(inputs),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_calls_within_a_transform_of_torch_func_pass_unobserved(transform):
    layer, inputs, recorder = nn.Linear(4, 3), torch.randn(5, 4), Collector()
    with observe({"layer": layer}, recorder):
        output = transform(layer, inputs)
    assert torch.equal(output, transform(layer, inputs))
    assert not recorder


def test_nested_tensors_pass_unobserved():
    layer, recorder = nn.Linear(4, 3), Collector()
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    with observe({"layer": layer}, recorder):
        assert torch.equal(layer(nested).values(), layer(nested.values()))
    assert {tuple(value.shape) for value in recorder["layer", "input"]} == {(5, 4)}


class Keyword(nn.Linear):
    """Takes its input by keyword, after an argument that is no tensor, and returns a dict."""

    def forward(self, scale, *, tokens):
        return {"number": 3, "z": super().forward(scale * tokens).view(-1, 2), "bias": self.bias}


def test_the_input_is_the_first_tensor_and_the_output_the_first_of_a_dict():
    layer, seen = Keyword(3, 2), {}
    tokens = torch.randn(5, 3, requires_grad=True)
    with observe({"layer": layer}, lambda name, quantity, tensor: seen.update({quantity: tensor.clone()})):
        output = layer(2, tokens=tokens)
        output["z"].relu_().sum().backward()
    assert list(output) == ["number", "z", "bias"]
    torch.testing.assert_close(seen["input"], tokens.detach())
    torch.testing.assert_close(seen["preactivation"], layer(2, tokens=tokens)["z"].detach())
    gradient = (seen["preactivation"] > 0).float()
    torch.testing.assert_close(seen["preactivation_gradient"], gradient)
    torch.testing.assert_close(seen["input_gradient"], 2 * gradient @ layer.weight.detach())
