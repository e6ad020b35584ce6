"""A trained network is constrained, and biases keep every mean preactivation on the minibatch."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lcw_lightning import constrain, convert_, fold, register_layer_type
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.weights.layer_types import layer_type_of
from lcw_lightning.weights.weight_ref import named_weights

KINDS = ["lcw", "cwn", "wn", "sn"]
METHODS = [*((kind, "parametrize") for kind in KINDS), ("lcw", "project")]
kinds_and_methods = pytest.mark.parametrize(("kind", "method"), METHODS, ids="-".join)
IMAGES = torch.rand(16, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A branch that is added to its input, as in residual networks."""

    def __init__(self, *layers):
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.branch(x)


def trained(model):
    """Weights far from zero-sum, biases and running statistics as training leaves them."""
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.uniform_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def convolutional():
    """Convolutions (grouped, depthwise, transposed, in a residual branch), and linear layers on two axes."""
    return trained(
        nn.Sequential(
            *(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(8, 8, 3, padding=1, groups=2),
                nn.Sigmoid(),
            ),
            Residual(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)),
            *(
                nn.ConvTranspose2d(8, 6, 2, groups=2),
                nn.ReLU(),
                nn.Flatten(2),
                nn.Linear(81, 5),
                nn.ReLU(),
                nn.Flatten(),
            ),
            nn.Linear(30, 4),
        )
    )


def mean_outputs(model, inputs, types=(nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
    """The mean of each unit's output over samples and positions, by layer, as hooks see it."""
    means = {}

    def hook(name, channel_dim, _layer, _args, output):
        means[name] = output.movedim(channel_dim, -1).flatten(0, -2).mean(0)

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, types)}
    handles = [
        layer.register_forward_hook(partial(hook, name, -1 if isinstance(layer, nn.Linear) else 1))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return means


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@kinds_and_methods
def test_every_mean_preactivation_is_that_of_the_untouched_network(kind, method):
    model = convolutional()
    before = mean_outputs(model, IMAGES)
    projected = copy.deepcopy(model)
    constrain(projected, kind, method=method)
    assert convert_(model, IMAGES, kind=kind, method=method) is model
    assert largest_difference(mean_outputs(model, IMAGES), before) < 1e-12
    # Control: by the constraint alone they move, unless it takes nothing.
    assert (largest_difference(mean_outputs(projected, IMAGES), before) > 0.05) == (kind != "wn")
    assert set(constrained_weights(model)) == set(named_weights(model))


@kinds_and_methods
def test_weights_are_those_that_constrain_gives(kind, method):
    model = convolutional()
    wanted = copy.deepcopy(model)
    constrain(wanted, kind, method=method)
    convert_(model, IMAGES, kind=kind, method=method)
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith("bias")}
    assert weights.keys() == {name for name in wanted.state_dict() if not name.endswith("bias")}
    for name, value in weights.items():
        assert value.equal(wanted.state_dict()[name]) or name.endswith("running_mean"), name


def test_the_bias_takes_the_projections_share_of_the_mean_and_the_drift_of_the_layers_before():
    model = trained(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    inputs = torch.randn(64, 6).double() + 1
    first, second = copy.deepcopy(model[0]), copy.deepcopy(model[2])
    hidden = first(inputs).relu().mean(0)
    convert_(model, inputs)
    centred = second.weight - second.weight.mean(1, keepdim=True)
    own = (second.weight - centred) @ hidden
    drift = centred @ (hidden - model[:2](inputs).mean(0))
    torch.testing.assert_close(model[2].bias, second.bias + own + drift)
    # Control: with the untouched network's mean input alone, which is the other possible rule, the mean is another.
    assert drift.abs().max() > 1e-3


def test_a_second_call_changes_nothing():
    model = convert_(convolutional(), IMAGES)
    before = copy.deepcopy(model.state_dict())
    convert_(model, 2 * IMAGES)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_modes_buffers_and_random_numbers_stay_as_they_were(training):
    model = trained(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2)))
    model.train(training)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)).double()
    means = mean_outputs(copy.deepcopy(model).eval(), inputs)
    convert_(model, inputs)
    assert [model.training, *(module.training for module in model)] == modes
    assert all(value.equal(buffers[name]) for name, value in model.named_buffers())
    assert torch.get_rng_state().equal(state)
    # In evaluation mode, whatever the mode was: with dropout on, the means would be others.
    assert largest_difference(mean_outputs(model.eval(), inputs), means) < 1e-12


def test_a_layer_without_bias_gives_the_mean_to_the_batch_norm_that_follows():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    before = mean_outputs(model, IMAGES, (nn.BatchNorm2d, nn.Conv2d))
    variance = model[1].running_var.clone()
    convert_(model, IMAGES)  # without a warning
    after = mean_outputs(model, IMAGES, (nn.BatchNorm2d, nn.Conv2d))
    assert (after.pop("0") - before.pop("0")).abs().max() > 0.05  # which has no bias
    assert largest_difference(after, before) < 1e-12
    assert model[1].running_var.equal(variance)


@pytest.mark.parametrize("between", [nn.ReLU, partial(nn.ReLU, inplace=True)], ids=["copied", "in place"])
def test_a_batch_norm_behind_an_activation_does_not_pass_for_the_bias_of_the_layer_before(between):
    model = trained(nn.Sequential(nn.Linear(6, 5, bias=False), between(), nn.BatchNorm1d(5), nn.Linear(5, 2)))
    inputs = torch.randn(64, 6).double() + 1
    before = mean_outputs(model, inputs, (nn.BatchNorm1d, nn.Linear))
    with pytest.warns(UserWarning, match=r"not restored of '0.weight' \(no bias\)\.$"):
        convert_(model, inputs)
    after = mean_outputs(model, inputs, (nn.BatchNorm1d, nn.Linear))
    assert largest_difference({"2": after["2"], "3": after["3"]}, {"2": before["2"], "3": before["3"]}) < 1e-12


def test_a_residual_sum_of_layers_without_bias_is_restored_by_the_next_batch_norm():
    model = trained(
        nn.Sequential(
            Residual(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1, bias=False)),
            Residual(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1, bias=False)),
            nn.Flatten(),
            nn.Linear(192, 2),
        )
    )
    before = mean_outputs(model, IMAGES, (nn.BatchNorm2d, nn.Linear))
    with pytest.warns(UserWarning, match=r"of '0.branch.2.weight', '1.branch.2.weight' \(no bias\)"):
        convert_(model, IMAGES)
    assert largest_difference(mean_outputs(model, IMAGES, (nn.BatchNorm2d, nn.Linear)), before) < 1e-12


def test_a_frozen_batch_norm_and_a_frozen_bias_stay_and_are_named():
    model = trained(nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 2), nn.Linear(2, 2)))
    model[1].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=r"of '0.weight' \(no bias\), '2.weight' \(frozen bias\)"):
        convert_(model, torch.randn(64, 6).double())
    assert model[1].running_mean.equal(before["1.running_mean"])
    assert model[2].bias.equal(before["2.bias"])


def test_frozen_and_excluded_layers_stay_as_they_are():
    model = trained(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    model[2].requires_grad_(False)
    kept = copy.deepcopy([*model[2].parameters(), *model[4].parameters()])
    with pytest.warns(UserWarning, match="'2.weight' .frozen"):
        convert_(model, torch.randn(64, 6).double(), exclude=["4.*"])
    assert list(constrained_weights(model)) == ["0.weight"]
    assert all(a.equal(b) for a, b in zip(kept, [*model[2].parameters(), *model[4].parameters()], strict=True))


class Twice(nn.Module):
    """One layer that is called twice, on different inputs."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        first = self.shared(x)
        return self.head(self.shared(first.relu()) + first)


def test_a_layer_that_is_called_twice_gets_the_mean_over_both_calls_of_what_the_projection_takes():
    model, inputs = trained(Twice()), torch.randn(64, 6).double() + 1
    plain = copy.deepcopy(model.shared)
    seen = [inputs, plain(inputs).relu()]
    head = model(inputs).mean(0)
    convert_(model, inputs)
    taken = [(plain.weight - model.shared.weight) @ each.mean(0) for each in seen]
    torch.testing.assert_close(model.shared.bias, plain.bias + sum(taken) / 2)
    assert (taken[0] - taken[1]).abs().max() > 0.05  # control: neither call alone gives this
    torch.testing.assert_close(model(inputs).mean(0), head)


class WithAttention(nn.Module):
    """Attention to another sequence."""

    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **settings)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.attention(x, query_keys(x, self), value=query_keys(x, self), need_weights=False)[0])


def query_keys(x, module):
    width = module.attention.kdim
    return (
        torch.linspace(0, 1, 5 * len(x.flatten(1)[0]) // 8 * width, dtype=x.dtype)
        .view(-1, 1, width)
        .expand(-1, x.shape[1], -1)
    )


@pytest.mark.parametrize("settings", [{}, {"kdim": 3, "vdim": 3}], ids=["one weight", "three weights"])
def test_attention_keeps_the_means_of_its_four_projections(settings):
    model, inputs = trained(WithAttention(**settings)), torch.rand(7, 4, 8).double()
    plain = copy.deepcopy(model)
    convert_(model, inputs)
    keys = query_keys(inputs, model)

    def means(network):
        held = network.attention
        weights = (
            held.in_proj_weight.chunk(3)
            if not settings
            else (held.q_proj_weight, held.k_proj_weight, held.v_proj_weight)
        )
        given = inputs, keys, keys
        rows = zip(weights, held.in_proj_bias.chunk(3), given, strict=True)
        projections = [(a @ weight.T + bias).flatten(0, 1).mean(0) for weight, bias, a in rows]
        output = held(*given)[0].flatten(0, 1).mean(0)
        return torch.cat([*projections, output, network(inputs).flatten(0, 1).mean(0)])

    projected = copy.deepcopy(plain)
    constrain(projected)
    torch.testing.assert_close(means(model), means(plain))
    assert (means(projected) - means(plain)).abs().max() > 0.05


class OwnAttention(nn.MultiheadAttention):
    """Somebody's, whose arguments have other names."""

    def forward(self, x):
        return super().forward(x, x, x)


def test_attention_whose_arguments_have_other_names_is_named():
    model, inputs = trained(OwnAttention(8, 2)), torch.rand(7, 4, 8).double()
    before = model(inputs)[0].mean((0, 1))
    with pytest.warns(UserWarning, match=r"of 'in_proj_weight' \(not seen in a call of its layer\)\.$"):
        convert_(model, inputs)
    torch.testing.assert_close(model(inputs)[0].mean((0, 1)), before)  # by the bias of the output


def test_a_transformer_layer_keeps_its_means():
    layer = trained(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    inputs = torch.rand(4, 7, 8).double()
    before = mean_outputs(layer, inputs, nn.Linear)
    assert not before["linear1"].isnan().any()
    convert_(layer, inputs)
    assert largest_difference(mean_outputs(layer, inputs, nn.Linear), before) < 1e-12


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.bilinear = nn.Bilinear(3, 4, 5)

    def forward(self, x):
        return self.bilinear(x[:, :3], x[:, 3:])


def test_bilinear_keeps_the_mean_of_its_output():
    model, inputs = trained(TwoInputs()), torch.rand(64, 7).double()
    before = model(inputs).mean(0)
    convert_(model, inputs)
    torch.testing.assert_close(model(inputs).mean(0), before)


class Scaled(nn.Linear):
    """A layer of somebody's, which does something else with its bias."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight) * (1 + self.bias.square())


class Shifted(nn.Linear):
    """A layer of somebody's, which adds its bias twice and draws random numbers."""

    def forward(self, x):
        return super().forward(x) + 1e-9 * torch.rand(1, dtype=x.dtype)


def test_a_bias_that_does_not_add_to_the_output_stays_and_its_layer_is_named():
    model = trained(nn.Sequential(Shifted(6, 5), Scaled(5, 5), nn.Linear(5, 2)))
    inputs, bias = torch.rand(64, 6).double(), model[1].bias.clone()
    before, state = mean_outputs(model, inputs), torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"of '1.weight' \(a bias that does not add to the output\)\.$"):
        convert_(model, inputs)
    assert torch.get_rng_state().equal(state)
    assert model[1].bias.equal(bias)
    after = mean_outputs(model, inputs)
    assert largest_difference({n: after[n] for n in "02"}, {n: before[n] for n in "02"}) < 1e-7


class InOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return x @ self.kernel + self.bias


def test_a_registered_layer_type_keeps_its_means(monkeypatch):
    monkeypatch.setattr(
        "lcw_lightning.weights.layer_types._TYPES",
        dict(__import__("lcw_lightning.weights.layer_types", fromlist=["_TYPES"])._TYPES),
    )
    register_layer_type(InOut, weight="kernel", unit_dim=1)
    assert layer_type_of(InOut()) is not None
    model, inputs = trained(nn.Sequential(InOut(), nn.ReLU(), nn.Linear(5, 2))), torch.rand(64, 6).double()
    before = mean_outputs(model, inputs, (InOut,))
    before = {"0": model[0](inputs).mean(0), "2": model(inputs).mean(0)}
    convert_(model, inputs)
    assert largest_difference({"0": model[0](inputs).mean(0), "2": model(inputs).mean(0)}, before) < 1e-12


def test_a_layer_that_is_not_called_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.read = nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.used(x) + nn.functional.linear(x, self.read.weight)

    with pytest.warns(UserWarning, match=r"of 'idle.weight', 'read.weight' \(not seen in a call of its layer\)"):
        convert_(trained(Idle()), torch.rand(64, 6).double())


class Fails(nn.Module):
    """Raises in a given run."""

    def __init__(self, run):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
        self.run, self.runs = run, 0

    def forward(self, x):
        self.runs += 1
        output = self.layers(x)
        if self.runs == self.run:
            raise KeyboardInterrupt
        return output


@pytest.mark.parametrize("run", [1, 2])
@kinds_and_methods
def test_a_run_that_fails_leaves_the_network_as_it_was(run, kind, method):
    model = trained(Fails(run)).train()
    before, parameters = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        convert_(model, IMAGES, kind=kind, method=method)
    assert list(model.state_dict()) == list(before)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert torch.get_rng_state().equal(state)
    assert model.layers[1].training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert constrained_weights(model) == {}


def test_inputs_that_are_not_finite_are_an_error_that_changes_nothing():
    model = convolutional()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"needs finite preactivations, but those of '0.weight' are NaN or infinite"):
        convert_(model, IMAGES.masked_fill(IMAGES > 0.99, torch.nan))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("settings", [{"include": ["nothing.*"]}, {"kind": "LCW"}, {"kind": "wn", "method": "project"}])
def test_settings_that_constrain_refuses_are_refused(settings):
    with pytest.raises(ValueError, match=r"matches no weight|kind is one of|holds kind='lcw' alone"):
        convert_(convolutional(), IMAGES, **settings)


def test_kind_none_changes_nothing():
    model = convolutional()
    before = copy.deepcopy(model.state_dict())
    convert_(model, IMAGES, kind="none")
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_under_autocast_the_runs_use_the_weights_of_the_moment():
    model, inputs = trained(nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 3))).float(), torch.rand(512, 6)
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(inputs).float().mean(0)
        convert_(model, inputs)
        after = model(inputs).float().mean(0)
    projected = copy.deepcopy(plain)
    constrain(projected)
    with torch.no_grad():
        assert (projected(inputs).mean(0) - plain(inputs).mean(0)).abs().max() > 0.05
    assert (after - before).abs().max() < 0.01


def test_a_compiled_network_is_converted_like_a_plain_one():
    model = convolutional()
    plain = convert_(copy.deepcopy(model), IMAGES)
    convert_(torch.compile(model, backend="eager"), IMAGES)
    assert largest_difference(mean_outputs(model, IMAGES), mean_outputs(plain, IMAGES)) == 0


def on_rank(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    return convert_(trained(model), batches()[rank]).state_dict()


def batches():
    samples = torch.randn(72, 6, generator=torch.Generator().manual_seed(1)).double()
    return samples[:8], samples[8:] + 1


def test_two_ranks_act_on_the_union_of_their_batches_and_end_bit_equal(on_two_ranks):
    first, second = on_two_ranks(on_rank)
    assert all(value.equal(second[name]) for name, value in first.items())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    alone = convert_(trained(model), torch.cat(batches())).state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    control = convert_(trained(model), batches()[0]).state_dict()
    assert (control["3.bias"] - first["3.bias"]).abs().max() > 1e-3


def test_what_is_converted_folds_and_trains():
    model = convert_(convolutional(), IMAGES)
    torch.testing.assert_close(fold(model)(IMAGES), model(IMAGES))
    model.train()(IMAGES).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class ActivatedNorm(nn.BatchNorm1d):
    """Names its input otherwise than torch, as libraries of networks do."""

    def forward(self, x):
        return torch.relu(super().forward(x))


def test_a_norm_of_a_class_of_its_own_follows_too():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16, bias=False), ActivatedNorm(16), nn.Linear(16, 3)).double()
    images = torch.rand(64, 8, dtype=torch.float64) + 1
    network(images)
    network.eval()
    before = network(images).mean(0)
    convert_(network, images)
    torch.testing.assert_close(network(images).mean(0), before)
