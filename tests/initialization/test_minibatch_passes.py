"""How often minibatch initialization runs each layer, what layers send meanwhile, and what it leaves for training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lcw_lightning import constrain, fold, minibatch_init_
from lcw_lightning.initialization.minibatch import rescale_on_first_forward
from tests.kinds import KINDS

kinds = pytest.mark.parametrize("kind", KINDS)
with_and_without_gradients = pytest.mark.parametrize("gradients", [False, True], ids=["without", "with"])
IMAGES = torch.rand(16, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(kind="none"):
    """Convolutions, one without bias, a grouped transposed one, and a linear layer, each a child of the chain."""
    torch.manual_seed(0)
    chain = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, groups=2, bias=False), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 6, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(294, 5)),
    ).double()
    KINDS[kind](chain)
    return chain


class Products(TorchDispatchMode):
    """Counts convolutions and products with a bias."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.addmm)
        return function(*args, **(kwargs or {}))


@kinds
def test_without_gradients_each_layer_runs_once(kind):
    with Products() as products:
        minibatch_init_(network(kind), IMAGES)
    assert products.number == 4


def test_with_gradients_each_layer_runs_twice():
    model = network()
    with Products() as products, rescale_on_first_forward(model):
        model(IMAGES)
    assert products.number == 8


class Recorded(TorchFunctionMode):
    """Keeps what Linear layers compute for the backward pass, with the number of writes in place so far."""

    def __init__(self):
        super().__init__()
        self.outputs = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is nn.functional.linear and output.requires_grad:
            self.outputs.append((output, output._version))
        return output


@pytest.mark.parametrize("shape", [(16, 8), (4, 5, 8), (2, 3, 5, 8)], ids=["vectors", "sequences", "grids"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_recorded_tensor_is_changed_in_place(shape, dtype):
    chain = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).to(dtype)
    with Recorded() as recorded, rescale_on_first_forward(chain):
        z = chain(torch.randn(shape).to(dtype))
    assert [output._version - before for output, before in recorded.outputs] == [0, 0]
    assert z.dtype == dtype


def test_gradients_are_those_at_the_rescaled_weights():
    chain = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()
    inputs = torch.randn(4, 5, 8, dtype=torch.float64)
    with rescale_on_first_forward(chain):
        chain(inputs).square().sum().backward()
    rescaled = copy.deepcopy(chain)
    wanted = torch.autograd.grad(rescaled(inputs).square().sum(), list(rescaled.parameters()))
    for parameter, gradient in zip(chain.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def unit_slices(layer):
    """The index of each unit in the layer's weight."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return [(unit,) for unit in range(len(layer.weight))]
    fan_in, units = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return [
        (slice(group * fan_in, (group + 1) * fan_in), unit) for group in range(layer.groups) for unit in range(units)
    ]


@torch.no_grad()
def initialized_unit_by_unit(plain, x, kind, granularity):
    """What the paper, and Salimans & Kingma, say, in as many words: run, look, rescale, run again."""
    for layer in plain:
        if hasattr(layer, "weight"):
            if layer.bias is not None:
                layer.bias.zero_()
            z = layer(x).movedim(1, 0).flatten(1)
            has_gains = kind in ("cwn", "wn")
            for unit, index in enumerate(unit_slices(layer)):
                values = z[unit] if granularity == "unit" or has_gains else z
                std = (values - values.mean()).square().mean().sqrt()
                layer.weight[index] /= std
                if has_gains and layer.bias is not None:
                    layer.bias[unit] = -values.mean() / std
        x = layer(x)
    return plain


@kinds
@pytest.mark.parametrize("granularity", ["layer", "unit"])
@with_and_without_gradients
def test_weights_and_biases_are_those_of_two_passes_a_layer(kind, granularity, gradients):
    model = network(kind)
    expected = initialized_unit_by_unit(fold(model), IMAGES, kind, granularity)
    if gradients:
        with rescale_on_first_forward(model, granularity=granularity):
            model(IMAGES)
    else:
        minibatch_init_(model, IMAGES, granularity=granularity)
    torch.testing.assert_close(fold(model).state_dict(), expected.state_dict(), rtol=1e-10, atol=1e-12)


@kinds
def test_training_starts_bit_for_bit_where_the_function_ends(kind):
    model, other, images = network(kind).float(), network(kind).float(), IMAGES.float()
    minibatch_init_(model, images)
    with rescale_on_first_forward(other):
        other(images)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def gradients_of(model, run):
    run(model).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def rescaled_while(run, kind="lcw"):
    """A network that ``run`` rescales, and the gradients of that run."""
    model = network(kind)
    with rescale_on_first_forward(model):
        return model, gradients_of(model, run)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["none", "lcw", "cwn"])
def test_checkpointed_training_gets_the_gradients_of_the_rescaled_network(reentrant, kind):
    images = IMAGES.clone().requires_grad_()
    model, found = rescaled_while(lambda model: checkpoint(model, images, use_reentrant=reentrant), kind)
    model.zero_grad()
    torch.testing.assert_close(found, gradients_of(model, lambda model: model(IMAGES)))
    before = gradients_of(network(kind), lambda model: model(IMAGES))
    assert not torch.allclose(found["7.bias"], before["7.bias"])


@pytest.mark.parametrize("kind", ["lcw", "cwn"])
def test_a_weight_that_parametrize_has_cached_is_not_used_again(kind):
    def run(model):
        with parametrize.cached():
            return model(IMAGES)

    model, found = rescaled_while(run, kind)
    model.zero_grad()
    torch.testing.assert_close(found, gradients_of(model, lambda model: model(IMAGES)))


@with_and_without_gradients
@pytest.mark.parametrize("kind", ["none", "lcw", "wn"])
def test_hooks_of_others_act_once_and_see_the_rescaled_preactivation(gradients, kind):
    layer, seen, given = network(kind)[:1], [], []
    layer[0].register_forward_pre_hook(lambda layer, args: (given.append(args), 3 * args[0])[1])
    layer[0].register_forward_hook(lambda layer, args, output: seen.append(output.clone()))
    layer[0].register_forward_hook(lambda layer, args, output: seen.append(output.clone()), prepend=True)
    with rescale_on_first_forward(layer), torch.set_grad_enabled(gradients):
        layer[0].register_forward_hook(lambda layer, args, output: seen.append(output.clone()))
        layer(IMAGES)
    assert len(given) == 1
    expected = fold(layer)[0].forward(3 * IMAGES)
    assert len(seen) == 3
    for output in seen:
        torch.testing.assert_close(output, expected)


class Saturating(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).tanh()


def with_a_frozen_bias():
    layer = nn.Linear(6, 6)
    layer.bias.requires_grad_(False).fill_(2.0)
    return layer


def with_another_forward():
    layer = nn.Linear(6, 6)
    layer.forward = lambda inputs: nn.functional.linear(inputs, layer.weight, layer.bias).tanh()
    return layer


class TimesNorm(nn.Module):
    """Twice the original is four times the weight, which sums to zero if the original does."""

    def forward(self, original):
        return original * original.norm()

    def right_inverse(self, weight):
        return weight / weight.norm().sqrt()


def with_two_parametrizations():
    layer = nn.Linear(6, 6)
    constrain(layer)
    parametrize.register_parametrization(layer, "weight", TimesNorm())
    return layer


ODD_LAYERS = [lambda: Saturating(6, 6), with_a_frozen_bias, with_another_forward, with_two_parametrizations]


@pytest.mark.parametrize("make", ODD_LAYERS, ids=["subclass", "frozen-bias", "other-forward", "two-parametrizations"])
@with_and_without_gradients
def test_behind_a_layer_that_is_not_multiplied_like_its_weight_preactivations_have_the_target_std(make, gradients):
    model, inputs = nn.Sequential(make(), nn.ReLU(), nn.Linear(6, 6)), torch.randn(64, 6)
    with rescale_on_first_forward(model), torch.set_grad_enabled(gradients):
        output = model(inputs)
    assert model(inputs).std(correction=0).item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(output, model(inputs))


@kinds
def test_under_autocast_a_layer_sends_what_it_would_compute_up_to_rounding(kind):
    layer, images = network(kind)[:1].float(), IMAGES.float()
    with torch.autocast("cpu", torch.bfloat16), rescale_on_first_forward(layer), torch.no_grad():
        output = layer(images)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), copy.deepcopy(layer)(images), rtol=0.03, atol=0.05)


def test_training_under_autocast_gets_the_gradients_of_the_rescaled_weight_and_not_of_a_cached_one():
    layer, images = network()[:1].float(), IMAGES.float()
    with torch.autocast("cpu", torch.bfloat16), rescale_on_first_forward(layer):
        layer(images).sum().backward()
        found = layer[0].weight.grad.clone()
        again = layer(images)
    layer.zero_grad()
    layer(images).sum().backward()
    torch.testing.assert_close(found, layer[0].weight.grad, rtol=0.05, atol=1)
    torch.testing.assert_close(again.float(), layer(images), rtol=0.03, atol=0.05)


def test_an_output_that_belongs_to_the_layer_is_not_written_to():
    class Remembering(nn.Linear):
        def forward(self, inputs):
            if not hasattr(self, "first"):
                self.first = super().forward(inputs)
            return self.first

    layer, inputs = Remembering(4, 4), torch.randn(32, 4)
    expected = nn.functional.linear(inputs, layer.weight)
    with pytest.warns(UserWarning, match=r"'0\.weight' \(scaling it leaves the layer's output unchanged\)"):
        minibatch_init_(nn.Sequential(layer, nn.Linear(4, 4)), inputs)
    torch.testing.assert_close(layer.first, expected)


@with_and_without_gradients
def test_no_hook_is_left_whether_a_layer_was_reached_or_not_or_refused(gradients):
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])

    def refused():
        with rescale_on_first_forward(model), torch.set_grad_enabled(gradients):
            model[0](torch.randn(8, 4))
            model[1](torch.full((8, 4), torch.inf))

    with pytest.raises(ValueError, match=r"those of '1\.weight' are NaN or infinite"):
        refused()
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model)


def test_a_layer_waits_while_a_transform_of_torch_func_calls_it():
    layer, inputs = nn.Linear(8, 6), torch.randn(16, 8)
    before = layer.weight.detach().clone()
    with rescale_on_first_forward(layer) as waiting:
        torch.func.vmap(layer)(inputs)
        assert list(waiting) == ["weight"]
        assert torch.equal(layer.weight, before)
        layer(inputs)
    assert layer(inputs).std(correction=0).item() == pytest.approx(1, abs=1e-5)
