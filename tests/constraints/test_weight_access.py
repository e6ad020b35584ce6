import copy
import gc
import pickle
import threading
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


def weight_now(layer):
    """What the weight must be, from a copy that has no memory of earlier calls."""
    return fold(layer).weight


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return linearly_constrained(nn.Linear(6, 4)).eval()


@pytest.fixture(params=[torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def without_gradients(request):
    return request.param


def test_the_weight_is_built_once_in_evaluation(layer, without_gradients):
    with without_gradients():
        first = layer.weight
        assert layer.weight is first
    with torch.no_grad():
        assert layer.weight is first
    assert torch.equal(first, weight_now(layer))


def test_in_training_or_with_gradients_the_weight_is_built_anew(layer):
    assert layer.weight is not layer.weight
    assert layer.weight.requires_grad
    with torch.no_grad():
        layer.train()
        assert layer.weight is not layer.weight


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


def swap_storage_twice(layer):
    # The first storage is free in between, so that the third tensor could lie where the first one lay.
    original_of(layer).data = torch.randn(4, 5)
    original_of(layer).data = torch.randn(4, 5)


CHANGES = {
    "add_": lambda layer: original_of(layer).add_(1),
    "element": lambda layer: original_of(layer)[0, 0].fill_(7),
    "detached": lambda layer: original_of(layer).detach().mul_(2),
    "data-assigned": lambda layer: setattr(original_of(layer), "data", torch.randn(4, 5)),
    "data-assigned-twice": swap_storage_twice,
    "assignment": lambda layer: setattr(layer, "weight", torch.randn(4, 6)),
    "new-parameter": lambda layer: setattr(layer.parametrizations.weight, "original", nn.Parameter(torch.randn(4, 5))),
    "plain-checkpoint": load_plain,
    "own-checkpoint": load_own,
    "checkpoint-assigned": lambda layer: load_own(layer, assign=True),
    "double": lambda layer: layer.double(),
    "in-place-on-the-weight": lambda layer: layer.weight.mul_(3),
    "vector_to_parameters": lambda layer: nn.utils.vector_to_parameters(torch.randn(24), layer.parameters()),
    "data-in-place-then-eval": lambda layer: (original_of(layer).data.add_(1), layer.eval()),
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
        before = layer.weight
        old = before.clone()
    with torch.no_grad():
        change(layer)
    with without_gradients():
        after = layer.weight
        assert torch.equal(after, weight_now(layer))
        assert torch.equal(
            layer(INPUTS.to(after.dtype)), nn.functional.linear(INPUTS.to(after.dtype), after, layer.bias)
        )
    if change is not CHANGES["in-place-on-the-weight"]:
        assert not torch.equal(after.float(), old)


def test_only_a_change_behind_the_version_counter_in_the_midst_of_an_evaluation_goes_unseen(layer):
    with torch.no_grad():
        before = layer.weight
        original_of(layer).data.add_(torch.arange(5.0))
        assert layer.weight is before
        layer.eval()
        assert not torch.equal(layer.weight, before)


def test_a_snapshot_of_the_weight_stays_as_it_was(layer):
    with torch.no_grad():
        snapshot = layer.weight
        values = snapshot.clone()
        original_of(layer).mul_(2)
        layer(INPUTS)
    assert torch.equal(snapshot, values)


@pytest.mark.parametrize(
    "forget",
    [
        pytest.param(lambda layer: layer(INPUTS), id="with-gradients"),
        pytest.param(lambda layer: layer.train(), id="train"),
        pytest.param(lambda layer: layer.eval(), id="eval"),
    ],
)
def test_the_weight_is_freed_when_evaluation_ends(layer, forget):
    with torch.no_grad():
        kept = weakref.ref(layer.weight)
    assert kept() is not None
    forget(layer)
    gc.collect()
    assert kept() is None


def test_copies_and_state_dicts_and_pickles_do_not_carry_it(layer):
    with torch.no_grad():
        layer(INPUTS)
        assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original"}
        constraint = layer.parametrizations.weight[0]
        for copied in (copy.deepcopy(constraint), copy.copy(constraint.cache), pickle.loads(pickle.dumps(constraint))):
            assert getattr(copied, "cache", copied).entry is None
        assert constraint.cache.entry is not None
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


def test_threads_that_evaluate_at_once_agree(layer):
    expected, outputs = weight_now(layer), []

    def evaluate():
        with torch.no_grad():
            outputs.extend(layer.weight for _ in range(50))

    threads = [threading.Thread(target=evaluate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 200
    assert all(torch.equal(output, expected) for output in outputs)


def test_a_parameter_that_counts_no_versions_is_not_kept():
    with torch.inference_mode():
        layer = linearly_constrained(nn.Linear(6, 4)).eval()
        before = layer.weight.clone()
        original_of(layer).mul_(2)
        assert torch.equal(layer.weight, 2 * before)


def test_a_change_while_the_weight_is_built_is_seen(layer):
    constraint = layer.parametrizations.weight[0]
    compute = type(constraint).forward

    def compute_and_change(original):
        weight = compute(constraint, original)
        original.add_(torch.arange(5.0))  # as another thread may
        return weight

    with torch.no_grad():
        constraint.forward = compute_and_change
        stale = layer.weight
        del constraint.forward
        assert torch.equal(layer.weight, weight_now(layer))
        assert not torch.equal(layer.weight, stale)


def test_memory_that_other_processes_can_write_is_not_trusted(layer):
    layer.share_memory()
    with torch.no_grad():
        before = layer.weight
        torch.from_dlpack(original_of(layer).detach()).add_(torch.arange(5.0))
        assert not torch.equal(layer.weight, before)


def test_what_records_operations_sees_the_map(layer):
    with torch.no_grad():
        layer(INPUTS)
        recorded = make_fx(layer)(INPUTS)
        before = recorded(INPUTS)
        original_of(layer).mul_(2)
        torch.testing.assert_close(recorded(INPUTS), layer(INPUTS))
        assert not torch.equal(recorded(INPUTS), before)


def test_weights_kept_before_a_process_group_exists_are_not_used_within_it(layer, tmp_path):
    with torch.no_grad():
        before = layer.weight
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
        try:
            assert layer.weight is not before
            assert layer.weight is not layer.weight
        finally:
            torch.distributed.destroy_process_group()


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
