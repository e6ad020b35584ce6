import copy

import pytest
import torch
from torch import nn

from lcw_lightning.weights.restoring import restored, undisturbed, unless_it_fails


class Counting(nn.Module):
    """Moves a buffer in place, replaces another, and draws numbers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", None)

    def forward(self, inputs):
        self.count = self.count + 1
        return nn.functional.dropout(self.norm(inputs))


def test_buffers_and_random_numbers_are_put_back_even_after_an_exception():
    module, inputs = Counting(), torch.rand(8, 2)
    before, random, count = copy.deepcopy(module.state_dict()), torch.get_rng_state(), module.count

    def run():
        with undisturbed(module):
            module(inputs)
            assert module.count == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    assert module.count is count
    assert torch.equal(torch.get_rng_state(), random)
    module(inputs)  # a control
    assert not any(torch.equal(module.state_dict()[key], before[key]) for key in ("norm.running_mean", "count"))
    assert not torch.equal(torch.get_rng_state(), random)


class Swapped(nn.Module):
    """A parameter and a buffer, to be changed in every way that there is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("count", torch.zeros(()))


@torch.no_grad()
def write_in_place(module):
    module.weight.zero_()
    module.count.add_(1)


def write_by_data(module):
    module.weight.data = torch.zeros(3)
    module.count.data = torch.ones(())


def exchange(module):
    module.weight = nn.Parameter(torch.zeros(3))
    module.count = module.count + 1


def freeze(module):
    module.weight.requires_grad_(False)
    write_in_place(module)


CHANGES = {change.__name__: change for change in (write_in_place, write_by_data, exchange, freeze)}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def state(module):
    """Which tensors a module holds, where their memory is, what is in it, and whether they are trained."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {key: (id(t), t.data_ptr(), t.tolist(), t.requires_grad) for key, t in held.items()}


def raising(module, change):
    change(module)
    raise ZeroDivisionError


@changes
def test_an_error_puts_everything_back(change):
    module = Swapped()
    before = state(module)
    with pytest.raises(ZeroDivisionError), unless_it_fails(module):
        raising(module, change)
    assert state(module) == before


@changes
def test_without_an_error_the_change_stays(change):
    module = Swapped()
    before = state(module)
    with unless_it_fails(module):
        change(module)
    assert all(state(module)[key] != before[key] for key in before)


@changes
def test_weights_gradients_and_buffers_are_restored_without_an_error_too(change):
    module = Swapped()
    module.weight.grad = torch.ones(3)
    before, gradient = state(module), module.weight.grad
    with restored(module):
        module.weight.grad.zero_()
        change(module)
    assert state(module) == before
    assert module.weight.grad is gradient
    assert gradient.tolist() == [1.0, 1.0, 1.0]


def test_a_lazy_parameter_may_take_its_shape_within_the_block():
    layer = nn.LazyLinear(2)
    with pytest.raises(ZeroDivisionError), unless_it_fails(layer):
        raising(layer, lambda layer: layer(torch.zeros(1, 3)))
    assert layer.weight.shape == (2, 3)
