import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import Replicate, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from lcw_lightning import constrain
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.weights.weight_ref import named_weights

WRAPPINGS = {
    "plain": {},
    "bucket-views": {"gradient_as_bucket_view": True},
    "unused-parameters": {"find_unused_parameters": True},
    "static-graph": {"static_graph": True},
    "small-buckets": {"bucket_cap_mb": 1e-4, "gradient_as_bucket_view": True},
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.03),
}


def network(project=True):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    if project:
        constrain(model, method="project")
    return model


def train(model, batches, optimizer):
    """Steps of two accumulated batches each, the gradient's norm clipped; return weights and the norms."""
    norms = []
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        optimizer.zero_grad(set_to_none=len(norms) % 2 == 0)
        # A static graph does not take no_sync() in its first step.
        accumulates = isinstance(model, DistributedDataParallel) and not model.static_graph
        with model.no_sync() if accumulates else nullcontext():
            model(first).square().mean().backward()
        model(second).square().mean().backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
    return {**copy.deepcopy(getattr(model, "module", model).state_dict()), "norms": torch.stack(norms)}


def sharded():
    """A network whose first and last layer have their units on different ranks, and the second parts of each unit."""
    model, whole_rows = network(), ColwiseParallel(output_layouts=Replicate())
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel(), "4": whole_rows}
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
    assert constrained_weights(model) == {}  # these are other parameters
    constrain(model, method="project")
    return model


def train_sharded(batches, make_optimizer):
    """As above; then ask a new optimizer for its state, to make which torch takes a step of rate 0."""
    model = sharded()
    path = train(model, batches, make_optimizer(model.parameters()))
    trained = {key: value.full_tensor() for key, value in path.items()}
    get_optimizer_state_dict(model, make_optimizer(model.parameters()))
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value.full_tensor(), trained[key])]
    return {**trained, "moved": moved}


def train_on_rank(rank, batches):
    results = {}
    for wrapping, settings in WRAPPINGS.items():
        for name, make in OPTIMIZERS.items():
            model = DistributedDataParallel(network(), **settings)
            results[wrapping, name] = train(model, batches[:, rank::2], make(model.parameters()))
    return results | {name: train_sharded(batches, make) for name, make in OPTIMIZERS.items()}


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(0)
    return 1 + torch.randn(8, 20, 12, dtype=torch.float64)


@pytest.fixture(scope="module")
def ranks(batches, on_two_ranks):
    return on_two_ranks(train_on_rank, batches)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_two_ranks_train_as_one_process_does_and_stay_bit_equal(wrapping, optimizer, ranks, batches):
    first, second = (results[wrapping, optimizer] for results in ranks)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    model = network()
    expected = train(model, batches, OPTIMIZERS[optimizer](model.parameters()))
    for key, value in expected.items():
        torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-9)
    for name in named_weights(model):
        assert first[name].sum(1).abs().max() < 1e-14
    plain = network(project=False)
    plain_path = train(plain, batches, OPTIMIZERS[optimizer](plain.parameters()))
    assert (plain_path["0.weight"] - first["0.weight"]).abs().max() > 1e-2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sharded_weights_take_the_same_path_once_they_are_held_again(optimizer, ranks, batches):
    found, model = ranks[0][optimizer], network()
    expected = train(model, batches, OPTIMIZERS[optimizer](model.parameters()))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)
    assert found["moved"] == []
