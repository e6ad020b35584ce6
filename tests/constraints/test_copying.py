import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lcw_lightning import constrain, fold
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.constraints.copying import detached_copy


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


def by_torch(module):
    file = io.BytesIO()
    torch.save(module, file)  # with an older protocol, which can pickle less
    file.seek(0)
    return torch.load(file, weights_only=False)


kinds = pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])
ways = pytest.mark.parametrize("by", [by_pickle, by_torch, copy.deepcopy])


class Scaled(nn.Linear):
    """A user's layer, with a state of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.scale, self.log = 2.0, print

    def forward(self, inputs):
        return self.scale * super().forward(inputs)

    def __getstate__(self):
        return {key: value for key, value in super().__getstate__().items() if key != "log"}

    def __setstate__(self, state):
        super().__setstate__(state | {"log": print})


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 3), images(4, 6)),
    "subclass": (lambda: Scaled(6, 3), images(4, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2).to(memory_format=torch.channels_last), images(2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), images(2, 4, 5, 5)),
    "lstm": (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True), images(3, 2, 4)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), images(3, 2, 4)),
}
layers = pytest.mark.parametrize(("make", "inputs"), LAYERS.values(), ids=LAYERS)


def output(module, inputs):
    result = module(inputs)
    return result[0] if isinstance(result, tuple) else result


def step(module, inputs):
    output(module, inputs).square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.sub_(parameter.grad, alpha=0.1)
    return module.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@kinds
@layers
@ways
def test_a_copy_has_every_bit_stays_constrained_and_trains_likewise(by, make, inputs, kind):
    module = make()
    constrain(module, kind)
    step(module, inputs)
    before = copy.deepcopy(module.state_dict())
    twin = by(module)
    assert same(module.state_dict(), before)
    assert same(twin.state_dict(), before)
    assert constrained_weights(twin) == constrained_weights(module) != {}
    module.zero_grad(), twin.zero_grad()
    assert same(step(twin, inputs), step(module, inputs))
    module.eval(), twin.eval()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(output(twin, inputs), output(module, inputs))


def test_without_it_torch_pickles_no_parametrized_module():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        by_pickle(module)


@kinds
@pytest.mark.parametrize("by", [by_pickle, by_torch])
def test_what_was_pickled_is_like_any_constrained_module(by, kind):
    module, plain = (nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 3)) for _ in range(2))
    constrain(module, kind)
    twin = by(by(copy.deepcopy(module)))
    assert type(twin[0]).__name__ == type(module[0]).__name__ == "ParametrizedLinear"
    assert same(fold(twin).state_dict(), fold(module).state_dict())
    assert type(fold(twin)[0]) is nn.Linear
    before = copy.deepcopy(module.state_dict())
    twin.load_state_dict(plain.state_dict())
    assert same(module.state_dict(), before)
    assert not same(twin.state_dict(), before)
    parametrize.remove_parametrizations(twin[0], "weight")
    assert type(twin[0]) is nn.Linear
    assert constrained_weights(module) == {"0.weight": kind, "2.weight": kind}


def test_a_spectral_norm_does_not_move_when_its_recurrent_layer_is_pickled():
    module = nn.GRU(4, 5)
    constrain(module, "sn")
    before = copy.deepcopy(module.state_dict())
    module.weight_hh_l0  # noqa: B018
    moved = copy.deepcopy(module.state_dict())
    by_pickle(module)
    assert same(module.state_dict(), moved)
    assert not same(before, moved)


class Doubling(nn.Module):
    def forward(self, tensor):
        return 2 * tensor


def test_a_parametrization_of_the_users_own_beside_ours_is_pickled_too():
    module = nn.Linear(6, 3)
    constrain(module)
    parametrize.register_parametrization(module, "bias", Doubling())
    parametrize.register_parametrization(module, "weight", Doubling())
    twin = by_torch(module)
    assert torch.equal(twin(images(4, 6)), module(images(4, 6)))
    assert torch.equal(twin.bias, 2 * module.parametrizations.bias.original)


def test_a_shared_layer_stays_shared():
    layer = nn.Linear(4, 4)
    module = nn.Sequential(layer, nn.Tanh(), layer)
    constrain(module)
    twin = by_torch(module)
    assert twin[0] is twin[2]


class Remembering(nn.Module):
    """Keeps what its last forward pass computed, as attention maps are kept for figures."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.maps = []

    def forward(self, inputs):
        self.last = self.layer(inputs)
        self.maps.append(self.last)
        return self.last.tanh()


def test_a_module_that_keeps_tensors_of_a_graph_is_copied_and_folded():
    module = Remembering()
    constrain(module)
    module(images(4, 6))
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(module)
    for twin in (detached_copy(module), fold(module)):
        assert torch.equal(twin.last, module.last)
        assert twin.last is twin.maps[0]
        assert not twin.last.requires_grad
        assert all(parameter.requires_grad for parameter in twin.parameters())
    assert module.last.requires_grad


class HandsOn(nn.Module):
    """Wraps a layer and hands on its attributes, as peft's wrappers do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, inputs):
        return 2 * self.layer(inputs)


WAYS = {"deepcopy": copy.deepcopy, "pickle": by_pickle, "fold": fold}


@pytest.mark.parametrize("by", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])
def test_a_wrapper_that_hands_on_its_layers_attributes_is_copied_whole(kind, by):
    wrapper, inputs = HandsOn(nn.Linear(4, 3)), images(5, 4)
    constrain(wrapper, kind)
    twin = by(wrapper.eval())
    assert type(twin) is HandsOn
    assert torch.equal(twin(inputs), wrapper(inputs))
