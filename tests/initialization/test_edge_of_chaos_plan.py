import copy

import pytest
import torch
from torch import nn

from lcw_lightning import MLP, ShiftedReLU, SoftThreshold, constrain
from lcw_lightning.initialization.edge_of_chaos import (
    draw_and_match_on_first_forward,
    edge_of_chaos_init_,
    new_drawing,
)
from lcw_lightning.initialization.edge_of_chaos_plan import edge_of_chaos_layers, only_activation

SPARSE = ShiftedReLU(0.5)


def constrained(network, kind):
    constrain(network, kind)
    return network


def test_linear_layers_and_convolutions_are_drawn_by_name_and_the_others_are_named():
    network = nn.ModuleDict(
        {
            "conv": nn.Conv1d(2, 3, 3),
            "frozen": nn.Linear(3, 3).requires_grad_(False),
            "recurrent": nn.GRU(3, 3),
            "attention": nn.MultiheadAttention(4, 2),
            "norm": nn.LayerNorm(3),
            "output": nn.Linear(3, 2),
            "activation": SPARSE,
        }
    )
    outcome = new_drawing()
    layers = edge_of_chaos_layers(network, None, 1.0, "gaussian", ["*"], ["attention.*"], outcome)
    assert list(layers) == ["conv.weight", "output.weight"]
    assert outcome.left == {
        "frozen.weight": "frozen",
        "recurrent.weight_ih_l0": "hooks do not see its preactivations",
        "recurrent.weight_hh_l0": "hooks do not see its preactivations",
    }


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        pytest.param([], "Sequential are: none; give the one", id="none"),
        pytest.param([nn.ReLU(), nn.Sigmoid()], r"are: ReLU\(\), Sigmoid\(\); give the one", id="two"),
        pytest.param([nn.PReLU(), nn.PReLU(init=1.0)], r"PReLU\(num_parameters=1\), PReLU", id="learned"),
        pytest.param([SPARSE, ShiftedReLU(0.5000001)], r"ShiftedReLU\(tau=0\.5\), ShiftedReLU", id="nearly alike"),
        pytest.param([SPARSE, ShiftedReLU(0.6)], r"ShiftedReLU\(tau=0\.5\), ShiftedReLU\(tau=0\.6\)", id="settings"),
        pytest.param([SPARSE, SoftThreshold(0.5)], r"ShiftedReLU\(tau=0\.5\), SoftThreshold\(tau=0\.5\)", id="ours"),
    ],
)
def test_the_activation_must_be_one(modules, message):
    network = nn.Sequential(nn.Linear(4, 4), *modules)
    with pytest.raises(ValueError, match=message):
        edge_of_chaos_init_(network, torch.rand(8, 4))
    edge_of_chaos_init_(network, torch.rand(8, 4), activation=SPARSE)


def test_equal_activations_are_one_and_attention_is_none():
    network = nn.ModuleList([nn.MultiheadAttention(4, 2), ShiftedReLU(0.5), nn.Sequential(ShiftedReLU(0.5))])
    assert only_activation(network) is network[1]


OBSTACLES = {
    "lazy": (nn.LazyLinear(4), {}, "cannot draw '0.weight': it is lazy; run one forward first"),
    "sn": (constrained(nn.Linear(4, 4), "sn"), {}, "cannot draw '0.weight': under sn its norm is always 1"),
    "bias": (nn.Linear(4, 4, bias=False), {}, r"its layer has no bias, which needs standard deviation 0\.56"),
    "transposed": (nn.ConvTranspose2d(4, 4, 3), {"weights": "delta_orthogonal"}, "it is a transposed convolution's"),
    "groups": (nn.Conv2d(4, 4, 3, groups=2), {"weights": "delta_orthogonal"}, "its convolution has groups=2"),
    "even": (nn.Conv2d(4, 4, (3, 2)), {"weights": "delta_orthogonal"}, r"kernel size \(3, 2\) is even"),
    "one channel": (
        constrained(nn.Conv2d(1, 4, 3), "lcw"),
        {"weights": "delta_orthogonal"},
        "with one input channel the only zero-sum centre tap is zero; use weights='gaussian', or leave the layer",
    ),
    "unknown": (
        nn.Linear(4, 4),
        {"weights": "orthogonal"},
        "weights is one of 'gaussian', 'delta_orthogonal'; got 'orthogonal', near it is 'delta_orthogonal'",
    ),
    "q": (nn.Linear(4, 4), {"q": 0.0}, "q is a variance: it must be positive"),
    "elementwise": (
        nn.Linear(4, 4),
        {"activation": nn.Softmax(dim=-1)},
        r"Softmax\(dim=-1\) must map each element independently",
    ),
    "no edge": (nn.Linear(4, 4), {"activation": nn.Sigmoid()}, "needs biases of variance -5"),
}


@pytest.mark.parametrize(("layer", "settings", "message"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_cannot_be_drawn_is_named_before_anything_is_drawn(layer, settings, message):
    network = nn.Sequential(copy.deepcopy(layer), SPARSE, nn.Linear(4, 4))
    before = network[2].weight.clone()
    with pytest.raises(ValueError, match=message):
        edge_of_chaos_init_(network, torch.rand(8, 4), **settings)
    assert torch.equal(network[2].weight, before)
    assert not network[2]._forward_pre_hooks


def test_what_cannot_be_drawn_can_be_left_out_and_stays_as_it_is():
    network = nn.Sequential(nn.Linear(4, 4), SPARSE, nn.Linear(4, 4, bias=False))
    before = network[2].weight.clone()
    with pytest.raises(ValueError, match=r"cannot draw '2\.weight': .*; exclude leaves it out"):
        edge_of_chaos_init_(network, torch.rand(8, 4))
    edge_of_chaos_init_(network, torch.rand(8, 4), exclude=["2.*"])
    assert torch.equal(network[2].weight, before)
    with pytest.raises(ValueError, match=r"the pattern '3\.\*' matches no weight of Sequential; near it are"):
        edge_of_chaos_init_(network, torch.rand(8, 4), exclude=["3.*"])


def test_a_network_without_anything_to_draw_is_refused():
    network = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), SPARSE, nn.LayerNorm(4))
    with pytest.raises(ValueError, match="needs a Linear or convolution that is trained, but Sequential has none"):
        edge_of_chaos_init_(network, torch.rand(8, 4))


def test_biases_that_would_take_all_variance_are_refused(monkeypatch):
    # No activation known to us has it so, but for rounding.
    monkeypatch.setattr("lcw_lightning.initialization.edge_of_chaos_plan.edge_of_chaos_stds", lambda *_: (1.0, 2.0))
    with pytest.raises(
        ValueError,
        match=r"cannot draw '0\.weight': at its edge of chaos biases have all of the preactivations' variance q=4",
    ):
        edge_of_chaos_init_(nn.Sequential(nn.Linear(4, 4), SPARSE), torch.rand(8, 4), q=4.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_first_inputs_that_are_not_finite_are_refused(value):
    network = MLP(4, 2, depth=2, width=8, activation=lambda: SPARSE)
    with pytest.raises(ValueError, match=r"'hidden\.0\.linear\.weight', the first layer, are NaN or infinite"):
        edge_of_chaos_init_(network, torch.full((8, 4), value))
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("constant", [0.0, 1 / 3, 1e4])
@pytest.mark.parametrize("fan_in", [2, 784])
def test_first_inputs_that_say_nothing_to_the_first_layer_are_refused(constant, fan_in, dtype):
    network = MLP(fan_in, 2, depth=2, width=300, activation=lambda: SPARSE)
    constrain(network)
    inputs = torch.full((8, fan_in), constant, dtype=dtype)
    says = "its preactivations are zero up to rounding" if constant else "zero inputs"
    message = rf"cannot match 'hidden\.0\.linear\.weight', the first layer, to the first minibatch: {says}; look for"
    with pytest.raises(ValueError, match=message):
        edge_of_chaos_init_(network.to(dtype), inputs)


def test_constant_inputs_will_do_for_plain_weights_and_small_variation_for_zero_sum_ones():
    plain, zero_sum = (MLP(784, 2, depth=2, width=300, activation=lambda: SPARSE) for _ in range(2))
    constrain(zero_sum)
    inputs = torch.full((8, 784), 1 / 3), 1 / 3 + 1e-4 * torch.randn(8, 784)
    for network, given in zip((plain, zero_sum), inputs, strict=True):
        edge_of_chaos_init_(network, given)
        assert network.hidden[0].linear(given).square().mean().item() == pytest.approx(1.0, abs=0.2)


class Standardized(nn.Linear):
    """Standardizes its weight itself."""

    def forward(self, inputs):
        return nn.functional.linear(inputs, nn.functional.normalize(self.weight), self.bias)


UNMATCHABLE = {
    "no samples": (nn.Linear(4, 40), torch.zeros(0, 4), "a batch of 0 samples"),
    "small": (nn.Linear(4, 40), torch.full((8, 4), 1e-40), "its rescaled weight would overflow float32"),
    "standardized": (Standardized(4, 40), torch.randn(8, 4), "scaling it leaves the layer's output unchanged"),
}


@pytest.mark.parametrize(("layer", "inputs", "says"), UNMATCHABLE.values(), ids=UNMATCHABLE)
def test_a_first_layer_that_cannot_be_matched_is_refused_with_the_reason_and_nothing_changes(layer, inputs, says):
    network = nn.Sequential(copy.deepcopy(layer), SPARSE, nn.Linear(40, 4))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=rf"cannot match '0\.weight', the first layer, to the first minibatch: {says}"):
        edge_of_chaos_init_(network, inputs)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Noisy(nn.Linear):
    """Drops inputs itself, takes them by keyword, and returns a tuple."""

    def forward(self, *, inputs):
        return super().forward(nn.functional.dropout(inputs, 0.5)), None


class KeywordAndTuple(nn.Sequential):
    def forward(self, inputs):
        return self[1](self[0](inputs=inputs)[0])


def test_a_first_layer_with_randomness_keywords_and_a_tuple_is_matched_and_moves_the_random_numbers_once():
    network, inputs = KeywordAndTuple(Noisy(48, 200), SPARSE), torch.rand(64, 48)
    with draw_and_match_on_first_forward(network):
        torch.manual_seed(3)
        output = network(inputs)
        stream = torch.get_rng_state()
    torch.manual_seed(3)
    torch.testing.assert_close(network(inputs), output)
    assert torch.equal(torch.get_rng_state(), stream)
    torch.manual_seed(3)
    assert network[0](inputs=inputs)[0].square().mean().item() == pytest.approx(1, rel=0.1)


def test_one_line_says_what_was_drawn_and_matched_and_what_was_left():
    network = nn.Sequential(nn.Linear(4, 8), SPARSE, nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 2))
    says = r"edge-of-chaos initialization: 2 of 3 layers drawn, '0\.weight' rescaled by a factor of [\d.]+; "
    with pytest.warns(UserWarning, match=says + r"left as they are: '2\.weight' \(frozen\)$"):
        edge_of_chaos_init_(network, torch.randn(32, 4))


def test_a_network_that_runs_none_of_its_layers_is_refused():
    class Unused(nn.Sequential):
        def forward(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="matches a layer to the inputs, but Unused ran no drawn layer"):
        edge_of_chaos_init_(Unused(nn.Linear(4, 4), SPARSE), torch.rand(8, 4))


def test_a_parametrization_that_cannot_hold_the_weight_is_refused_by_name():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"cannot set '0\.weight', because its parametrization changes the value"):
        edge_of_chaos_init_(nn.Sequential(layer, SPARSE), torch.rand(8, 4))


def test_an_error_in_the_networks_own_forward_leaves_no_hook_and_no_bias_behind():
    network = nn.Sequential(nn.Linear(4, 40), SPARSE)
    with pytest.raises(ValueError, match="it takes 4 features, and got 5"):
        edge_of_chaos_init_(network, torch.rand(8, 5))
    assert not network[0]._forward_pre_hooks
    assert network[0].bias.all()
