"""A constrained module under the rest of torch: transforms, compilation, precision, devices, copies."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from lcw_lightning import centered_weight_norm, constrain, fold, linearly_constrained


def network(dtype=torch.float32):
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(100, 3)
    return nn.Sequential(*layers).to(dtype)


def constrained(dtype=torch.float32, kind="lcw"):
    model = network(dtype)
    constrain(model, kind)
    return model


kinds = pytest.mark.parametrize("kind", ["lcw", "cwn"])


def inputs(dtype=torch.float32):
    return torch.randn(5, 3, 6, 6, dtype=dtype)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


class Body(nn.Module):
    """Has a forward of its own: torch 2.6 compiles no module that is made of torch's own code alone."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])
def test_it_compiles_into_one_graph_with_the_same_values_and_gradients(kind):
    torch.compiler.reset()
    model, images = Body(constrained(kind=kind)), inputs()
    model.eval()  # spectral normalization changes its weight in training
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(images)
    torch.testing.assert_close(compiled(images), expected)
    for ours, theirs in zip(
        gradients(model, compiled(images).square().sum()), gradients(model, expected.square().sum()), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own jvp uses it
@kinds
def test_functional_calls_and_their_transforms_see_the_coordinates(kind):
    model, images = constrained(kind=kind).double(), inputs(torch.float64)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, image.unsqueeze(0)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    summed = gradients(model, model(images).square().sum())
    for each, total in zip(per_sample.values(), summed, strict=True):
        torch.testing.assert_close(each.sum(0), total)

    tangents = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    _, slope = torch.func.jvp(lambda values: loss(values, images[0]), (parameters,), (tangents,))
    gradient = torch.func.grad(loss)(parameters, images[0])
    torch.testing.assert_close(slope, sum((gradient[name] * tangents[name]).sum() for name in gradient))


@kinds
def test_activation_checkpointing_gives_the_same_gradients(kind):
    model, images = constrained(kind=kind), inputs()
    expected = gradients(model, model(images).square().sum())
    recomputed = gradients(model, checkpoint(model, images, use_reentrant=False).square().sum())
    assert all(torch.equal(one, other) for one, other in zip(expected, recomputed, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_weight_is_computed_in_float32_at_least_and_rounded_once(residual, dtype):
    layer = linearly_constrained(nn.Linear(4096, 4).to(dtype))
    precise = linearly_constrained(nn.Linear(4096, 4).double())
    with torch.no_grad():
        precise.parametrizations.weight.original.copy_(layer.parametrizations.weight.original)
    assert layer.weight.dtype == dtype
    assert residual(precise) < 1e-14
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(layer.weight.double(), precise.weight, rtol=unit, atol=4e-8)


@pytest.mark.parametrize("verb", [linearly_constrained, centered_weight_norm])
def test_under_autocast_the_weight_is_computed_in_full_precision(residual, verb):
    layer = verb(nn.Linear(4096, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert residual(layer) < 2e-6
        assert layer(torch.randn(2, 4096)).dtype == torch.bfloat16


def test_a_module_on_the_meta_device_is_constrained_and_filled_later():
    source = constrained()
    with torch.device("meta"):
        model = network()
        constrain(model)
    assert model[0].weight.shape == (4, 3, 3, 3)
    model.to_empty(device="cpu")
    model.load_state_dict(source.state_dict())
    assert torch.equal(model[0].weight, source[0].weight)


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_plain_state_dict_loads_by_copy_and_by_assignment(residual, assign):
    model, plain = constrained(), network()
    model.load_state_dict(plain.state_dict(), assign=assign)
    model(inputs()).sum().backward()
    assert isinstance(model[0].parametrizations.weight.original, nn.Parameter)
    assert residual(model[0]) < 1e-6
    centred = plain[0].weight.flatten(1) - plain[0].weight.flatten(1).mean(1, keepdim=True)
    torch.testing.assert_close(model[0].weight.flatten(1), centred)


def test_copies_are_independent_and_train():
    model = constrained()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert model[0].weight.any()
    fold(twin)  # takes nothing away from the class that copies share
    assert model[0].weight.any()
    assert twin[0].weight.shape == model[0].weight.shape


@kinds
def test_an_averaged_model_holds_zero_sum_weights(residual, kind):
    model = constrained(kind=kind)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(inputs()).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
    assert residual(average.module[0]) < 1e-6
    assert not torch.equal(average.module[0].weight, model[0].weight)


@kinds
def test_changing_precision_and_freezing_work_as_for_any_module(kind):
    model = constrained(kind=kind)
    model.double()
    assert model[0].weight.dtype == torch.float64
    model.requires_grad_(False)
    assert not model(inputs(torch.float64)).requires_grad


@kinds
def test_a_cached_weight_gives_the_same_gradients(kind):
    model, images = constrained(kind=kind), inputs()
    expected = gradients(model, model(images).square().sum())
    with parametrize.cached():
        cached = gradients(model, model(images).square().sum())
    for ours, theirs in zip(cached, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_modules_are_refused_by_name_until_one_forward_has_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"takes no weight: '0\.weight', '2\.weight' \(lazy; run one forward first\)"):
        constrain(model)
    model(inputs())
    assert constrain(model) == ["0.weight", "2.weight"]


def test_a_shared_module_is_constrained_once_and_stays_shared():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Sigmoid(), shared)
    assert constrain(model) == ["0.weight"]
    assert model[0] is model[2]
    folded = fold(model)
    assert folded[0] is folded[2]
    assert torch.equal(folded(torch.ones(1, 4)), model(torch.ones(1, 4)))


@kinds
def test_it_adds_no_buffer_that_ranks_would_have_to_exchange(kind):
    model = constrained(kind=kind)
    assert not list(model.buffers())


def test_a_folded_convolution_fuses_with_its_batch_norm():
    model = nn.Sequential(linearly_constrained(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    fused = fuse_conv_bn_eval(fold(model)[0], model[1])
    images = inputs()
    torch.testing.assert_close(fused(images), model(images))
