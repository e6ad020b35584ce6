import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lcw_lightning import constrain, fold, linearly_constrained
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.constraints.fold import remove_constraints_


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        return self.head(self.norm(self.depthwise(self.conv(images))).amax((2, 3)))


ALL = ["conv.weight", "depthwise.weight", "head.weight"]


def residuals(model):
    return {
        name: (module.weight.flatten(1).sum(1).abs() / module.weight.flatten(1).norm(dim=1)).max().item()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


@pytest.mark.parametrize("write", [nn.init.xavier_uniform_, lambda weight: weight.data.mul_(2)], ids=["draw", "data"])
def test_a_write_into_a_weight_that_is_computed_is_lost_while_an_assignment_holds(write):
    network, plain = Network(), Network()
    constrain(network)
    for head, is_lost in ((network.head, True), (plain.head, False)):
        before = head.weight.detach().clone()
        write(head.weight)
        assert torch.equal(head.weight, before) == is_lost
    drawn = torch.randn_like(before)
    network.head.weight = drawn
    torch.testing.assert_close(network.head.weight, drawn - drawn.mean(1, keepdim=True))


def test_all_weights_are_constrained_and_named():
    network = Network()
    assert constrain(network) == ALL
    assert all(residual < 1e-6 for residual in residuals(network).values())
    assert constrained_weights(network) == dict.fromkeys(ALL, "lcw")


def test_excluded_weights_are_left_alone():
    network, plain = Network(), None
    plain = copy.deepcopy(network)
    assert constrain(network, exclude=["head.*"]) == ALL[:2]
    assert torch.equal(network.head.weight, plain.head.weight)
    assert residuals(network)["head"] > 1e-2


def test_a_second_call_changes_nothing():
    network = Network()
    constrain(network)
    state = copy.deepcopy(network.state_dict())
    assert constrain(network) == ALL
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert len(network.conv.parametrizations.weight) == 1


def test_kind_none_leaves_the_model_plain():
    network = Network()
    assert constrain(network, "none") == []
    assert constrained_weights(network) == {}


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"kind is one of 'none', 'lcw', 'cwn', 'wn', 'sn'; got 'lwc', near it is 'lcw'"
    ):
        constrain(Network(), "lwc")


def test_fan_in_1_is_skipped_and_reported():
    network = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"1 of 2 weights, .* left out: '0\.weight' \(fan_in 1, for which zero"):
        assert constrain(network) == ["1.weight"]


def tied():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    return network


def tied_to_an_embedding():
    network = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 7)})
    network["head"].weight = network["embedding"].weight
    return network


def pruned():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    prune.identity(network[1], "weight")
    return network


def parametrized():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.utils.parametrizations.orthogonal(network[1])
    return network


def frozen():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].requires_grad_(False)
    return network


def unknown():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 4))

    return nn.Sequential(nn.Linear(4, 4), Scale())


OBSTACLES = pytest.mark.parametrize(
    ("make", "pattern", "obstacle"),
    [
        pytest.param(tied_to_an_embedding, "head.*", r"tied to 'embedding\.weight'", id="tied-to-embedding"),
        pytest.param(pruned, "1.weight", "no parameter; a hook that computes it", id="pruned"),
        pytest.param(parametrized, "1.weight", "parametrized already by _Orthogonal", id="parametrized"),
        pytest.param(frozen, "1.weight", "frozen", id="frozen"),
        pytest.param(unknown, "1.matrix", "unknown layer type; see register_layer_type", id="unknown-type"),
    ],
)


@OBSTACLES
def test_what_cannot_be_constrained_is_left_as_it_is_and_said_once(make, pattern, obstacle):
    network = make()
    before = copy.deepcopy(network.state_dict())
    with pytest.warns(UserWarning, match=rf"lcw: 1 of 2 weights, .* left out: '.*' \({obstacle}") as caught:
        (constrained,) = constrain(network)
    assert len(caught) == 1
    untouched = {key: value for key, value in before.items() if not key.startswith(constrained.partition(".")[0])}
    assert untouched
    assert all(torch.equal(network.state_dict()[key], value) for key, value in untouched.items())


@OBSTACLES
def test_a_name_or_a_glob_under_which_nothing_can_be_constrained_is_an_error(make, pattern, obstacle):
    network = make()
    before = set(network.state_dict())
    with pytest.raises(ValueError, match=rf"the pattern .* takes no weight: .*{obstacle}"):
        constrain(network, include=["*", pattern])
    assert set(network.state_dict()) == before


def test_the_error_lists_all_obstacles_at_once():
    network = nn.Sequential(tied(), nn.Linear(4, 4).requires_grad_(False), nn.Linear(1, 4))
    with pytest.raises(ValueError, match=r"tied to .*tied to .*frozen.*fan_in 1"):
        constrain(network)


def test_folding_gives_a_plain_copy_with_the_same_outputs():
    network, images = Network().eval(), torch.randn(4, 3, 8, 8)
    plain_keys = set(network.state_dict())
    constrain(network)
    folded = fold(network)
    assert set(folded.state_dict()) == plain_keys
    assert type(folded.conv) is nn.Conv2d
    assert type(folded.head) is nn.Linear
    assert torch.equal(folded(images), network(images))


def test_folding_leaves_the_original_constrained_and_independent():
    network, images = Network().eval(), torch.randn(4, 3, 8, 8)
    constrain(network)
    before = network(images)
    nn.init.zeros_(fold(network).head.weight)
    assert torch.equal(network(images), before)
    assert constrained_weights(network) == dict.fromkeys(ALL, "lcw")
    torch.optim.SGD(network.parameters(), lr=0.1).zero_grad()


def test_folding_keeps_frozen_weights_frozen_and_loads_plain_checkpoints():
    network = Network()
    constrain(network)
    network.conv.requires_grad_(False)
    folded = fold(network)
    assert not folded.conv.weight.requires_grad
    assert folded.head.weight.requires_grad
    plain = Network()
    folded.load_state_dict(plain.state_dict())
    assert torch.equal(folded.conv.weight, plain.conv.weight)


def test_folding_takes_other_peoples_parametrizations_too():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).eval()
    folded = fold(layer)
    assert sorted(folded.state_dict()) == ["bias", "weight"]
    assert torch.equal(folded.weight, layer.weight)


def test_a_constrained_network_trains_like_any_module():
    network = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)  # made before the constraint
    constrain(network)
    inputs = torch.randn(32, 4)
    before = network(inputs).square().mean()
    for _ in range(20):
        optimizer.zero_grad()
        network(inputs).square().mean().backward()
        optimizer.step()
    assert network(inputs).square().mean() < before / 2
    assert all(residual < 1e-6 for residual in residuals(network).values())


def test_only_the_innermost_owner_is_constrained_when_a_layer_stands_alone():
    layer = linearly_constrained(nn.Linear(4, 2))
    assert constrain(layer) == ["weight"]


def test_folding_a_training_spectral_norm_keeps_its_present_weight():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    folded = fold(layer)
    assert torch.equal(folded.weight, layer.eval().weight)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2), id="lstm"),
        pytest.param(lambda: nn.GRU(3, 4, num_layers=2, bias=False), id="gru"),
        pytest.param(lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5), id="attention"),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2)), id="conv"
        ),
    ],
)
def test_folding_keeps_the_order_of_parameters(make):
    plain, network = make(), make()
    constrain(network)
    folded = fold(network)
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in folded.named_parameters()] == [name for name, _ in plain.named_parameters()]


class Gained(nn.LSTM):
    def __init__(self):
        super().__init__(3, 4)
        self.gain = nn.Parameter(torch.ones(()))


def test_folding_keeps_parameters_of_a_recurrent_subclass():
    layer = Gained()
    constrain(layer)
    assert set(dict(fold(layer).named_parameters())) == set(dict(Gained().named_parameters()))


def test_a_folded_module_needs_nothing_of_this_package():
    network = nn.Sequential(nn.Linear(4, 2))
    constrain(network)
    content = pickle.dumps(fold(network))
    assert b"lcw_lightning" not in content
    assert b"lcw_lightning" not in pickle.dumps(nn.Linear(4, 2))


def test_removing_constraints_leaves_other_parametrizations():
    network = nn.Sequential(
        linearly_constrained(nn.Linear(4, 4)), nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    )
    weights = [layer.weight.detach().clone() for layer in network]
    remove_constraints_(network)
    assert constrained_weights(network) == {}
    assert type(network[0]) is nn.Linear
    assert nn.utils.parametrize.is_parametrized(network[1])
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(network, weights, strict=True))
