"""Weight, centered weight and spectral normalization, each against torch's own and its formula, for all layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lcw_lightning import centered_weight_norm
from lcw_lightning.constraints.normalizations import CenteredWeightNorm, SpectralNorm, WeightNorm
from lcw_lightning.constraints.registration import register_constraint

LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "conv2d": lambda: nn.Conv2d(6, 4, 3),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": lambda: nn.Conv1d(4, 4, 3, groups=4),
    "bilinear": lambda: nn.Bilinear(3, 4, 2),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, (3, 2)),
    "transposed-grouped": lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
    "transposed-depthwise": lambda: nn.ConvTranspose3d(4, 4, 2, groups=4),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def units(layer, weight):
    """The numbers of each unit, a row a unit, picked one by one from the documented layout of torch's weights."""
    if "Transpose" not in str(layer):
        return weight.flatten(1)
    ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    rows = [weight[group * ins : (group + 1) * ins, out] for group in range(layer.groups) for out in range(outs)]
    return torch.stack([row.flatten() for row in rows])


def centred(rows):
    return rows - rows.mean(1, keepdim=True)


def randomized(layer):
    """The layer with gains and directions drawn anew, so that nothing of its initial weight helps."""
    with torch.no_grad():
        for original in layer.parametrizations.weight.parameters():
            original.normal_()
    return layer


@layers
def test_each_centred_unit_starts_as_the_projection_of_the_plain_weight(make):
    plain = make()
    layer = copy.deepcopy(plain)
    assert centered_weight_norm(layer) is layer
    torch.testing.assert_close(units(layer, layer.weight), centred(units(plain, plain.weight)))
    norms = centred(units(plain, plain.weight)).norm(dim=1)
    torch.testing.assert_close(layer.parametrizations.weight.original0.flatten(), norms)


@layers
def test_cwn_is_torchs_weight_norm_of_centred_directions(make):
    layer = randomized(centered_weight_norm(make()))
    gains, directions = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    rows = units(layer, directions)
    oracle = parametrizations.weight_norm(nn.Linear(rows.shape[1], len(rows)))
    with torch.no_grad():
        oracle.parametrizations.weight.original0.copy_(gains.view(-1, 1))
        oracle.parametrizations.weight.original1.copy_(centred(rows))
    torch.testing.assert_close(units(layer, layer.weight), oracle.weight)
    assert (units(layer, layer.weight).sum(1).abs() / oracle.weight.norm(dim=1)).max() < 1e-6


@layers
def test_wn_gives_each_unit_the_norm_of_its_gain(make):
    layer = randomized(register_constraint(make(), "weight", WeightNorm))
    rows = units(layer, layer.parametrizations.weight.original1)
    expected = layer.parametrizations.weight.original0.view(-1, 1) * rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(units(layer, layer.weight), expected)


@pytest.mark.parametrize(
    ("make", "dim"),
    [(LAYERS["linear"], 0), (LAYERS["conv2d"], 0), (LAYERS["grouped"], 0), (LAYERS["transposed"], 1)],
    ids=["linear", "conv2d", "grouped", "transposed"],
)
@pytest.mark.parametrize("kind", [WeightNorm, CenteredWeightNorm])
def test_state_dicts_are_those_of_torchs_weight_norm(make, dim, kind):
    layer = register_constraint(make(), "weight", kind)
    theirs = parametrizations.weight_norm(make(), dim=dim)
    layer.load_state_dict(theirs.state_dict())
    expected = units(theirs, theirs.weight)
    if kind is CenteredWeightNorm:
        expected = centred(expected) * (expected.norm(dim=1) / centred(expected).norm(dim=1)).view(-1, 1)
    torch.testing.assert_close(units(layer, layer.weight), expected)
    theirs.load_state_dict(layer.state_dict())  # strict, and back


def test_torchs_own_dimension_would_mix_the_groups_of_a_transposed_convolution():
    theirs = parametrizations.weight_norm(LAYERS["transposed-grouped"](), dim=1)
    assert theirs.parametrizations.weight.original0.numel() == 2  # of four units


@layers
def test_sn_divides_the_matrix_of_units_by_its_largest_singular_value(make):
    plain = make()
    layer = register_constraint(copy.deepcopy(plain), "weight", SpectralNorm)
    for _ in range(200):
        _ = layer.weight  # a step of the power method
    rows = units(plain, plain.weight)
    torch.testing.assert_close(units(layer, layer.weight), rows / torch.linalg.matrix_norm(rows, 2))
    assert torch.linalg.matrix_norm(units(layer, layer.weight), 2).item() == pytest.approx(1, rel=1e-4)
    assert abs(torch.linalg.matrix_norm(rows, 2).item() - 1) > 1e-2


def test_sn_is_torchs_spectral_norm_bit_for_bit():
    ours = register_constraint(nn.ConvTranspose2d(6, 4, 3), "weight", SpectralNorm)
    theirs = parametrizations.spectral_norm(nn.ConvTranspose2d(6, 4, 3))
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.parametrizations.weight[0]._u, theirs.parametrizations.weight[0]._u)


def test_looking_at_a_weight_without_gradients_leaves_its_power_iteration_alone():
    layer = register_constraint(nn.Linear(16, 16), "weight", SpectralNorm)
    theirs = parametrizations.spectral_norm(nn.Linear(16, 16))
    before = [copy.deepcopy(each.parametrizations.weight[0]._u) for each in (layer, theirs)]
    with torch.no_grad():
        assert torch.equal(layer.weight, layer.weight)
        _ = theirs.weight
    moved = [
        not torch.equal(each.parametrizations.weight[0]._u, u) for each, u in zip((layer, theirs), before, strict=True)
    ]
    assert moved == [False, True]
    _ = layer.weight
    assert not torch.equal(layer.parametrizations.weight[0]._u, before[0])


def test_spectral_normalization_takes_nothing_from_the_random_numbers_of_the_run():
    layer = nn.Linear(16, 16)
    twin, state = copy.deepcopy(layer), torch.get_rng_state()
    register_constraint(layer, "weight", SpectralNorm)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    register_constraint(twin, "weight", SpectralNorm)
    assert torch.equal(twin.parametrizations.weight[0]._u, layer.parametrizations.weight[0]._u)
    parametrizations.spectral_norm(nn.Linear(16, 16))
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_zero_weight_has_no_spectral_norm_to_divide_by():
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    with pytest.raises(ValueError, match="zero weights, whose norm cannot be fixed; draw them first"):
        register_constraint(layer, "weight", SpectralNorm)
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("kind", [WeightNorm, CenteredWeightNorm])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_unit_without_a_direction_starts_at_its_value_and_trains(kind, value):
    layer = nn.Linear(300, 3)
    with torch.no_grad():
        layer.weight[1] = value
    register_constraint(layer, "weight", kind)
    expected = value if kind is WeightNorm else 0.0
    torch.testing.assert_close(layer.weight[1], torch.full((300,), expected))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    inputs = torch.rand(8, 300)
    for _ in range(2):
        optimizer.zero_grad()
        (layer(inputs) - 1).square().sum().backward()
        optimizer.step()
    assert layer.weight.isfinite().all()
    assert (layer.weight[1] - expected).abs().max() > 1e-3


def test_without_a_direction_torchs_weight_norm_is_nan():
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.weight)
    assert parametrizations.weight_norm(layer).weight.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_cwn_is_computed_in_float32_at_least_and_rounded_once(dtype):
    layer = centered_weight_norm(nn.Linear(4096, 4).to(dtype))
    precise = centered_weight_norm(nn.Linear(4096, 4).double())
    precise.load_state_dict(layer.state_dict())
    assert layer.weight.dtype == dtype
    assert (precise.weight.sum(1).abs() / precise.weight.norm(dim=1)).max() < 1e-13
    torch.testing.assert_close(layer.weight.double(), precise.weight, rtol=torch.finfo(dtype).eps, atol=4e-8)


def test_weight_decay_shrinks_the_gains():
    layer = centered_weight_norm(nn.Linear(6, 4))
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, weight_decay=0.1)
    (0 * layer.weight).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight, 0.95 * before)


def test_cwn_of_a_recurrent_layer_normalizes_each_gate_row():
    layer = centered_weight_norm(nn.LSTM(3, 4), name="weight_hh_l0")
    assert layer.parametrizations.weight_hh_l0.original0.shape == (16, 1)
    assert layer.weight_hh_l0.sum(1).abs().max() < 1e-6 < layer.weight_ih_l0.sum(1).abs().max()
