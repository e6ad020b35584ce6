"""The layer that cannot take its input is named, and no other error is touched."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lcw_lightning import MLP, constrain
from lcw_lightning.weights.failing_layer import failing_layer_named, run_network

X = torch.rand(8, 64)


class Own(nn.Module):
    """A network that reads its input before any of torch's layers does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, x, mask=None):
        return self.layer(x.flatten(1).clamp(0, 1))


class TrainingStepAlone(LightningModule):
    """A module as many users write it."""

    def training_step(self, batch, batch_idx):
        return batch.sum()


def lstm():
    return nn.LSTM(10, 3)


def constrained():
    network = MLP(63, 10, depth=2, width=8)
    constrain(network)
    return network


def net():
    return MLP(64, 10, depth=2, width=8)


def normed():
    return MLP(64, 10, depth=2, width=8, norm="batch")


MISFITS = {
    "features": (
        lambda: MLP(63, 10, depth=2, width=8),
        (X,),
        r"'hidden.0.linear', Linear\(in_features=63, .*\), cannot take an input of shape \(8, 64\): it takes 63 ",
    ),
    "features-constrained": (constrained, (X,), r"'hidden.0.linear', Linear\(in_features=63, .*, and got 64\.$"),
    "channels": (lambda: nn.Conv2d(3, 4, 3), (torch.rand(2, 1, 8, 8),), r"it takes 3 channels, and got 1\.$"),
    "norm-channels": (lambda: nn.BatchNorm1d(5), (X,), r"it takes 5 channels, and got 64\.$"),
    "one-sample": (normed, (X[:1],), r"'hidden.0.norm', BatchNorm1d\(8, .*takes two samples or more; make batches"),
    "dtype": (net, ((X * 255).byte(),), r"it takes torch.float32, and got torch.uint8\.$"),
    "recurrent": (
        lstm,
        (X,),
        r"^LSTM\(10, 3\) cannot take an input of shape \(8, 1, 64\): input.size\(-1\) must be equal",
    ),
    "meta": (net, (X.to("meta"),), r"it is on cpu, and its input on meta\.$"),
    "embedding": (lambda: nn.Embedding(5, 2), (torch.tensor([4, 7]),), r"it has numbers 0 to 4, and got 4 to 7\.$"),
    "numpy": (lambda: nn.Linear(64, 2), (X.numpy(),), r"cannot take a ndarray: give tensors, one for each argument"),
    "tuple": (lambda: nn.Linear(64, 2), ((X, X),), r"cannot take a tuple: give tensors, one for each argument"),
    "dict": (lambda: nn.Linear(64, 2), ({"x": X},), r"cannot take a dict: give tensors, one for each argument"),
    "own-numpy": (
        Own,
        (X.numpy(),),
        r"who runs model\(\*inputs\), and Own could not take \(ndarray\): .*; give tensors",
    ),
    "own-dict": (Own, ({"x": X},), r"Own could not take \(dict\): 'dict' object has no attribute 'flatten'; give"),
    "nothing": (Own, (), r"Own.forward\(x, mask=None\) got 0 inputs: missing a required argument: 'x'\.$"),
    "too-many": (Own, (X, X, X), r"Own.forward\(x, mask=None\) got 3 inputs: too many positional arguments\.$"),
}


def test_arguments_by_name_that_a_network_does_not_take_are_one_sentence():
    with pytest.raises(
        ValueError, match=r"^who runs .* Own.forward\(x, mask=None\) got inputs named 'x', 'y': got an "
    ):
        run_network("who", Own(), (), {"x": X, "y": X})
    assert run_network("who", Own(), (), {"x": X}).shape == (8, 3)


class Adding(nn.Module):
    """Its own call gives forward an argument."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def __call__(self, x):
        return super().__call__(x, 2.0)

    def forward(self, x, factor):
        return factor * self.layer(x)


class Delegating(nn.Module):
    """Its forward is the call of another module."""

    def __init__(self):
        super().__init__()
        self.net = Own()
        self.forward = self.net.__call__


def hooked():
    network = Own()
    network.register_forward_pre_hook(lambda _, args: (*args, None))
    return network


CALLABLE = {
    "own-call": Adding,
    "delegating": Delegating,
    "hooked": hooked,
    "compiled": lambda: torch.compile(Own(), backend="eager"),
}


@pytest.mark.parametrize("make", CALLABLE.values(), ids=CALLABLE)
def test_however_a_network_is_called_it_runs(make):
    assert run_network("who", make(), (X,)).shape == (8, 3)


def test_a_list_of_modules_that_a_network_calls_is_named_by_torch():
    class Calling(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(64, 3)])

        def forward(self, x):
            return self.blocks(x)

    with pytest.raises(NotImplementedError, match="ModuleList"):
        run_network("who", Calling(), (X,))


def test_an_error_of_a_network_that_got_what_it_takes_is_its_own():
    class Faulty(nn.Module):
        def forward(self, x, mask, scale):
            return x.nothing

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        run_network("who", Faulty(), (X, None, 2.0))


@pytest.mark.parametrize("module", [nn.ModuleList([nn.Linear(64, 2)]), TrainingStepAlone()], ids=["torch", "lightning"])
def test_a_module_without_forward_is_named(module):
    with pytest.raises(ValueError, match=rf"who runs .* {type(module).__name__} has no forward; define it, or give a"):
        run_network("who", module, (X,))


@pytest.mark.parametrize(("make", "inputs", "says"), MISFITS.values(), ids=MISFITS)
def test_inputs_that_do_not_fit_are_one_sentence(make, inputs, says):
    with pytest.raises(ValueError, match=says) as error:
        run_network("who", make(), inputs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [net, Own], ids=["torch", "own"])
def test_inputs_that_fit_give_the_outputs(make):
    network = make().eval()
    assert torch.equal(run_network("who", network, (X,)), network(X))


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.layer, self.error = nn.Linear(64, 3), error

    def forward(self, x):
        self.layer(x)
        raise self.error


@pytest.mark.parametrize(
    "error",
    [ValueError("mine"), RuntimeError("mine"), TypeError("mine"), torch.OutOfMemoryError("mine"), KeyError("mine")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_networks_own_stays_what_it_is(error):
    with pytest.raises(type(error), match="mine") as raised:
        run_network("who", Failing(error), (X,))
    assert raised.value is error


def test_a_lack_of_memory_in_a_layer_is_no_misfit(monkeypatch):
    def forward(self, input):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(nn.Linear, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError, match="full"), failing_layer_named():
        nn.Linear(64, 2)(X)


def test_numpy_arrays_that_the_network_turns_into_tensors_are_taken():
    class Takes(nn.Module):
        def forward(self, array):
            return torch.from_numpy(array)

    assert torch.equal(run_network("who", Takes(), (np.ones(3),)), torch.ones(3, dtype=torch.float64))
