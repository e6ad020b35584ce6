"""analyze() with a pre-flight check: many draws of the weights, and the network as it was."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm

from lcw_lightning import analyze, constrain, minibatch_init_


def network_of(depth=12, width=32):
    layers = [layer for n in range(depth) for layer in (nn.Linear(width if n else 8, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def gain(factor):
    def redraw(network):
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=factor / layer.in_features**0.5)
                nn.init.zeros_(layer.bias)

    return redraw


BATCH = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def test_the_check_goes_from_the_last_hidden_layer_back_to_the_first():
    report = analyze(network_of(), BATCH, redraw=gain(2**0.5), draws=7)
    found = report.preflight
    assert found.layers == [str(n) for n in range(0, 24, 2)]
    assert found.draws == len(found.last_q) == len(found.gradient_growth) == 7
    chosen = analyze(network_of(), BATCH, redraw=gain(1.0), draws=2, include=["*2.weight", "24.weight"])
    assert chosen.preflight.layers == ["2", "12", "22"]


def test_the_rest_of_the_report_is_what_it_is_without_redraw():
    network = network_of()
    with_check, without = analyze(network, BATCH, redraw=gain(1.0), draws=2), analyze(network, BATCH)
    assert with_check.statistics == without.statistics
    assert with_check.loss == without.loss
    assert without.preflight is None
    assert "pre-flight" not in str(without).lower()


def test_numbers_are_those_of_plain_autograd_on_the_median_sample():
    network, kept = network_of(depth=4), []

    def redraw(network):
        gain(2.0)(network)
        kept.append(copy.deepcopy(network))

    found = analyze(network, BATCH, redraw=redraw, draws=3).preflight
    for draw, copied in enumerate(kept):
        z, zs = BATCH[0], []
        for layer in copied:
            z = layer(z)
            zs += [z] * isinstance(layer, nn.Linear)
        first, last = torch.autograd.grad(cross_entropy(z, BATCH[1]), (zs[0], zs[-2]))
        growth = (first.norm(dim=1) / last.norm(dim=1)).log10().median()
        assert found.gradient_growth[draw].item() == pytest.approx(growth.item(), abs=1e-4)
        q = zs[-2].square().mean()
        assert found.last_q[draw].item() == pytest.approx(q.item(), rel=1e-4)


def test_exploding_gradients_are_found_and_those_at_the_edge_of_chaos_are_well():
    exploding = analyze(network_of(30), BATCH, redraw=gain(2.0), draws=20)
    text = " ".join(str(exploding).split())
    assert "pre-flight, 20 draws of the weights: q at '58' has the median" in text
    assert "Pre-flight: gradients explode" in text
    assert "constrain the weights" in text
    steady = analyze(network_of(30, width=100), BATCH, redraw=gain(2**0.5), draws=20)
    assert not any("Pre-flight" in finding.says for finding in steady.findings)
    assert "pre-flight, 20 draws" in str(steady)


def test_initializations_of_this_package_are_redrawn():
    network, expected = network_of(), []
    constrain(network)

    def redraw(network):
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.parametrizations.weight.original)
        minibatch_init_(network, BATCH[0])
        expected.append(network[:23](BATCH[0]).square().mean().item())

    found = analyze(network, BATCH, redraw=redraw, draws=4).preflight
    assert found.last_q.tolist() == pytest.approx(expected, rel=1e-4)
    assert all(0.99 < q < 3 for q in expected)
    assert len(set(found.gradient_growth.tolist())) == 4


class Everything(nn.Module):
    """Has all that a step and a redraw alter."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = spectral_norm(nn.Linear(8, 16)), nn.Linear(16, 16), nn.Linear(16, 3)
        self.norm, self.drop = nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.second.bias.requires_grad_(False)

    def forward(self, inputs):
        return self.last(torch.relu(self.second(self.drop(torch.relu(self.norm(self.first(inputs)))))))


def redraw_everything(network):
    torch.manual_seed(7)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    network.second.weight = nn.Parameter(torch.randn(16, 16))
    network.last.weight.data = torch.randn(3, 16)
    network.second.bias.requires_grad_()
    network.zero_grad(set_to_none=False)
    network.last.bias.grad = torch.ones(3)


@pytest.mark.parametrize("how", ["well", "redraw-fails", "step-fails", "no-draws"])
def test_the_network_is_left_bit_for_bit_as_it_was(how):
    network = Everything()
    network.last.weight.grad = torch.randn(3, 16)
    network.second.weight.data[0, 0] = math.nan
    parameters = {name: (p, p.data_ptr(), p.requires_grad, p.grad) for name, p in network.named_parameters()}
    before, gradient = copy.deepcopy(network.state_dict()), network.last.weight.grad.clone()
    buffers, rng = [*network.buffers()], torch.get_rng_state()
    calls = []

    def redraw(network):
        redraw_everything(network)
        calls.append(None)
        if how == "redraw-fails" and len(calls) == 2:
            raise RuntimeError("it fails")
        if how == "step-fails":
            network.second.weight = nn.Parameter(torch.zeros(4, 4))

    if how == "well":
        analyze(network, BATCH, redraw=redraw, draws=3)
    else:
        with pytest.raises((RuntimeError, ValueError), match=r"fails|shapes|at least one draw"):
            analyze(network, BATCH, redraw=redraw, draws=0 if how == "no-draws" else 3)
    assert bool(calls) == (how != "no-draws")
    for name, parameter in network.named_parameters():
        assert (parameter, parameter.data_ptr(), parameter.requires_grad, parameter.grad) == parameters[name]
    after = network.state_dict()
    assert all(value.numpy().tobytes() == before[key].numpy().tobytes() for key, value in after.items())
    assert all(one is other for one, other in zip(network.buffers(), buffers, strict=True))
    assert torch.equal(network.last.weight.grad, gradient)
    assert torch.equal(torch.get_rng_state(), rng)


def test_redrawing_alone_changes_what_analyze_leaves():
    network = Everything()
    before, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    redraw_everything(network)
    assert not torch.equal(network.second.weight, before["second.weight"])
    assert not torch.equal(network.last.weight, before["last.weight"])
    assert not torch.equal(torch.get_rng_state(), rng)


def test_a_seed_repeats_the_draws():
    network = network_of()
    first, again = (analyze(network, BATCH, redraw=gain(2.0), draws=3).preflight for _ in range(2))
    torch.manual_seed(1)
    other = analyze(network, BATCH, redraw=gain(2.0), draws=3).preflight
    assert torch.equal(first.growth_by_layer, again.growth_by_layer)
    assert not torch.equal(first.growth_by_layer, other.growth_by_layer)


def test_inputs_that_the_network_changes_in_place_are_the_same_in_each_draw():
    network = nn.Sequential(nn.ReLU(inplace=True), *network_of(depth=3))
    redraw = gain(1.0)

    def same(network):
        torch.manual_seed(0)
        redraw(network)

    q = analyze(network, BATCH, redraw=same, draws=3).preflight.last_q
    assert q.unique().numel() == 1


MISTAKES = {
    "no-loss": (network_of, BATCH[0], "needs a loss and at least two hidden layers before the output layer, got 0"),
    "too-shallow": (lambda: network_of(depth=1), BATCH, "at least two hidden layers before the output layer, got 1"),
}


@pytest.mark.parametrize(("make", "batch", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_message(make, batch, says):
    with pytest.raises(ValueError, match=says):
        analyze(make(), batch, redraw=gain(1.0))


def test_json_holds_all_draws_those_that_failed_too(tmp_path):
    draws = []

    def redraw(network):
        draws.append(None)
        gain(1.0)(network)
        if len(draws) > 2:
            nn.init.constant_(network[0].weight, math.nan)

    analyze(network_of(), BATCH, redraw=redraw, draws=4).save(tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads((tmp_path / "analysis.json").read_text(), parse_constant=refuse)["preflight"]
    assert found["draws"] == 4
    assert (found["first_layer"], found["last_layer"]) == ("0", "22")
    assert found["gradient_growth"][2:] == found["q"][2:] == ["inf", "inf"]
    assert all(isinstance(number, float) for number in found["gradient_growth"][:2] + found["q"][:2])
    assert found["growth_median"] == found["growth_90th_percentile"] == found["q_90th_percentile"] == "inf"
    assert (tmp_path / "preflight.png").read_bytes().startswith(b"\x89PNG")
