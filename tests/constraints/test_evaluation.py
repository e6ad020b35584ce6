"""A constrained weight is that of its parameters at each use, whatever has changed them since the last one."""

import copy
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

from lcw_lightning import constrain, fold, linearly_constrained

INPUTS = torch.ones(2, 6)


def original_of(layer):
    return layer.parametrizations.weight.original


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return linearly_constrained(nn.Linear(6, 4)).eval()


@pytest.fixture(params=[torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def without_gradients(request):
    return request.param


def optimizer_step(make):
    def change(layer):
        with torch.enable_grad():
            original_of(layer).grad = torch.ones_like(original_of(layer))
        make([original_of(layer)]).step()

    return change


def load_plain(layer, **kwargs):
    layer.load_state_dict(nn.Linear(6, 4).state_dict(), **kwargs)


def load_own(layer, **kwargs):
    layer.load_state_dict(linearly_constrained(nn.Linear(6, 4)).state_dict(), **kwargs)


def write_from_another_process(layer):
    layer.share_memory()
    torch.from_dlpack(original_of(layer).detach()).add_(torch.arange(5.0))


CHANGES = {
    "add_": lambda layer: original_of(layer).add_(torch.arange(5.0)),
    "detached": lambda layer: original_of(layer).detach().mul_(2),
    "data-in-place": lambda layer: original_of(layer).data.add_(torch.arange(5.0)),
    "data-assigned": lambda layer: setattr(original_of(layer), "data", torch.randn(4, 5)),
    "numpy": lambda layer: original_of(layer).numpy().fill(3),
    "shared-memory": write_from_another_process,
    "assignment": lambda layer: setattr(layer, "weight", torch.randn(4, 6)),
    "new-parameter": lambda layer: setattr(layer.parametrizations.weight, "original", nn.Parameter(torch.randn(4, 5))),
    "plain-checkpoint": load_plain,
    "own-checkpoint": load_own,
    "checkpoint-assigned": lambda layer: load_own(layer, assign=True),
    "double": lambda layer: layer.double(),
    "vector_to_parameters": lambda layer: nn.utils.vector_to_parameters(torch.randn(24), layer.parameters()),
    **{
        f"{kind.__name__}-{name}": optimizer_step(lambda p, kind=kind, kwargs=kwargs: kind(p, lr=0.1, **kwargs))
        for kind in (torch.optim.SGD, torch.optim.Adam)
        for name, kwargs in {
            "fused": {"fused": True},
            "foreach": {"foreach": True},
            "loop": {"foreach": False, "fused": False},
        }.items()
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_change_the_next_evaluation_uses_the_new_weight(layer, change, without_gradients):
    with without_gradients():
        old = layer.weight.clone()
    with torch.no_grad():
        change(layer)
    fresh = linearly_constrained(nn.Linear(6, 4)).to(original_of(layer).dtype)
    fresh.load_state_dict(layer.state_dict())
    with without_gradients():
        assert torch.equal(layer.weight, fresh.weight)
        inputs = INPUTS.to(fresh.weight.dtype)
        assert torch.equal(layer(inputs), nn.functional.linear(inputs, fresh.weight, layer.bias))
    assert not torch.equal(layer.weight, old.to(layer.weight.dtype))


def test_a_write_into_the_computed_weight_changes_nothing(layer, without_gradients):
    with without_gradients():
        before = layer.weight.clone()
        layer.weight.mul_(3)
        assert torch.equal(layer.weight, before)


def test_a_snapshot_of_the_weight_stays_as_it_was(layer):
    with torch.no_grad():
        snapshot = layer.weight
        values = snapshot.clone()
        original_of(layer).mul_(2)
        layer(INPUTS)
    assert torch.equal(snapshot, values)


def test_no_weight_outlives_its_use(layer, without_gradients):
    with without_gradients():
        layer(INPUTS)
        kept = weakref.ref(layer.weight)
        assert kept() is None


def test_a_layer_made_in_inference_mode_follows_its_parameter():
    with torch.inference_mode():
        layer = linearly_constrained(nn.Linear(6, 4)).eval()
        before = layer.weight.clone()
        original_of(layer).mul_(2)
        assert torch.equal(layer.weight, 2 * before)


def test_copies_and_state_dicts_made_in_evaluation_are_independent(layer):
    with torch.no_grad():
        layer(INPUTS)
        assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}
        twin = copy.deepcopy(layer)
        original_of(twin).zero_()
        assert not twin.weight.any()
        assert layer.weight.any()


def test_a_functional_call_uses_its_own_parameters(layer):
    with torch.no_grad():
        before = layer(INPUTS)
        zeros = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
        assert not torch.func.functional_call(layer, zeros, INPUTS).any()
        assert torch.equal(layer(INPUTS), before)
        stacked = {name: torch.stack([value, 2 * value]) for name, value in layer.named_parameters()}
        outputs = torch.vmap(lambda values: torch.func.functional_call(layer, values, INPUTS))(stacked)
        torch.testing.assert_close(outputs[1], 2 * before)


def test_a_replica_without_parameters_of_its_own_computes_its_weight(layer):
    with torch.no_grad():
        layer(INPUTS)
        replica = layer._replicate_for_data_parallel()
        replica._modules["parametrizations"] = held = layer.parametrizations._replicate_for_data_parallel()
        held._modules["weight"] = listed = layer.parametrizations.weight._replicate_for_data_parallel()
        listed.__dict__["original"] = torch.zeros(4, 5)
        assert not replica.weight.any()
        assert layer.weight.any()
    assert not replica.weight.any()


@pytest.mark.parametrize("grad", [torch.no_grad, nullcontext], ids=["no_grad", "grad"])
def test_compiled_and_traced_networks_read_the_present_weight(layer, grad):
    torch.compiler.reset()
    with torch.no_grad():
        layer(INPUTS)
    with grad():
        compiled = torch.compile(layer.forward, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(INPUTS), layer(INPUTS))
        with torch.no_grad():
            original_of(layer).mul_(3)
        torch.testing.assert_close(compiled(INPUTS), layer(INPUTS))


def test_an_exported_program_holds_the_coordinates(layer):
    with torch.no_grad():
        layer(INPUTS)
        program = torch.export.export(nn.Sequential(layer), (INPUTS,), strict=False).module()
        with torch.no_grad():
            for parameter in program.parameters():
                parameter.zero_()
        assert not program(INPUTS).any()


def test_hooks_and_further_parametrizations_still_act(layer):
    calls = []
    with torch.no_grad():
        layer(INPUTS)
        layer.eval()
        handle = layer.parametrizations.weight.register_forward_pre_hook(lambda *_: calls.append(1))
        layer(INPUTS)
        layer(INPUTS)
        assert len(calls) == 2
        handle.remove()
        before = layer.weight
        parametrize.register_parametrization(layer, "weight", nn.Hardtanh(-0.1, 0.1))
        assert torch.equal(layer.weight, before.clamp(-0.1, 0.1))


def test_what_records_operations_sees_the_map(layer):
    with torch.no_grad():
        layer(INPUTS)
        recorded = make_fx(layer)(INPUTS)
        before = recorded(INPUTS)
        original_of(layer).mul_(2)
        torch.testing.assert_close(recorded(INPUTS), layer(INPUTS))
        assert not torch.equal(recorded(INPUTS), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, fold])
def test_recurrent_layers_and_their_copies_work_after_a_copy(copied):
    torch.manual_seed(0)
    network = nn.Sequential(nn.GRU(4, 3))
    constrain(network)
    network.eval()
    with torch.no_grad():
        expected, _ = network(torch.ones(2, 4))
        twin = copied(network)
        torch.testing.assert_close(twin(torch.ones(2, 4))[0], expected)
        torch.testing.assert_close(network(torch.ones(2, 4))[0], expected)
