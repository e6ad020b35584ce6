"""Minibatch initialization of attention and Bilinear, against products written out."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from lcw_lightning import constrain, minibatch_init_
from lcw_lightning.initialization.minibatch import new_outcome, rescale_on_first_forward
from tests.kinds import KINDS

WIDTH, HEADS = 8, 2
kinds = pytest.mark.parametrize("kind", KINDS)
granularities = pytest.mark.parametrize("granularity", ["layer", "unit"])
with_and_without_gradients = pytest.mark.parametrize("gradients", [False, True], ids=["without", "with"])


def tokens(length, width, spread, seed):
    return spread * torch.randn(16, length, width, generator=torch.Generator().manual_seed(seed)) + 0.5


QUERY, KEY, VALUE = tokens(5, WIDTH, 1.0, 0), tokens(7, WIDTH, 2.0, 1), tokens(7, WIDTH, 0.3, 2)
OTHER_KEY, OTHER_VALUE = tokens(7, 6, 2.0, 1), tokens(7, 4, 0.3, 2)
LAYERS = {
    "one weight": (partial(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True), (QUERY, KEY, VALUE)),
    "three weights": (
        partial(nn.MultiheadAttention, WIDTH, HEADS, kdim=6, vdim=4, batch_first=True),
        (QUERY, OTHER_KEY, OTHER_VALUE),
    ),
    "without biases": (partial(nn.MultiheadAttention, WIDTH, HEADS, bias=False), (QUERY, KEY, VALUE)),
}
layers = pytest.mark.parametrize(("make", "inputs"), LAYERS.values(), ids=LAYERS)


@torch.no_grad()
def projections(layer, inputs):
    """Query, key, value and output of attention, each without its bias, by the module's own weights."""
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    weights = (
        [getattr(layer, name) for name in names] if layer.in_proj_weight is None else layer.in_proj_weight.chunk(3)
    )
    biases = [0.0] * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    products = [given @ weight.T for given, weight in zip(inputs, weights, strict=True)]
    found = dict(zip(("query", "key", "value"), products, strict=True))
    q, k, v = (product + bias for product, bias in zip(products, biases, strict=True))
    if not layer.batch_first:
        q, k, v = (each.transpose(0, 1) for each in (q, k, v))
    q, k, v = (each.unflatten(2, (HEADS, -1)).transpose(1, 2) for each in (q, k, v))
    heads = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(3) @ v
    return found | {"output": heads.transpose(1, 2).flatten(2) @ layer.out_proj.weight.T}


def misses(found, by_unit=False):
    """How far each std is from 1 at most."""
    dims = (0, 1) if by_unit else (0, 1, 2)
    return {name: (z.std(dims, correction=0) - 1).abs().max().item() for name, z in found.items()}


@layers
@kinds
@granularities
@with_and_without_gradients
def test_query_key_value_and_output_have_the_std(make, inputs, kind, granularity, gradients):
    layer = make()
    KINDS[kind](layer)
    inputs = inputs if layer.batch_first else [given.transpose(0, 1) for given in inputs]
    before, has_gains = projections(layer, inputs), kind in ("wn", "cwn")
    with rescale_on_first_forward(layer, granularity=granularity) as waiting, torch.set_grad_enabled(gradients):
        output, _ = layer(*inputs)
        assert not waiting
    found, by_unit = projections(layer, inputs), granularity == "unit" or has_gains
    print("std off 1 by", misses(found, by_unit), "before", misses(before))
    assert max(misses(found, by_unit).values()) < 1e-3
    assert min(misses(before).values()) > 0.02  # control
    torch.testing.assert_close(layer(*inputs)[0], output)
    if layer.in_proj_bias is not None:
        means = torch.cat([found[name].mean((0, 1)) for name in ("query", "key", "value")])
        torch.testing.assert_close(layer.in_proj_bias, -means if has_gains else 0 * means, atol=1e-5, rtol=0)
        assert layer.out_proj.bias.any() == has_gains


class Block(nn.Module):
    """A transformer layer, which reads its attention's weights without a call where it may."""

    def __init__(self, dropout):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=dropout, batch_first=True)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("training", [False, True], ids=["evaluated", "trained"])
def test_attention_inside_a_transformer_layer_is_rescaled_as_the_layer_runs_it(training):
    block = Block(dropout=0.5).train(training)
    outputs = []
    torch.manual_seed(1)
    minibatch_init_(block, QUERY)
    attention = block.layer.self_attn
    assert (
        max(misses({name: z for name, z in projections(attention, [QUERY] * 3).items() if name != "output"}).values())
        < 1e-3
    )
    hook = attention.register_forward_hook(lambda *call: outputs.append(call[-1][0].detach()))
    torch.manual_seed(1)
    with torch.set_grad_enabled(training):
        block(QUERY)
    hook.remove()
    assert misses({"output": outputs[0]})["output"] < 1e-3  # with the masks of that call
    assert not attention.out_proj.bias.any()


def test_a_projection_of_zeros_is_left_and_the_others_are_rescaled():
    layer = nn.MultiheadAttention(WIDTH, HEADS, kdim=6, vdim=4, batch_first=True)
    before, bias = layer.k_proj_weight.clone(), layer.in_proj_bias
    nn.init.ones_(bias)
    with pytest.warns(UserWarning, match=r"left as they are: 'k_proj_weight' \(zero inputs\)$"):
        minibatch_init_(layer, QUERY, 0 * OTHER_KEY, OTHER_VALUE)
    assert torch.equal(layer.k_proj_weight, before)
    assert [part.sum() for part in bias.chunk(3)] == [0, WIDTH, 0]
    assert misses(projections(layer, (QUERY, OTHER_KEY, OTHER_VALUE)))["query"] < 1e-3


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_numbers_that_are_not_finite_are_an_error_that_changes_nothing(number):
    layer, spoiled = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), VALUE.clone()
    before = copy.deepcopy(layer.state_dict())
    spoiled[0, 0, 0] = number
    with pytest.raises(ValueError, match=r"those of 'in_proj_weight' are NaN or infinite"):
        minibatch_init_(layer, QUERY, KEY, spoiled)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@kinds
@granularities
@with_and_without_gradients
def test_a_bilinear_layer_has_the_std(kind, granularity, gradients):
    layer, given = nn.Bilinear(WIDTH, 4, 6), (QUERY, tokens(5, 4, 3.0, 4))
    KINDS[kind](layer)

    def product():
        return torch.einsum("bti,oij,btj->bto", given[0], layer.weight.detach(), given[1])

    before = product()
    with rescale_on_first_forward(layer, granularity=granularity), torch.set_grad_enabled(gradients):
        output = layer(*given)
    by_unit = granularity == "unit" or kind in ("wn", "cwn")
    print("std off 1 by", misses({"": product()}, by_unit), "before", misses({"": before}))
    assert misses({"": product()}, by_unit)[""] < 1e-3
    assert misses({"": before})[""] > 0.1  # control
    torch.testing.assert_close(output.detach(), product() + layer.bias.detach())
    assert layer.bias.any() == (kind in ("wn", "cwn"))


def test_products_of_a_zero_sum_bilinear_weight_with_constants_are_rounding():
    layer, outcome = nn.Bilinear(64, 64, 6), new_outcome()
    constrain(layer)
    with rescale_on_first_forward(layer, outcome=outcome):
        layer(torch.full((9, 64), 1 / 3), torch.full((9, 64), 30.0))
    assert outcome.left == {"weight": "preactivations that do not vary"}
