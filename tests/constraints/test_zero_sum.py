import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lcw_lightning import centered_weight_norm, linearly_constrained
from lcw_lightning.theory.zero_sum import project_zero_sum

LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "conv1d": lambda: nn.Conv1d(6, 4, 3),
    "conv2d": lambda: nn.Conv2d(6, 4, 3),
    "conv3d": lambda: nn.Conv3d(6, 4, 2),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "bilinear": lambda: nn.Bilinear(3, 4, 2),
    "transposed1d": lambda: nn.ConvTranspose1d(6, 4, 3),
    "transposed2d": lambda: nn.ConvTranspose2d(6, 4, (3, 2)),
    "transposed3d": lambda: nn.ConvTranspose3d(6, 4, 2),
    "transposed-grouped": lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
    "transposed-depthwise": lambda: nn.ConvTranspose2d(4, 4, 3, groups=4),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def units(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """The numbers of each unit, a row a unit, picked one by one from the documented layout of torch's weights."""
    if not hasattr(layer, "output_padding") or "Transpose" not in str(layer):
        return weight.flatten(1)
    ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    rows = [weight[group * ins : (group + 1) * ins, out] for group in range(layer.groups) for out in range(outs)]
    return torch.stack([row.flatten() for row in rows])


def sums(layer: nn.Module) -> torch.Tensor:
    rows = units(layer, layer.weight.detach())
    return rows.sum(1).abs() / rows.norm(dim=1)


@pytest.mark.parametrize("kind", [name for name in LAYERS if name.startswith("transposed")])
def test_a_transposed_convolution_does_not_see_the_mean_of_its_input(kind):
    layer = LAYERS[kind]()
    ones = torch.ones(1, layer.in_channels, *[5] * len(layer.kernel_size))
    inner = (..., *[slice(size - 1, 5) for size in layer.kernel_size])  # where the whole kernel lies in the input
    shift = layer(ones)[inner] - layer.bias.view(-1, *[1] * len(layer.kernel_size))
    assert shift.abs().max() > 1e-2
    linearly_constrained(layer)
    shift = layer(ones)[inner] - layer.bias.view(-1, *[1] * len(layer.kernel_size))
    assert shift.abs().max() < 1e-6


@layers
def test_each_unit_starts_as_the_projection_of_the_plain_weight(make):
    plain = make()
    layer = linearly_constrained(copy.deepcopy(plain))
    torch.testing.assert_close(units(layer, layer.weight), project_zero_sum(units(plain, plain.weight)))
    assert sums(layer).max() < 1e-6
    assert sums(plain).max() > 1e-2


@layers
def test_it_returns_the_module_and_keeps_the_parameter_object(make):
    layer = make()
    parameter = layer.weight
    assert linearly_constrained(layer) is layer
    assert layer.parametrizations.weight.original is parameter


@layers
def test_the_state_dict_holds_coordinates_and_nothing_more(make):
    layer = linearly_constrained(make())
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}
    weight = layer.weight
    num_units, fan_in = units(layer, weight).shape
    assert layer.parametrizations.weight.original.shape == (num_units, fan_in - 1)


@layers
def test_the_constraint_holds_after_a_step_with_momentum_and_weight_decay(make):
    layer = linearly_constrained(make())
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (layer.weight * torch.randn_like(layer.weight)).sum().backward()
        optimizer.step()
    assert (layer.weight - before).abs().max() > 0.1
    assert sums(layer).max() < 1e-6


@layers
def test_an_assigned_weight_is_projected(make):
    layer = linearly_constrained(make())
    value = torch.randn_like(layer.weight)
    layer.weight = value
    torch.testing.assert_close(units(layer, layer.weight), project_zero_sum(units(layer, value)))


@layers
def test_a_plain_state_dict_loads_strictly(make):
    plain, layer = make(), linearly_constrained(make())
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(units(layer, layer.weight), project_zero_sum(units(plain, plain.weight)))
    assert torch.equal(layer.bias, plain.bias)


@layers
def test_its_own_state_dict_loads_bit_for_bit(make):
    source, layer = linearly_constrained(make()), linearly_constrained(make())
    layer.load_state_dict(source.state_dict())
    assert torch.equal(layer.weight, source.weight)


@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.01}], ids=str)
@pytest.mark.parametrize("fan_in", [2, 7])
def test_sgd_walks_the_path_of_the_centred_gradient_and_of_the_qr_basis(fan_in, kwargs):
    inputs, targets = torch.randn(32, fan_in, dtype=torch.float64), torch.randn(32, 5, dtype=torch.float64)
    plain = nn.Linear(fan_in, 5, dtype=torch.float64)
    layer = linearly_constrained(copy.deepcopy(plain))
    centred = layer.weight.detach().clone().requires_grad_()
    spanning = torch.cat((torch.eye(fan_in - 1), -torch.ones(1, fan_in - 1))).to(torch.float64)
    qr = torch.linalg.qr(spanning).Q
    coordinates = (plain.weight.detach() @ qr).requires_grad_()
    free = layer.weight.detach().clone().requires_grad_()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (torch.sigmoid(inputs @ weight.T) - targets).square().mean()

    optimizer = torch.optim.SGD([layer.parametrizations.weight.original, centred, coordinates, free], lr=0.5, **kwargs)
    for _ in range(50):
        optimizer.zero_grad()
        (loss(layer.weight) + loss(centred) + loss(coordinates @ qr.T) + loss(free)).backward()
        centred.grad = project_zero_sum(centred.grad)
        optimizer.step()

    torch.testing.assert_close(layer.weight, centred)
    torch.testing.assert_close(layer.weight, coordinates @ qr.T)
    assert (layer.weight - free).abs().max() > 1e-3  # the constraint does change the path


def test_weight_decay_shrinks_the_weight_as_it_would_the_plain_one():
    layer = linearly_constrained(nn.Linear(6, 4))
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, weight_decay=0.1)
    (0 * layer.weight).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight, 0.95 * before)


def test_another_parameter_can_be_named():
    layer = nn.LSTM(3, 4)
    assert linearly_constrained(layer, name="weight_hh_l0") is layer
    assert layer.weight_hh_l0.sum(1).abs().max() < 1e-6
    assert layer.weight_ih_l0.sum(1).abs().max() > 1e-2


def test_a_stale_gradient_is_dropped():
    layer = nn.Linear(6, 4)
    layer(torch.ones(1, 6)).sum().backward()
    linearly_constrained(layer)
    assert layer.parametrizations.weight.original.grad is None
    assert layer.bias.grad is not None


def test_the_constrained_layer_can_be_copied_and_printed():
    layer = linearly_constrained(nn.Conv2d(3, 4, 3))
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    assert "ZeroSum(weight_shape=(4, 3, 3, 3))" in repr(layer)


@pytest.mark.parametrize(
    ("layer", "name", "message"),
    [
        pytest.param(
            nn.Linear(1, 4), "weight", r"Linear\.weight of shape \(4, 1\) cannot be .*fan_in 1", id="fan-in-1"
        ),
        pytest.param(
            nn.Conv2d(4, 4, 1, groups=4),
            "weight",
            "cannot be constrained: fan_in 1, for which zero",
            id="depthwise-1x1",
        ),
        pytest.param(nn.Linear(3, 4), "bias", r"Linear\.bias of shape \(4,\) .* fan_in 1", id="bias"),
        pytest.param(
            nn.Linear(3, 4, bias=False), "bias", r"Linear\.bias cannot be constrained: no parameter", id="no-parameter"
        ),
        pytest.param(
            nn.LazyLinear(4), "weight", r"Linear\.weight cannot be constrained: lazy; run one forward first", id="lazy"
        ),
        pytest.param(
            nn.ConvTranspose2d(4, 4, 1, groups=4),
            "weight",
            "cannot be constrained: fan_in 1, for which zero",
            id="transposed-1x1",
        ),
        pytest.param(nn.GRU(1, 4), "weight_ih_l0", r"GRU\.weight_ih_l0 of shape \(12, 1\) .* fan_in 1", id="gate"),
        pytest.param(linearly_constrained(nn.Linear(3, 4)), "weight", "parametrized already by ZeroSum", id="twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("verb", [linearly_constrained, centered_weight_norm])
def test_what_cannot_be_constrained_is_refused_by_name(layer, name, message, verb):
    with pytest.raises(ValueError, match=message):
        verb(layer, name)


@pytest.fixture
def recurrent():
    """An LSTM with both its weights constrained, after a forward pass, and its input."""
    layer, sequence = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    linearly_constrained(layer, "weight_ih_l0")
    linearly_constrained(layer, "weight_hh_l0")
    layer(sequence)
    return layer, sequence


def test_a_recurrent_layer_uses_the_present_weights_at_each_call(recurrent):
    layer, sequence = recurrent
    before = layer(sequence)[0]
    with torch.no_grad():
        layer.parametrizations.weight_hh_l0.original.mul_(2)
    plain = nn.LSTM(3, 4)
    plain.load_state_dict({name: getattr(layer, name).detach() for name in plain.state_dict()})
    assert torch.equal(layer(sequence)[0], plain(sequence)[0])
    assert not torch.equal(layer(sequence)[0], before)


def test_a_recurrent_layer_can_be_copied_after_a_forward_pass(recurrent):
    layer, sequence = recurrent
    twin = copy.deepcopy(copy.deepcopy(layer))
    assert torch.equal(twin(sequence)[0], layer(sequence)[0])
    with torch.no_grad():
        twin.parametrizations.weight_hh_l0.original.zero_()
    assert layer.weight_hh_l0.any()
    layer(sequence)[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original.grad.any()


def test_coordinates_of_another_basis_are_refused_even_without_a_lightning_checkpoint(tmp_path):
    layer = linearly_constrained(nn.Linear(3, 4))
    state = layer.state_dict()
    state._metadata["parametrizations.weight.0"]["version"] = 2
    torch.save({"model": state}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    with pytest.raises(RuntimeError, match=r"the coordinates of '' are in basis version 2"):
        layer.load_state_dict(state)


def test_a_plain_weight_of_another_shape_is_refused():
    layer = linearly_constrained(nn.Conv2d(3, 4, (1, 3)))
    with pytest.raises(RuntimeError, match="loading state_dict"):
        layer.load_state_dict(nn.Conv2d(3, 4, (3, 1)).state_dict())


def test_a_copy_can_be_constrained_further_without_harm_to_its_original():
    layer, sequence = linearly_constrained(nn.LSTM(3, 4), "weight_ih_l0"), torch.randn(5, 2, 3)
    twin = copy.deepcopy(layer)
    linearly_constrained(twin, "weight_hh_l0")
    assert layer(sequence)[0].shape == twin(sequence)[0].shape
    assert twin.weight_hh_l0.sum(1).abs().max() < 1e-6 < layer.weight_hh_l0.sum(1).abs().max()


def test_a_recurrent_layer_with_somebody_elses_parametrization_can_be_copied_too():
    layer, sequence = nn.utils.parametrizations.orthogonal(nn.LSTM(3, 4), "weight_hh_l0"), torch.randn(5, 2, 3)
    linearly_constrained(layer, "weight_ih_l0")
    layer(sequence)
    assert torch.equal(copy.deepcopy(layer)(sequence)[0], layer(sequence)[0])


@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(lambda layer: prune.identity(layer, "weight"), id="prune"),
        pytest.param(nn.utils.spectral_norm, id="spectral_norm"),
    ],
)
def test_a_weight_that_a_hook_computes_is_refused(hook):
    with pytest.raises(ValueError, match=r"Linear\.weight cannot .* a hook that computes it.* must be taken away"):
        linearly_constrained(hook(nn.Linear(3, 4)))


def test_only_an_assignment_writes_into_a_constrained_weight():
    layer = linearly_constrained(nn.Linear(6, 4))
    before = layer.weight.detach().clone()
    nn.init.ones_(layer.weight)
    layer.weight.data.mul_(7)
    assert torch.equal(layer.weight, before)
    layer.weight = 7 * before
    torch.testing.assert_close(layer.weight, 7 * before)
