"""Which layers minibatch initialization leaves as they are, bit for bit, and what it says of them."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn

from lcw_lightning import constrain, minibatch_init_
from lcw_lightning.initialization.minibatch import new_outcome, rescale_on_first_forward

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ZERO_SUM = {
    "lcw": constrain,
    "project": partial(constrain, method="project"),
    "cwn": partial(constrain, kind="cwn"),
}
KINDS = {"none": partial(constrain, kind="none"), **ZERO_SUM, "wn": partial(constrain, kind="wn")}
kinds = pytest.mark.parametrize("constrained", KINDS.values(), ids=KINDS)
zero_sum_kinds = pytest.mark.parametrize("constrained", ZERO_SUM.values(), ids=ZERO_SUM)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
granularities = pytest.mark.parametrize("granularity", ["layer", "unit"])
with_and_without_gradients = pytest.mark.parametrize("gradients", [False, True], ids=["without", "with"])


def left_by(network, *inputs, gradients=False, **settings):
    """Initialize, in a forward pass with or without gradients, and return what was left for which reasons."""
    outcome = new_outcome()
    with rescale_on_first_forward(network, **settings, outcome=outcome), torch.set_grad_enabled(gradients):
        network(*inputs)
    return outcome.left


def same(network, before):
    return all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class LanguageModel(nn.Module):
    """Logits from the weight of the embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.body, self.head = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.body(self.embedding(tokens)).tanh())


@kinds
@with_and_without_gradients
def test_a_weight_that_is_tied_to_an_embedding_is_left_since_earlier_inputs_would_change(constrained, gradients):
    network, tokens = LanguageModel(), torch.arange(50).repeat(2)
    constrained(network, include=["body.*"])
    drawn = network.head.weight.detach().clone()
    left = left_by(network, tokens, gradients=gradients)
    assert left == {"head.weight": "tied to 'embedding.weight'"}
    assert torch.equal(network.head.weight, drawn)
    assert network.body(network.embedding(tokens)).std(correction=0).item() == pytest.approx(1, rel=1e-3)


def test_control_rescaled_with_the_embedding_the_layer_before_is_off():
    network, tokens = LanguageModel(), torch.arange(50).repeat(2)
    minibatch_init_(network, tokens, include=["body.*"])
    network.head.weight.data /= network(tokens).std()
    assert network.body(network.embedding(tokens)).std(correction=0).item() < 0.9


def linear(fan_in, units=32):
    return nn.Linear(fan_in, units)


SHAPES = {
    **{str(fan_in): (partial(linear, fan_in), (16, fan_in)) for fan_in in (3, 16, 64, 512, 4096)},
    "conv": (lambda: nn.Conv2d(16, 8, 3), (4, 16, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, groups=16), (4, 16, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(16, 8, 1, groups=2), (4, 16, 6, 6)),
}
shapes = pytest.mark.parametrize(("make", "shape"), SHAPES.values(), ids=SHAPES)


@shapes
@dtypes
@zero_sum_kinds
@granularities
def test_rounding_of_constant_inputs_is_not_variation(make, shape, dtype, constrained, granularity):
    layer = make().to(dtype)
    constrained(layer)
    before = copy.deepcopy(layer.state_dict())
    for constant in (1 / 3, 17.3):
        left = left_by(layer, torch.full(shape, constant, dtype=dtype), granularity=granularity)
        assert left == {"weight": "preactivations that do not vary"}
        assert same(layer, before)


SMALLEST = {torch.float32: 2e-3, torch.float64: 1e-11, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Standard deviation over a mean of 1, a few times above what the format rounds to in sums of 4096 numbers."""


@shapes
@dtypes
@zero_sum_kinds
def test_small_variation_around_a_constant_is_variation(make, shape, dtype, constrained):
    layer, inputs = make().to(dtype), (1 + SMALLEST[dtype] * torch.randn(shape, dtype=torch.float64)).to(dtype)
    constrained(layer)
    assert left_by(layer, inputs) == {}
    # The reference multiplies in double precision, so that nothing but variation is left.
    exact = copy.deepcopy(layer).double()
    assert exact(inputs.double()).std(correction=0).item() == pytest.approx(1, rel=0.2)


def test_under_autocast_the_weight_rounds_to_another_sum_than_zero():
    layer = nn.Linear(512, 32)
    constrain(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert left_by(layer, torch.ones(16, 512)) == {"weight": "preactivations that do not vary"}
        assert left_by(layer, 1 + 0.2 * torch.randn(16, 512)) == {}


def test_plain_weights_on_constant_inputs_vary_over_units_but_no_unit_varies():
    inputs = torch.full((16, 64), 1 / 3)
    assert left_by(nn.Linear(64, 8), inputs) == {}
    assert left_by(nn.Linear(64, 8), inputs, granularity="unit") == {"weight": "preactivations that do not vary"}


OUT_OF_RANGE = {
    "small inputs": (1e-40, 1.0, torch.float32, "overflow float32"),
    "small weights": (1.0, 1e-39, torch.float32, "overflow float32"),
    "small inputs and weights": (1e-25, 1e-15, torch.float32, "overflow float32"),
    "small inputs in half precision": (1e-5, 1.0, torch.float16, "overflow float16"),
    "large inputs": (3e37, 1.0, torch.float32, "underflow float32"),
    "large inputs in half precision": (1e4, 1.0, torch.float16, "underflow float16"),
    "a factor beyond the dtype's range": (1e-3, 1e-3, torch.float16, None),
    "a factor of a billion": (1e-9, 1.0, torch.float32, None),
}


@pytest.mark.parametrize(("scale", "weights", "dtype", "says"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
@kinds
@granularities
@with_and_without_gradients
def test_no_weight_leaves_the_range_of_its_dtype(scale, weights, dtype, says, constrained, granularity, gradients):
    layer = nn.Linear(64, 8)
    with torch.no_grad():
        layer.weight.mul_(weights)
    constrained(layer.to(dtype))
    before, before_any = copy.deepcopy(layer.state_dict()), layer.weight.any()
    inputs = (scale * torch.randn(32, 64)).to(dtype)
    left = left_by(layer, inputs, gradients=gradients, granularity=granularity)
    if says:
        # Under weight normalization the norm of too small a weight is zero from the start.
        assert left == {"weight": f"its rescaled weight would {says}" if before_any else "zero weights"}
        assert same(layer, before)
    else:
        assert left == {}
        assert layer(inputs).double().std(correction=0).item() == pytest.approx(1, rel=0.05)


def zero_linear(*shape):
    layer = nn.Linear(*shape)
    nn.init.zeros_(layer.weight)
    return layer


class Standardized(nn.Conv2d):
    """Standardizes its weight itself, as timm's StdConv2d does."""

    def forward(self, images):
        units = self.weight.flatten(1)
        units = (units - units.mean(1, keepdim=True)) / (units.var(1, keepdim=True) + 1e-6).sqrt()
        return nn.functional.conv2d(images, units.view_as(self.weight), self.bias)


class Scaled(nn.Conv2d):
    """Has a forward of its own, too, but scales with its weight."""

    def forward(self, images):
        return 2 * super().forward(images)


REASONS = {
    "zero weights": (lambda: zero_linear(8, 6), torch.randn(32, 8), "zero weights"),
    "zero inputs": (lambda: nn.Linear(8, 6), torch.zeros(32, 8), "zero inputs"),
    "no samples": (lambda: nn.Linear(8, 6), torch.zeros(0, 8), "a batch of 0 samples"),
    "no images": (lambda: nn.Conv2d(8, 6, 1), torch.zeros(0, 8, 4, 4), "a batch of 0 samples"),
    "standardized": (
        lambda: Standardized(8, 6, 3),
        torch.randn(4, 8, 5, 5),
        "scaling it leaves the layer's output unchanged",
    ),
}
reasons = pytest.mark.parametrize(("make", "inputs", "says"), REASONS.values(), ids=REASONS)


@reasons
@kinds
@granularities
@with_and_without_gradients
def test_what_cannot_be_rescaled_stays_bit_for_bit_and_computes_what_it_did(
    make, inputs, says, constrained, granularity, gradients
):
    layer = make()
    constrained(layer)
    before, expected = copy.deepcopy(layer.state_dict()), layer(inputs)
    outcome = new_outcome()
    rescaling = rescale_on_first_forward(layer, granularity=granularity, outcome=outcome)
    with rescaling, torch.set_grad_enabled(gradients):
        output = layer(inputs)
    assert outcome.left == {"weight": says}
    assert same(layer, before)
    assert torch.equal(output, expected)
    with pytest.raises(ValueError, match=re.escape(f"a layer that can be rescaled, but left are: 'weight' ({says})")):
        minibatch_init_(layer, inputs, granularity=granularity)
    assert same(layer, before)


@kinds
def test_a_layer_with_a_forward_of_its_own_that_scales_with_its_weight_is_rescaled(constrained):
    layer, images = Scaled(8, 6, 3, bias=False), torch.randn(4, 8, 5, 5)
    constrained(layer)
    assert left_by(layer, images, granularity="unit") == {}
    torch.testing.assert_close(layer(images).std((0, 2, 3), correction=0), torch.ones(6), rtol=1e-3, atol=0)


@kinds
@with_and_without_gradients
def test_one_layer_that_cannot_be_rescaled_does_not_keep_the_others_from_it(constrained, gradients):
    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.Threshold(1e9, 0.0), nn.Linear(6, 4))
    constrained(network)
    inputs, before = torch.randn(64, 8), copy.deepcopy(network[4].state_dict())
    assert left_by(network, inputs, gradients=gradients) == {"4.weight": "zero inputs"}
    assert network[:3](inputs).std(correction=0).item() == pytest.approx(1, rel=1e-3)
    assert same(network[4], before)


class Own(nn.GRU):
    """Has a forward of its own, too, which may do anything."""

    def forward(self, inputs):
        return super().forward(inputs)


def test_one_line_says_which_layers_were_rescaled_by_which_factors_and_which_were_left_for_which_reasons():
    layers = {"body": nn.Linear(8, 6), "frozen": nn.Linear(6, 6).requires_grad_(False), "recurrent": Own(6, 6)}
    network = nn.ModuleDict(layers | {"spare": nn.Linear(2, 2), "head": zero_linear(6, 3)})
    network.forward = lambda x: network["head"](network["recurrent"](network["frozen"](network["body"](x)))[0])
    before = network["body"].weight.norm()
    with pytest.warns(UserWarning, match="left as they are") as caught:
        minibatch_init_(network, torch.randn(32, 8))
    factor = network["body"].weight.norm() / before
    says = str(caught.pop(UserWarning).message)
    assert re.fullmatch(
        rf"minibatch initialization: 1 of 6 layers rescaled by a factor of {factor:.2g}; left as they are: "
        r"'frozen\.weight' \(frozen\), 'recurrent\.weight_ih_l0', 'recurrent\.weight_hh_l0' "
        r"\(hooks do not see its preactivations\), 'head\.weight' \(zero weights\), "
        r"'spare\.weight' \(its layer was not called\)",
        says,
    )


@pytest.mark.parametrize("settings", [{"exclude": ["2.*"]}, {"include": ["0.*"]}], ids=str)
def test_the_patterns_choose_what_is_rescaled_and_nothing_is_said_of_the_rest(settings):
    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), zero_linear(6, 3))
    before = copy.deepcopy(network[2].state_dict())
    minibatch_init_(network, torch.randn(32, 8), **settings)  # warnings are errors
    assert same(network[2], before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": ["3.*"]}, r"the pattern '3\.\*' matches no weight of Sequential; near it are"),
        ({"include": "0.*"}, r"include is a list of patterns, got the string '0\.\*'"),
    ],
)
def test_patterns_that_match_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        minibatch_init_(nn.Sequential(nn.Linear(8, 6)), torch.randn(32, 8), **settings)
