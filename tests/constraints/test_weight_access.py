"""Reading a weight directly calls the constraint alone, and torch's own way wherever that would do more."""

import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks_on_all
from torch.nn.utils import parametrize

from lcw_lightning import constrain


@contextmanager
def counting(calls):
    """Note the calls of forward of torch's list of parametrizations."""

    def note(frame, event, _):
        if event == "call" and frame.f_code is parametrize.ParametrizationList.forward.__code__:
            calls.append(1)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.fixture
def layer():
    layer = nn.Linear(6, 4)
    constrain(layer)
    return layer


def of(layer):
    held = layer.parametrizations.weight
    return held, held[0]


def test_a_weight_is_read_by_one_call_and_is_that_of_torchs_own_way(layer):
    calls = []
    with counting(calls):
        weight = layer.weight
    assert not calls
    assert torch.equal(weight, layer.parametrizations.weight())
    assert weight.requires_grad


WAYS = {
    "forward-hook": lambda module, note: module.register_forward_hook(lambda *_: note()),
    "forward-pre-hook": lambda module, note: module.register_forward_pre_hook(lambda *_: note()),
    "backward-hook": lambda module, note: module.register_full_backward_hook(lambda *_: note()),
    "backward-pre-hook": lambda module, note: module.register_full_backward_pre_hook(lambda *_: note()),
    "hook-on-all": lambda module, note: hooks_on_all.register_module_forward_hook(lambda *_: note()),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch's list of parametrizations has no inputs
@pytest.mark.parametrize("of_constraint", [False, True], ids=["list", "constraint"])
@pytest.mark.parametrize("register", WAYS.values(), ids=WAYS)
def test_hooks_on_the_modules_in_between_are_called(layer, register, of_constraint):
    seen = []
    handle = register(of(layer)[of_constraint], lambda: seen.append(1))
    layer(torch.ones(1, 6)).sum().backward()
    handle.remove()
    assert seen


@pytest.mark.parametrize("of_constraint", [False, True], ids=["list", "constraint"])
def test_a_forward_on_the_instance_is_called(layer, of_constraint):
    module = of(layer)[of_constraint]
    forward = module.forward
    module.forward = lambda *originals: 2 * forward(*originals)
    doubled = layer.weight
    del module.forward
    assert torch.equal(doubled, 2 * layer.weight)


def test_torchs_cache_is_used_while_it_is_on(layer):
    with parametrize.cached():
        assert layer.weight is layer.weight
    assert layer.weight is not layer.weight


def test_a_second_parametrization_acts(layer):
    before = layer.weight.detach()
    parametrize.register_parametrization(layer, "weight", nn.Hardtanh(-0.1, 0.1), unsafe=True)
    assert torch.equal(layer.weight, before.clamp(-0.1, 0.1))


@pytest.mark.parametrize("kind", ["cwn", "wn", "sn"])
def test_other_kinds_give_what_torchs_own_way_gives(kind):
    layer = nn.Linear(6, 4)
    constrain(layer, kind)
    layer.eval()
    assert torch.equal(layer.weight, layer.parametrizations.weight())


class Autoencoder(nn.Module):
    """Reads a weight in a forward of its own."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 4)

    def forward(self, inputs):
        return nn.functional.linear(self.encoder(inputs).tanh(), self.encoder.weight.t())


@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn"])
def test_a_graph_of_torch_fx_reads_the_weight_anew_in_each_call(kind):
    network, inputs = Autoencoder(), torch.randn(5, 6)
    constrain(network, kind)
    graph = torch.fx.symbolic_trace(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    assert not list(graph.named_buffers())
    torch.testing.assert_close(graph(inputs), network(inputs))
