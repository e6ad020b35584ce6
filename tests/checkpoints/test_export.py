import copy
import random
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lcw_lightning import MLP, constrain
from lcw_lightning.checkpoints.export import export

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")), reason="needs the extra onnx"
)
ONNX = pytest.param("onnx", marks=needs_onnx)
FORMATS = ["safetensors", "pt", "pt2", ONNX]


def mlp():
    return MLP(in_features=64, num_classes=10, depth=3, width=16)


def conv():
    """Convolutions, one of them grouped, and a BatchNorm that has seen data."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 10)
    )
    network(torch.rand(8, 1, 8, 8))
    return network


def runner(path, plain):
    """What the file computes, read by the format's own library; weights go into ``plain``, never constrained."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        names = [held.name for held in session.get_inputs()]

        def run(*inputs):
            arrays = [tensor.numpy() for tensor in inputs]
            return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

        return run
    state_dict = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    plain.load_state_dict(state_dict)
    return plain.eval()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("build", [mlp, conv])
def test_the_file_computes_what_the_constrained_network_does_for_any_batch_size(build, suffix, tmp_path):
    network = build()
    constrain(network)
    path = export(network, tmp_path / f"model.{suffix}", torch.rand(1, 1, 8, 8))
    run = runner(path, plain=build())
    network.eval()
    for size in (1, 2, 7):
        images = torch.randn(size, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(run(images), network(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", FORMATS)
def test_parameters_keep_their_plain_names_and_values(suffix, tmp_path):
    network = conv()
    constrain(network)
    weights = {name: value for name, value in network.state_dict().items() if "parametrizations" not in name}
    weights |= {f"{name}.weight": network[int(name)].weight.detach() for name in ("0", "3", "5")}
    path = export(network, tmp_path / f"model.{suffix}", torch.rand(1, 1, 8, 8))
    if suffix == "onnx":
        import onnx

        held = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in onnx.load(path).graph.initializer}
        for tensors in (held, weights):  # no output depends on it, and some versions leave it out
            tensors.pop("1.num_batches_tracked", None)
    elif suffix == "pt2":
        held = torch.export.load(path).state_dict
    else:
        held = runner(path, conv()).state_dict()
    assert held.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(held[name], value), name


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_file_has_the_permissions_of_any_new_file(suffix, tmp_path):
    (tmp_path / "any").touch()
    path = export(nn.Linear(3, 3), tmp_path / f"model.{suffix}", torch.rand(1, 3))
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_network_and_all_generators_stay_as_they_were(suffix, tmp_path):
    network = conv()
    constrain(network)
    network[0].eval()

    def state():
        modes = [module.training for module in network.modules()]
        return modes, random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()

    before, weights = state(), copy.deepcopy(network.state_dict())
    export(network, tmp_path / f"model.{suffix}", torch.rand(1, 1, 8, 8, generator=torch.Generator()))
    assert state() == before
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


class Noisy(nn.Linear):
    """Random in eval mode too."""

    def forward(self, x):
        return super().forward(x) + torch.rand(1)


class Counting(nn.Linear):
    """Another output with each call, from a count that no state dict holds."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Forgetful(nn.Linear):
    """Computes with a tensor that its state dict leaves out, as a wrong fold would."""

    def __deepcopy__(self, memo):
        made = Forgetful(self.in_features, self.out_features)
        made.load_state_dict(self.state_dict())
        made.hidden = torch.rand(1)
        return made

    def forward(self, x):
        return super().forward(x) + self.hidden


DISAGREEING = [(Noisy, "safetensors"), (Noisy, "pt"), (Noisy, "pt2"), pytest.param(Noisy, "onnx", marks=needs_onnx)]
cannot_trace = pytest.mark.skipif(torch.__version__.startswith("2.6"), reason="torch 2.6 refuses it itself, see below")
DISAGREEING += [(Forgetful, "safetensors"), (Forgetful, "pt"), pytest.param(Forgetful, "pt2", marks=cannot_trace)]


@pytest.mark.parametrize(("network", "suffix"), DISAGREEING)
def test_a_file_that_computes_something_else_is_not_put_in_place(network, suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    path.write_text("old")
    with pytest.raises(
        ValueError, match=r"does not compute the same outputs as the network(.|\n)*Greatest absolute difference: \d"
    ):
        export(network(3, 3), path, torch.rand(1, 3))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("network", [Counting, Forgetful])
def test_a_network_that_changes_unseen_is_refused_where_the_file_could_not(network, tmp_path):
    # Some versions of torch cannot trace it, others trace its first call.
    with pytest.raises((ValueError, RuntimeError), match=r"does not compute the same outputs|cannot be written"):
        export(network(3, 3), tmp_path / "model.pt2", torch.rand(1, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_a_network_that_has_become_nan_is_refused(suffix, tmp_path):
    network = nn.Linear(3, 3)
    nn.init.constant_(network.weight, float("nan"))
    with pytest.raises(ValueError, match="difference: nan"):
        export(network, tmp_path / f"model.{suffix}", torch.rand(1, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.bin", "model", "model.safetensors.gz"])
def test_an_unknown_suffix_is_refused_before_any_work(name, tmp_path):
    with pytest.raises(ValueError, match=r"export writes \.safetensors, \.pt, \.pt2, \.onnx; got"):
        export(None, tmp_path / "new" / name, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named_with_the_way_to_install_it(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs .*{missing}.*: pip install 'lcw_lightning\[onnx\]'"):
        export(mlp(), tmp_path / "model.onnx", torch.rand(1, 64))
    assert not list(tmp_path.iterdir())


def test_inputs_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"MLP does not run on inputs of shapes \(3, 63\), \(5, 63\): .*shapes cannot be"
    ):
        export(mlp(), tmp_path / "model.pt", torch.rand(1, 63))


def test_what_the_exporter_cannot_take_is_said_and_the_old_file_stays(tmp_path):
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    path = tmp_path / "model.pt2"
    path.write_text("old")
    with pytest.raises(RuntimeError, match=r"Branching cannot be written to .*model\.pt2: "):
        export(Branching(3, 3), path, torch.rand(1, 3))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class Tied(nn.Module):
    """Takes tokens; the output weight is the embedding, under a second name."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.output = nn.Linear(4, 7, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return {"logits": self.output(self.embedding(tokens))}


@pytest.mark.parametrize("suffix", FORMATS)
def test_tied_weights_tokens_and_outputs_by_name_are_exported(suffix, tmp_path):
    network, tokens = Tied(), torch.tensor([[5, 1], [0, 2]])
    path = export(network, tmp_path / f"model.{suffix}", torch.tensor([[0, 3]]))
    outputs = runner(path, Tied())(tokens)
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs  # ONNX has no dicts
    torch.testing.assert_close(logits, network(tokens)["logits"])


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_network_in_channels_last_is_exported(suffix, tmp_path):
    network = conv().to(memory_format=torch.channels_last)
    path = export(network, tmp_path / f"model.{suffix}", torch.rand(1, 1, 8, 8))
    assert torch.equal(runner(path, conv())[3].weight, network[3].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pt2"])
def test_every_dtype_is_exported(dtype, suffix, tmp_path):
    network = mlp()
    constrain(network)
    images = torch.rand(3, 64, dtype=dtype)
    path = export(network.to(dtype), tmp_path / f"model.{suffix}", images[:1])
    outputs = runner(path, mlp().to(dtype))(images)
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs, network(images))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", ONNX])
def test_a_recurrent_network_of_two_inputs_is_exported(suffix, tmp_path):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 8, num_layers=2, batch_first=True)

        def forward(self, x, shift):
            return self.lstm(x + shift[:, None])

    network, inputs = Recurrent(), (torch.rand(2, 5, 4), torch.rand(2, 4))
    path = export(network, tmp_path / f"model.{suffix}", torch.rand(1, 5, 4), torch.rand(1, 4))
    outputs = runner(path, Recurrent())(*inputs)
    states = outputs if suffix == "onnx" else outputs[0]
    torch.testing.assert_close(states, network(*inputs)[0], rtol=1e-4, atol=1e-6)
