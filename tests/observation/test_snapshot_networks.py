"""What a snapshot shows of whole networks."""

import copy

import pytest
import torch
from torch import nn

from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.snapshot import Snapshot


def look(network, *inputs, loss=lambda output: output.square().sum(), gradient_scale=1.0):
    """Send inputs forward and backward through a network in a snapshot's view."""
    snapshot = Snapshot(observed_layers(network), gradient_scale=gradient_scale, with_values=True)
    with snapshot.watching():
        loss(network(*inputs)).backward()
    return snapshot


class Taped(nn.Module):
    """Stands in a layer's place, and keeps its inputs and outputs."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.inputs, self.outputs = [], []

    def __getattr__(self, name):  # transformers look at their attention
        return super().__getattr__(name) if name in ("layer", *vars(self)) else getattr(self.layer, name)

    def forward(self, first, *others, **kwargs):
        x = first * 1 if first.requires_grad else first.detach().requires_grad_()
        others = [x if other is first else other for other in others]
        output = self.layer(x, *others, **kwargs)
        z = output if isinstance(output, torch.Tensor) else output[0]
        for tensor, kept in ((x, self.inputs), (z, self.outputs)):
            tensor.retain_grad()
            kept.append(tensor)
        return output

    def expected(self):
        bias = getattr(self.layer, "out_proj", self.layer).bias
        a, z = self.flat(self.inputs), self.flat(self.outputs) - bias.detach()
        da, dz = (self.flat([tensor.grad for tensor in kept]) for kept in (self.inputs, self.outputs))
        return {
            "input_mean": a.mean().item(),
            "shift_ratio": (z.mean(0).square().mean() / variance(z)).sqrt().item(),
            "preactivation_std": variance(z).sqrt().item(),
            "gradient_std": variance(dz).sqrt().item(),
            "amplification_backward": (variance(da) / variance(dz)).item(),
        }

    @staticmethod
    def flat(tensors):
        return torch.cat([tensor.detach().double().flatten(0, -2) for tensor in tensors])


def variance(values):
    return values.var(0, correction=0).mean()


SMALL = {"d_model": 8, "nhead": 2, "dim_feedforward": 12}
TRANSFORMERS = {
    "encoder-layer": (lambda: nn.TransformerEncoderLayer(**SMALL, dropout=0.0), [(5, 4, 8)]),
    "encoder-layer-norm-first": (
        lambda: nn.TransformerEncoderLayer(**SMALL, dropout=0.3, norm_first=True, batch_first=True),
        [(4, 5, 8)],
    ),
    "transformer": (
        lambda: nn.Transformer(**SMALL, num_encoder_layers=2, num_decoder_layers=2),
        [(5, 4, 8), (6, 4, 8)],
    ),
}


@pytest.mark.parametrize(("make", "shapes"), TRANSFORMERS.values(), ids=TRANSFORMERS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_transformers_show_their_attention_and_their_linear_layers(make, shapes):
    network, inputs = make(), [torch.rand(shape) for shape in shapes]
    names = [name for name, module in network.named_modules() if name.endswith(("attn", "linear1", "linear2"))]
    plain, taped = copy.deepcopy(network), copy.deepcopy(network)
    for name in names:
        taped.set_submodule(name, Taped(taped.get_submodule(name)))

    torch.manual_seed(1)
    statistics = look(network, *inputs).statistics()
    torch.manual_seed(1)
    taped(*inputs).square().sum().backward()
    assert sorted(statistics) == sorted(names)
    for name, row in statistics.items():
        expected = taped.get_submodule(name).expected()
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6), name
        assert len(row) == 11

    torch.manual_seed(1)
    plain(*inputs).square().sum().backward()
    for (name, one), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


class Classifier(nn.Module):
    """Reads what it is told to of an LSTM."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads
        self.memory = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, sequences):
        output, (state, _) = self.memory(sequences)
        parts = {"output": output[:, -1], "state": state[-1]}
        return self.head(sum(parts[name] for name in self.reads))


@pytest.mark.parametrize("reads", [["output"], ["state"], ["output", "state"]], ids="-and-".join)
def test_classifiers_show_the_gradient_of_whatever_they_read_of_a_recurrent_layer(reads):
    network, sequences = Classifier(reads), torch.rand(16, 7, 4)
    statistics = look(network, sequences, loss=torch.sum).statistics()
    upstream = network.head.weight.detach().double().sum(0)  # dL/dh of every sample
    zeros, batch = torch.zeros(6, dtype=torch.float64), 16
    # The gradient is that of the last position, beside zeros, whatever is read.
    seen = [zeros] * 6 * batch + [len(reads) * upstream] * batch
    expected = variance(torch.stack(seen)).sqrt().item()
    assert statistics["memory"]["gradient_std"] == pytest.approx(expected, rel=1e-4, abs=1e-8)
    assert len(statistics["memory"]) == 11


class Loop(nn.Module):
    """Calls a shared layer three times, its last layer first, and one layer never."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = torch.tanh(self.shared(x))
        return x


def test_a_shared_layer_shows_the_union_of_its_calls():
    network, inputs = Loop(), torch.rand(32, 4)
    taped = copy.deepcopy(network)
    taped.shared = Taped(taped.shared)
    snapshot = look(network, inputs)
    taped(inputs).square().sum().backward()
    row, expected = snapshot.statistics()["shared"], taped.shared.expected()
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    sample, calls = snapshot.values()["shared", "preactivation"], [z.detach() for z in taped.shared.outputs]
    for call in calls:
        assert torch.isin(sample, call).double().mean() == pytest.approx(1 / 3, abs=0.02)
    # A control: one call's numbers are others.
    assert variance(calls[0].double()).sqrt().item() != pytest.approx(expected["preactivation_std"], rel=0.1)


def test_the_units_of_a_narrow_layer_are_as_many_as_it_has():
    network = nn.Sequential(nn.Linear(40, 5), nn.Linear(5, 30), nn.Linear(30, 2))
    inputs = torch.rand(16, 40)
    values = look(network, inputs).values()
    assert values["1", "input"].shape[0] == 5
    assert values["2", "input"].shape[0] == 20
    for unit, expected in zip(values["1", "input"], network[0](inputs).detach().t(), strict=True):
        assert torch.equal(unit.unique(), expected.unique())


def test_layers_come_in_the_order_of_their_first_calls_without_those_never_called():
    snapshot = look(Loop(), torch.rand(32, 4))
    assert list(snapshot.statistics()) == ["first", "shared"]
    assert snapshot.values()["unused", "preactivation"].isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_values_that_are_not_finite_show_as_such(bad):
    inputs = torch.rand(8, 4)
    inputs[3, 2] = bad
    row = look(nn.Sequential(nn.Linear(4, 3)), inputs).statistics()["0"]
    assert len(row) == 11
    for name in ("input_mean", "shift_ratio", "shift_angle_degrees", "preactivation_std", "gradient_std"):
        assert not torch.tensor(row[name]).isfinite(), name
    assert row["sparsity"] == 0


def test_weights_of_zero_and_a_mean_of_zero_turn_no_number_into_nan():
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(network[0].weight)
    half = torch.randn(8, 4)
    statistics = look(network, torch.cat((half, -half))).statistics()
    assert statistics["0"]["shift_angle_degrees"] == 0
    assert statistics["0"]["constraint_residual"] == 0
    assert statistics["0"]["preactivation_std"] == 0
    nn.init.normal_(network[0].weight)
    assert look(network, torch.zeros(8, 4)).statistics()["0"]["shift_angle_degrees"] == 0
    assert look(network, torch.ones(8, 4)).statistics()["0"]["shift_angle_degrees"] > 1


def test_a_layer_that_is_sent_an_empty_batch_has_no_statistics():
    network = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    snapshot = Snapshot(observed_layers(network), with_values=True)
    with snapshot.watching():  # as a mixture of experts does, of which one gets no sample
        inputs = torch.rand(8, 4)
        torch.cat((network[0](inputs[:0]), network[1](inputs))).sum().backward()
    assert list(snapshot.statistics()) == ["1"]
    assert snapshot.values()["0", "preactivation"].isnan().all()


def test_a_layer_whose_input_is_no_tensor_of_numbers_shows_its_output_alone():
    class OneHot(nn.Linear):
        def forward(self, classes):
            return super().forward(nn.functional.one_hot(classes, self.in_features).float())

    row = look(nn.Sequential(OneHot(4, 3)), torch.tensor([0, 3, 1])).statistics()["0"]
    assert {"shift_ratio", "preactivation_std", "gradient_std"} <= set(row)
    assert "input_mean" not in row
