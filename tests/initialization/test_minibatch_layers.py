"""Minibatch initialization of layers that draw random numbers, return tuples, take keywords or are never called."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lcw_lightning import fold, minibatch_init_
from lcw_lightning.initialization.minibatch import new_outcome, rescale_on_first_forward
from tests.kinds import KINDS

HAVE_GAINS = KINDS["cwn"], KINDS["wn"]
kinds = pytest.mark.parametrize("constrained", KINDS.values(), ids=KINDS)
granularities = pytest.mark.parametrize("granularity", ["layer", "unit"])
with_and_without_gradients = pytest.mark.parametrize("gradients", [False, True], ids=["without", "with"])
TOKENS = torch.randn(8, 5, 12, generator=torch.Generator().manual_seed(0))


def check_std(z, constrained, granularity):
    """Look whether the std is 1: of each unit, or of all."""
    by_unit = granularity == "unit" or constrained in HAVE_GAINS
    std = z.flatten(0, -2).std(0, correction=0) if by_unit else z.std(correction=0)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-3, atol=0)


class Noisy(nn.Linear):
    """Drops inputs itself, and counts its calls."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls = self.calls + 1
        return super().forward(functional.dropout(inputs, 0.5))


@kinds
@granularities
@with_and_without_gradients
def test_a_layer_with_randomness_of_its_own_sees_the_same_numbers_twice_and_moves_the_stream_once(
    constrained, granularity, gradients
):
    network = nn.Sequential(Noisy(12, 6), nn.Dropout(0.5))
    constrained(network)
    torch.manual_seed(3)
    copy.deepcopy(network)(TOKENS)
    stream = torch.get_rng_state()
    torch.manual_seed(3)
    with rescale_on_first_forward(network, granularity=granularity), torch.set_grad_enabled(gradients):
        output = network(TOKENS)
    assert torch.equal(torch.get_rng_state(), stream)
    assert network[0].calls == 1
    torch.manual_seed(3)  # a run after the initialization, with the same numbers
    torch.testing.assert_close(network(TOKENS), output)
    torch.manual_seed(3)
    z = network[0](TOKENS) - network[0].bias
    check_std(z, constrained, granularity)


class WithTuple(nn.Linear):
    """Returns its output and something else."""

    def forward(self, inputs):
        return super().forward(inputs), {"bias": self.bias}


class Words(nn.Linear):
    """Takes its input by keyword, after an argument that is no tensor."""

    def forward(self, scale, *, tokens):
        return super().forward(scale * tokens)


class Calls(nn.Module):
    def __init__(self, layer, *args, **kwargs):
        super().__init__()
        self.layer, self.args, self.kwargs = layer, args, kwargs

    def forward(self, tokens):
        kwargs = {key: tokens if value is None else value for key, value in self.kwargs.items()}
        output = self.layer(*(tokens if value is None else value for value in self.args), **kwargs)
        return output[0] if isinstance(output, tuple) else output


CALLS = {
    "tuple": lambda: Calls(WithTuple(12, 6), None),
    "keyword": lambda: Calls(nn.Linear(12, 6), input=None),
    "keyword of its own": lambda: Calls(Words(12, 6), 2, tokens=None),
}


@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS)
@kinds
@granularities
@with_and_without_gradients
def test_layers_that_return_tuples_or_take_keywords_are_rescaled(make, constrained, granularity, gradients):
    network = make()
    constrained(network)
    with rescale_on_first_forward(network, granularity=granularity) as waiting, torch.set_grad_enabled(gradients):
        output = network(TOKENS)
    assert not waiting
    torch.testing.assert_close(output, network(TOKENS), rtol=1e-4, atol=1e-5)
    check_std(network(TOKENS), constrained, granularity)


class Attention(nn.Module):
    """Reads the weight of its first layer without a call, as BEiT, EVA and Swin Transformer V2 do."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 18, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(6))
        self.out = nn.Linear(6, 12)

    def forward(self, tokens):
        bias = torch.cat((self.q_bias, torch.zeros(12)))
        q, k, v = functional.linear(input=tokens, weight=self.qkv.weight, bias=bias).chunk(3, -1)
        return self.out(functional.scaled_dot_product_attention(q, k, v))


def attention(constrained):
    torch.manual_seed(1)
    network = Attention()
    constrained(network)
    return network


@kinds
@granularities
@with_and_without_gradients
def test_a_weight_that_is_read_without_a_call_of_its_layer_is_rescaled(constrained, granularity, gradients):
    network = attention(constrained)
    expected = minibatch_init_(copy.deepcopy(fold(network).qkv), TOKENS, granularity=granularity)
    with rescale_on_first_forward(network, granularity=granularity) as waiting, torch.set_grad_enabled(gradients):
        output = network(TOKENS)
    assert not waiting
    torch.testing.assert_close(output, network(TOKENS))
    if constrained not in HAVE_GAINS:  # they have a factor for each unit
        torch.testing.assert_close(fold(network).qkv.weight, expected.weight)
    check_std(functional.linear(TOKENS, network.qkv.weight), constrained, granularity)


@kinds
def test_its_gradients_are_those_of_the_rescaled_weight(constrained):
    network = attention(constrained)
    with rescale_on_first_forward(network):
        network(TOKENS).square().mean().backward()
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    network(TOKENS).square().mean().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


@kinds
def test_under_activation_checkpointing_it_is_rescaled_or_named_but_never_missed(constrained):
    network, outcome = attention(constrained), new_outcome()
    with rescale_on_first_forward(network, outcome=outcome):
        checkpoint(network, TOKENS, use_reentrant=False).square().mean().backward()
    left = {} if constrained in (KINDS["none"], KINDS["project"]) else {"qkv.weight": "its layer was not called"}
    assert outcome.left == left
    assert network.q_bias.grad.isfinite().all()


def test_a_slice_of_a_weight_is_not_taken_for_it_but_named():
    class Sliced(Attention):
        def forward(self, tokens):
            return self.out(functional.linear(tokens, self.qkv.weight[:6]))

    network = Sliced()
    before = network.qkv.weight.clone()
    with pytest.warns(UserWarning, match=r"left as they are: 'qkv\.weight' \(its layer was not called\)"):
        minibatch_init_(network, TOKENS)
    assert torch.equal(network.qkv.weight, before)


def test_a_layer_that_is_called_later_is_not_rescaled_for_a_look_at_its_weight():
    class Looking(nn.Sequential):
        def forward(self, tokens):
            self.penalty = self[0].weight.square().sum()
            return super().forward(tokens)

    network = Looking(nn.Linear(12, 6))
    minibatch_init_(network, TOKENS)
    assert network(TOKENS).std(correction=0).item() == pytest.approx(1, rel=1e-3)
