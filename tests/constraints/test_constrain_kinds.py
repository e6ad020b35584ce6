"""What all kinds of constraint share: how they go on and come off, load, freeze and copy."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lcw_lightning import centered_weight_norm, constrain, fold, linearly_constrained
from lcw_lightning.checkpoints.all_or_nothing import load_all_or_nothing
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.constraints.fold import remove_constraints_
from lcw_lightning.constraints.kinds import PARAMETRIZATIONS
from lcw_lightning.constraints.registration import register_constraint

kinds = pytest.mark.parametrize("kind", PARAMETRIZATIONS)
ORIGINALS = {"lcw": ["original"], "cwn": ["original0", "original1"], "wn": ["original0", "original1"]}
ORIGINALS["sn"] = ["original", "0._u", "0._v"]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, images):
        return self.head(self.norm(self.up(self.conv(images))).amax((2, 3)))


ALL = ["conv.weight", "up.weight", "head.weight"]
IMAGES = torch.randn(4, 3, 8, 8)


def trained(kind):
    """A network that has taken three steps under the constraint."""
    network = Network()
    constrain(network, kind)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        network(IMAGES).square().mean().backward()
        optimizer.step()
    return network


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())


@kinds
def test_all_weights_are_constrained_named_and_trained(kind):
    network = Network()
    assert constrain(network, kind) == ALL
    assert constrained_weights(network) == dict.fromkeys(ALL, kind)
    assert constrain(network, kind) == ALL  # again: nothing to do
    keys = [f"head.parametrizations.weight.{original}" for original in ORIGINALS[kind]]
    assert [key for key in network.state_dict() if "head.param" in key] == keys
    before = copy.deepcopy(network.state_dict())
    after = trained(kind).state_dict()
    assert not any(torch.equal(before[key], after[key]) for key in keys)


@kinds
def test_folding_a_training_network_gives_a_plain_one_with_the_outputs_of_evaluation(kind):
    network = trained(kind)
    state = copy.deepcopy(network.state_dict())
    folded = fold(network).eval()
    assert network.training
    assert same(network.state_dict(), state)
    assert list(folded.state_dict()) == list(Network().state_dict())
    assert type(folded.conv) is nn.Conv2d
    assert torch.equal(folded(IMAGES), network.eval()(IMAGES))
    content = pickle.dumps(folded.head)
    assert b"lcw_lightning" not in content


@kinds
def test_removing_constraints_keeps_weights_what_trains_and_what_is_frozen(kind):
    network = Network()
    constrain(network, kind)
    network.conv.requires_grad_(False)
    network.eval()
    weights = [network.conv.weight.detach().clone(), network.head.weight.detach().clone()]
    remove_constraints_(network)
    assert constrained_weights(network) == {}
    assert set(dict(network.named_parameters())) == set(dict(Network().named_parameters()))
    assert torch.equal(network.conv.weight, weights[0])
    assert torch.equal(network.head.weight, weights[1])
    assert [network.conv.weight.requires_grad, network.head.weight.requires_grad] == [False, True]
    network.load_state_dict(Network().state_dict())


@kinds
def test_frozen_weights_stay_frozen_in_all_their_parts(kind):
    network = Network()
    network.conv.weight.requires_grad_(False)
    register_constraint(network.conv, "weight", PARAMETRIZATIONS[kind])
    assert constrain(network, kind) == ALL
    assert [p.requires_grad for p in network.conv.parametrizations.parameters()] == [
        False for name in ORIGINALS[kind] if not name.startswith("0.")
    ]
    assert all(p.requires_grad for p in network.head.parameters())
    folded = fold(network)
    assert not folded.conv.weight.requires_grad
    assert folded.head.weight.requires_grad


@kinds
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_plain_state_dict_loads_strictly_as_if_it_were_constrained_then(kind, assign):
    plain, network = Network(), trained(kind)
    network.load_state_dict(plain.state_dict(), assign=assign)
    expected = copy.deepcopy(plain)
    constrain(expected, kind)
    assert network.state_dict().keys() == expected.state_dict().keys()
    for one, other in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(network.eval()(IMAGES), expected.eval()(IMAGES))


@kinds
def test_its_own_state_dict_loads_bit_for_bit(kind):
    source, network = trained(kind), Network()
    constrain(network, kind)
    network.load_state_dict(source.state_dict())
    assert torch.equal(network.eval()(IMAGES), source.eval()(IMAGES))


@pytest.mark.parametrize(
    ("kind", "other"),
    [("lcw", "cwn"), ("lcw", "sn"), ("sn", "lcw"), ("sn", "wn"), ("cwn", "sn"), ("wn", "lcw")],
)
def test_a_state_dict_of_another_kind_changes_nothing(kind, other):
    network, source = trained(kind), trained(other)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match="does not fit Network, and nothing of it was loaded"):
        load_all_or_nothing(network, network.load_state_dict, source.state_dict())
    assert same(network.state_dict(), before)


@kinds
def test_an_assigned_weight_is_what_the_constraint_can_hold_of_it(kind):
    network, plain = trained(kind), Network()
    network.up.weight = plain.up.weight.detach().clone()
    constrain(plain, kind)
    if kind == "sn":  # the power method follows with use
        for _ in range(300):
            _ = network.up.weight, plain.up.weight
    torch.testing.assert_close(network.up.weight, plain.up.weight, rtol=1e-4, atol=1e-4)


@kinds
def test_copies_are_independent(kind):
    network = trained(kind)
    twin = copy.deepcopy(network)
    assert same(twin.state_dict(), network.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
    fold(twin)  # takes nothing away from the class that copies share
    remove_constraints_(fold(twin))
    assert network.head.weight.shape == (10, 6)
    assert not torch.equal(network.head.weight, twin.head.weight)


@kinds
def test_a_recurrent_layer_trains_folds_and_copies_after_a_forward_pass(kind):
    layer, sequence = nn.LSTM(3, 4, num_layers=2, bidirectional=True), torch.randn(5, 2, 3)
    plain_keys = list(layer.state_dict())
    assert len(constrain(layer, kind)) == 8
    layer(sequence)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    layer.eval()
    expected = layer(sequence)[0]
    assert torch.equal(copy.deepcopy(layer)(sequence)[0], expected)
    assert torch.equal(fold(layer)(sequence)[0], expected)
    assert list(fold(layer).state_dict()) == plain_keys


@kinds
def test_attention_is_constrained_in_its_projections(kind):
    layer, sequence = nn.MultiheadAttention(8, 2), torch.randn(5, 2, 8)
    assert constrain(layer, kind) == ["in_proj_weight", "out_proj.weight"]
    layer.eval()
    outputs = [module(sequence, sequence, sequence)[0] for module in (layer, fold(layer).eval())]
    torch.testing.assert_close(*outputs)


@kinds
def test_a_module_on_the_meta_device_is_constrained_and_filled_later(kind):
    source = trained(kind)
    with torch.device("meta"):
        network = Network()
        constrain(network, kind)
    network.to_empty(device="cpu")
    network.load_state_dict(source.state_dict())
    assert torch.equal(network.eval()(IMAGES), source.eval()(IMAGES))


@kinds
def test_a_second_kind_is_refused_with_the_way_out(kind):
    network, other = Network(), "lcw" if kind != "lcw" else "cwn"
    constrain(network.head, other)
    before = list(network.state_dict())
    with pytest.raises(ValueError, match=rf"'head\.weight' are under {other} already; take a fresh module or fold"):
        constrain(network, kind)
    assert list(network.state_dict()) == before
    assert constrain(network, kind, exclude=["head.*"]) == ALL[:2]


@kinds
def test_somebody_elses_parametrization_is_left_out_and_said(kind):
    network = Network()
    nn.utils.parametrizations.weight_norm(network.head)
    with pytest.warns(UserWarning, match=r"left out: 'head\.weight' \(parametrized already by _WeightNorm\)"):
        assert constrain(network, kind) == ALL[:2]
    assert type(network.head.parametrizations.weight[0]).__name__ == "_WeightNorm"


@kinds
def test_somebody_elses_normalization_is_not_taken_for_ours(kind):
    network = Network()
    nn.utils.parametrizations.weight_norm(network.head)
    nn.utils.parametrizations.spectral_norm(network.conv)
    constrain(network, kind, include=["up.*"])
    assert constrained_weights(network) == {"up.weight": kind}


def test_a_zero_weight_cannot_be_spectrally_normalized_and_is_left_out():
    network = Network()
    nn.init.zeros_(network.head.weight)
    with pytest.warns(UserWarning, match=r"left out: 'head\.weight' \(zero weights, whose norm cannot be fixed"):
        assert constrain(network, "sn") == ALL[:2]
    assert constrain(network, "sn", exclude=["head.*"]) == ALL[:2]


@pytest.mark.parametrize(("kind", "sums"), [("lcw", True), ("cwn", True), ("wn", False), ("sn", False)])
def test_fan_in_1_is_left_alone_where_units_sum_to_zero(kind, sums):
    network = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 2))
    if sums:
        with pytest.warns(UserWarning, match=r"1 of 2 weights, .* left out: '0\.weight' \(fan_in 1, for which zero"):
            assert constrain(network, kind) == ["1.weight"]
    else:
        assert constrain(network, kind) == ["0.weight", "1.weight"]
        assert network(torch.ones(1, 1)).isfinite().all()


@pytest.mark.parametrize("verb", [linearly_constrained, centered_weight_norm])
def test_only_one_tensor_keeps_the_parameter_that_an_optimizer_holds(verb):
    layer = nn.Linear(6, 4)
    parameter = layer.weight
    verb(layer)
    held = list(layer.parametrizations.weight.parameters())
    assert (held[0] is parameter) == (verb is linearly_constrained)
    assert len(held) == (1 if verb is linearly_constrained else 2)
