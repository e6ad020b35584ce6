"""What other libraries do to a constrained network in evaluation: load weights late, and exchange them by ``.data``."""

import copy
import functools
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lcw_lightning import constrain

INPUTS = torch.linspace(-1, 1, 12).view(2, 6)

holdings = pytest.mark.parametrize(
    "holding",
    [
        pytest.param({"kind": "none"}, id="none"),
        pytest.param({"kind": "lcw"}, id="lcw"),
        pytest.param({"kind": "lcw", "method": "project"}, id="project"),
        *(pytest.param({"kind": kind}, id=kind) for kind in ("cwn", "wn", "sn")),
    ],
)


@pytest.fixture(params=[torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def without_gradients(request):
    return request.param


def network(**holding):
    torch.manual_seed(1)
    convolutions = [nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 4, 2), nn.Tanh(), nn.ConvTranspose1d(4, 4, 3, groups=2)]
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *convolutions)
    constrain(model, **holding)
    return model.eval()


def offload(model):
    """Keep parameters on the meta device except while their module computes, as accelerate's cpu_offload does.

    Like its ``add_hook_to_module``, this replaces ``forward`` on each instance that owns parameters.
    """
    for part in model.modules():
        if part._parameters:
            part.forward = functools.wraps(part.forward)(functools.partial(_load_and_call, part, part.forward))
            part.stored = dict(part._parameters)
            _send_away(part)
    return model


def _load_and_call(part, forward, *args, **kwargs):
    part._parameters.update(part.stored)
    output = forward(*args, **kwargs)
    _send_away(part)
    return output


def _send_away(part):
    part._parameters.update({name: nn.Parameter(value.to("meta")) for name, value in part.stored.items()})


@holdings
def test_weights_that_a_replaced_forward_loads_are_used(holding, without_gradients):
    with without_gradients():
        expected, model = network(**holding)(INPUTS), offload(network(**holding))
        for _ in range(2):
            assert all(parameter.is_meta for parameter in model.parameters())
            assert torch.equal(model(INPUTS), expected)


def test_past_a_replaced_forward_there_are_no_numbers():
    held = offload(network(kind="lcw"))[0].parametrizations.weight
    assert parametrize.ParametrizationList.forward(held).is_meta
    assert not held().is_meta


@contextmanager
def averaged(parameters, averages):
    """Exchange parameters for their averages within the block, as torch_ema's average_parameters does."""
    stored = [parameter.clone() for parameter in parameters]
    for parameter, average in zip(parameters, averages, strict=True):
        parameter.data.copy_(average.data)
    yield
    for parameter, before in zip(parameters, stored, strict=True):
        parameter.data.copy_(before.data)


@holdings
def test_weights_exchanged_by_data_amid_an_evaluation_are_used(holding, without_gradients):
    model = network(**holding)
    # Averages of projected weights sum to zero; coordinates, gains and directions have any values.
    offset = 0 if "method" in holding else 0.1
    averages = [0.5 * parameter.detach() + offset for parameter in model.parameters()]
    expected = copy.deepcopy(model)
    nn.utils.vector_to_parameters(torch.cat([average.flatten() for average in averages]), expected.parameters())
    with without_gradients():
        before = model(INPUTS)
        with averaged(list(model.parameters()), averages):
            assert torch.equal(model(INPUTS), expected(INPUTS))
            assert not torch.equal(model(INPUTS), before)
        assert torch.equal(model(INPUTS), before)
