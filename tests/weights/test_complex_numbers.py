"""Layers of complex numbers within a network are left alone, and said."""

import contextlib
import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.utils.parametrizations import orthogonal
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import (
    ConstraintCallback,
    ImageClassifier,
    MinibatchInitCallback,
    ShiftMonitor,
    analyze,
    centered_weight_norm,
    constrain,
    edge_of_chaos_init_,
    fold,
    linearly_constrained,
    minibatch_init_,
)
from lcw_lightning.weights.plan import plan_weights

X = torch.rand(16, 8)
LEFT = r"left as they are: '0\.weight' \(complex numbers\)"


def draw(network, inputs, **patterns):
    edge_of_chaos_init_(network, inputs, activation=torch.tanh, weights="gaussian", **patterns)


def look(network, inputs, **patterns):
    analyze(network, (inputs, torch.randint(3, (16,))), **patterns)


VERBS = [minibatch_init_, draw, look]


def name_of(verb):
    return verb.__name__


class Magnitude(nn.Module):
    def forward(self, x):
        return x.abs()


@pytest.fixture(params=[torch.complex64, torch.float32], ids=["complex", "real"])
def network(request):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8, dtype=request.param), Magnitude(), nn.Linear(8, 3))


@pytest.fixture
def is_complex(network):
    return network[0].weight.is_complex()


@pytest.fixture
def inputs(network):
    return X.to(network[0].weight.dtype)


def test_they_are_named_as_what_is_left_out(network, is_complex):
    assert plan_weights(network, "lcw").left_out == ({"0.weight": "complex numbers"} if is_complex else {})


def test_they_are_named_under_a_parametrization_too():
    network = nn.Sequential(orthogonal(nn.Linear(8, 8, dtype=torch.complex64)), nn.Linear(8, 3))
    assert plan_weights(network, "lcw").left_out == {"0.weight": "complex numbers"}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_ones_are_named_before_they_are_built():
    assert plan_weights(nn.LazyLinear(8, dtype=torch.complex64), "lcw").left_out == {"weight": "complex numbers"}


@pytest.mark.filterwarnings("ignore:.* left out. '0.weight' .complex numbers.:UserWarning")
@pytest.mark.parametrize("kind", ["lcw", "wn", "cwn", "sn"])
def test_every_kind_takes_the_real_weights_alone(kind, network, is_complex, inputs):
    assert constrain(network, kind) == (["2.weight"] if is_complex else ["0.weight", "2.weight"])
    network(inputs).sum().backward()
    assert network[0].bias.grad is not None


def test_layers_around_them_are_initialized_and_analyzed(network, is_complex, inputs):
    before = copy.deepcopy(network[0])
    with pytest.warns(UserWarning, match=LEFT) if is_complex else contextlib.nullcontext():
        minibatch_init_(network, inputs)
    assert torch.equal(network[0].weight, before.weight) == is_complex
    assert float(network(inputs).detach().std(correction=0)) == pytest.approx(1, rel=1e-4)
    report = analyze(network, (inputs, torch.randint(3, (16,))))
    assert list(report.statistics) == (["2"] if is_complex else ["0", "2"])
    assert ("not those of '0.weight' (complex numbers)" in str(report)) == is_complex


def test_edge_of_chaos_initialization_names_them(network, is_complex, inputs):
    with pytest.warns(UserWarning, match=LEFT) if is_complex else contextlib.nullcontext():
        edge_of_chaos_init_(network, inputs, activation=torch.tanh, weights="gaussian")


@pytest.mark.parametrize("verb", VERBS, ids=name_of)
def test_patterns_may_name_them(verb, network, inputs):
    before = copy.deepcopy(network[0])
    verb(network, inputs, exclude=["0.weight"])
    assert torch.equal(network[0].weight, before.weight)


def test_a_network_of_them_alone_is_not_drawn_nor_analyzed():
    network = nn.Sequential(nn.Linear(8, 3, dtype=torch.complex64), Magnitude())
    with pytest.raises(ValueError, match=r"Sequential has none; left are: '0\.weight' \(complex numbers\)"):
        draw(network, X.to(torch.complex64))
    with pytest.raises(ValueError, match="needs real weights, but those chosen of Sequential are complex"):
        look(network, X.to(torch.complex64))
    with pytest.warns(UserWarning, match=LEFT):
        minibatch_init_(network, X.to(torch.complex64))


class Filter(nn.Linear):
    """A real weight beside complex numbers, with which the layer filters its outputs."""

    def __init__(self, features, hold):
        super().__init__(features, features)
        hold(self, "filter", torch.ones(features // 2 + 1, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(super().forward(x)) * self.filter, n=self.out_features)


def as_parameter(layer, name, value):
    layer.register_parameter(name, nn.Parameter(value))


@pytest.mark.parametrize("hold", [as_parameter, nn.Module.register_buffer], ids=["parameter", "buffer"])
@pytest.mark.parametrize("kind", ["lcw", "wn", "cwn", "sn"])
def test_a_real_weight_beside_them_is_taken(kind, hold):
    network = nn.Sequential(Filter(8, hold), nn.Linear(8, 3))
    assert constrain(network, kind) == ["0.weight", "1.weight"]
    if kind != "sn":
        minibatch_init_(network, X)
    assert list(analyze(network, (X, torch.randint(3, (16,)))).statistics) == ["0", "1"]
    network.eval()
    torch.testing.assert_close(fold(network)(X), network(X))


def test_a_network_whose_weights_are_all_vectors_is_analyzed():
    network = nn.Sequential(nn.Linear(8, 1, dtype=torch.complex64), Magnitude(), nn.Linear(1, 3))
    assert list(analyze(network, (X.to(torch.complex64), torch.randint(3, (16,)))).statistics) == ["2"]


def test_a_real_matrix_above_them_keeps_its_reason(network):
    network.register_parameter("position", nn.Parameter(torch.randn(4, 8)))
    assert plan_weights(network, "lcw").left_out["position"] == "unknown layer type; see register_layer_type"


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("method", ["parametrize", "project"])
def test_the_callbacks_train_and_resume_with_them(method, network, inputs, tmp_path):
    optimizer = partial(torch.optim.SGD, lr=0.1)
    batches = DataLoader(TensorDataset(inputs, torch.randint(3, (16,))), batch_size=8)

    def fit(epochs, **settings):
        module = ImageClassifier(copy.deepcopy(network), optimizer)
        callbacks = [ConstraintCallback(method=method), MinibatchInitCallback(), ShiftMonitor(every_n_steps=1)]
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False, callbacks=callbacks, **quiet)
        trainer.fit(module, batches, **settings)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    whole = fit(2)
    fit(1)
    resumed = fit(2, ckpt_path=tmp_path / "1.ckpt", weights_only=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("verb", [linearly_constrained, centered_weight_norm])
def test_one_layer_of_them_is_refused(verb):
    with pytest.raises(ValueError, match=r"Linear\.weight of shape \(4, 3\) cannot be constrained: complex numbers"):
        verb(nn.Linear(3, 4, dtype=torch.complex64))
