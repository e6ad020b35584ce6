"""The statistics of every kind of layer, against the textbook."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.snapshot import Snapshot


class Tape:
    """What goes into a layer and comes out of it, in a forward pass that a test spells out."""

    def __init__(self):
        self.inputs, self.outputs, self.read = [], [], []
        self.gradients = lambda: [tensor.grad for tensor in self.read]

    def put(self, tensor):
        self.inputs.append(tensor * 1)  # so that its gradient is this layer's share alone
        self.inputs[-1].retain_grad()
        return self.inputs[-1]

    def take(self, output):
        """Note the layer's output, which the loss reads."""
        self.outputs.append(output)
        return self.reads(output)

    def reads(self, tensor):
        tensor.retain_grad()
        self.read.append(tensor)
        return tensor


def numbers(*shape):
    return torch.relu(torch.randn(shape) + 0.3).requires_grad_()


def feed(*shape):
    return lambda layer, tape: tape.take(layer(tape.put(numbers(*shape))))


def bilinear(layer, tape):
    tape.take(layer(tape.put(numbers(64, 6)), numbers(64, 5)))


def recurrent(*shape, read=("output", "state")):
    def forward(layer, tape):
        output, state = layer(tape.put(numbers(*shape)))
        tape.outputs.append(output)
        hidden = state if isinstance(state, torch.Tensor) else state[0]
        parts = {"output": output, "state": hidden}
        for name in read:
            tape.reads(parts[name])
        tape.gradients = lambda: [at_all_steps(layer, output, *(parts[n].grad if n in read else None for n in parts))]

    return forward


def at_all_steps(layer, output, of_output, of_state):
    """The gradient of the output, to which that of the last states of the last layer is added at their steps."""
    total = torch.zeros_like(output) if of_output is None else of_output.clone()
    if of_state is not None:
        steps = total.movedim(1, 0) if layer.batch_first else total
        width = of_state.shape[-1]
        steps[-1, ..., :width] += of_state[-2 if layer.bidirectional else -1]
        if layer.bidirectional:
            steps[0, ..., width:] += of_state[-1]
    return total


def packed(layer, tape):
    data, sizes, *_ = pack_sequence([numbers(length, 6) for length in (9, 5, 2)])
    output, state = layer(PackedSequence(tape.put(data), sizes))
    tape.take(output.data)
    hidden = tape.reads(state if isinstance(state, torch.Tensor) else state[0])

    def gradients():
        """Unpack by torch's own function, so that the last steps are those of the lengths."""
        padded, lengths = pad_packed_sequence(PackedSequence(output.data.grad, sizes))
        for number, length in enumerate(lengths):
            padded[length - 1, number, : hidden.shape[-1]] += hidden.grad[0, number]
            if layer.bidirectional:
                padded[0, number, hidden.shape[-1] :] += hidden.grad[1, number]
        return [torch.cat([padded[:length, number] for number, length in enumerate(lengths)])]

    tape.gradients = gradients


def cell(layer, tape):
    state = None
    for _ in range(4):
        state = layer(tape.put(numbers(32, 6)), state)
        tape.take(state[0] if isinstance(state, tuple) else state)


def self_attention(layer, tape):
    x = tape.put(numbers(7, 16, 6))
    tape.take(layer(x, x, x)[0])


def self_attention_by_keyword(layer, tape):
    x = tape.put(numbers(7, 16, 6))
    tape.take(layer(need_weights=False, value=x, key=x, query=x)[0])


def attention_to_itself_with_positions(layer, tape):
    x = tape.put(numbers(7, 16, 6))
    tape.take(layer(x, x, value=numbers(7, 16, 6), average_attn_weights=False)[0])


def cross_attention(layer, tape):
    memory = numbers(16, 16, layer.kdim)
    values = memory if layer.vdim == layer.kdim else numbers(16, 16, layer.vdim)
    tape.take(layer(tape.put(numbers(16, 16, 6)), memory, values, need_weights=False)[0])


KINDS = {
    "linear": (lambda: nn.Linear(6, 4), feed(64, 6)),
    "linear-without-bias": (lambda: nn.Linear(6, 4, bias=False), feed(64, 6)),
    "linear-on-sequences": (lambda: nn.Linear(6, 4), feed(8, 5, 6)),
    "bilinear": (lambda: nn.Bilinear(6, 5, 4), bilinear),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, padding=1), feed(8, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, padding="same", padding_mode="reflect"), feed(8, 6, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(6, 4, 2, stride=2, dilation=2), feed(8, 6, 4, 5, 6)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), feed(8, 6, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), feed(8, 6, 8, 8)),
    "one-image": (lambda: nn.Conv2d(6, 4, 3), feed(6, 8, 8)),
    "transposed1d": (lambda: nn.ConvTranspose1d(6, 4, 3), feed(8, 6, 9)),
    "transposed2d": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, output_padding=1), feed(8, 6, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(6, 4, 2), feed(4, 6, 3, 4, 5)),
    "rnn": (lambda: nn.RNN(6, 4, num_layers=2), recurrent(9, 8, 6)),
    "rnn-relu-of-its-output": (lambda: nn.RNN(6, 4, nonlinearity="relu"), recurrent(9, 8, 6, read=["output"])),
    "lstm": (lambda: nn.LSTM(6, 4, batch_first=True), recurrent(8, 9, 6)),
    "lstm-of-its-state": (lambda: nn.LSTM(6, 4), recurrent(9, 8, 6, read=["state"])),
    "lstm-projected": (lambda: nn.LSTM(6, 4, num_layers=2, proj_size=3), recurrent(9, 8, 6)),
    "lstm-both-directions": (lambda: nn.LSTM(6, 4, num_layers=2, bidirectional=True), recurrent(9, 8, 6)),
    "lstm-packed": (lambda: nn.LSTM(6, 4, bidirectional=True), packed),
    "gru": (lambda: nn.GRU(6, 4, bias=False), recurrent(9, 8, 6)),
    "gru-on-one-sequence": (lambda: nn.GRU(6, 4, bidirectional=True), recurrent(9, 6)),
    "gru-packed": (lambda: nn.GRU(6, 4), packed),
    "rnn-cell": (lambda: nn.RNNCell(6, 4), cell),
    "lstm-cell": (lambda: nn.LSTMCell(6, 4), cell),
    "gru-cell": (lambda: nn.GRUCell(6, 4), cell),
    "self-attention": (lambda: nn.MultiheadAttention(6, 2), self_attention),
    "self-attention-batch-first": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), self_attention),
    "self-attention-without-bias": (lambda: nn.MultiheadAttention(6, 2, bias=False), self_attention),
    "self-attention-by-keyword": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), self_attention_by_keyword),
    "attention-with-positions": (lambda: nn.MultiheadAttention(6, 2), attention_to_itself_with_positions),
    "cross-attention": (lambda: nn.MultiheadAttention(6, 2), cross_attention),
    "cross-attention-of-other-widths": (
        lambda: nn.MultiheadAttention(6, 2, kdim=5, vdim=3, batch_first=True),
        cross_attention,
    ),
}
kinds = pytest.mark.parametrize(("make", "forward"), KINDS.values(), ids=KINDS)
# torch says so for one that is projected.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def run(layer, forward):
    """Send numbers through a layer, forward and backward, the same every time."""
    torch.manual_seed(3)
    tape = Tape()
    forward(layer, tape)
    sum((tensor * (torch.randn_like(tensor) + 0.1)).sum() for tensor in tape.read).backward()
    return tape


def snapshot_of(layer, forward):
    snapshot = Snapshot(observed_layers(nn.Sequential(layer)), with_values=True)
    with snapshot.watching():
        tape = run(layer, forward)
    (statistics,) = snapshot.statistics().values()
    return statistics, tape


@kinds
def test_statistics_match_their_definitions(make, forward):
    torch.manual_seed(0)
    layer = make()
    statistics, tape = snapshot_of(layer, forward)
    assert statistics == {name: pytest.approx(value, rel=1e-4) for name, value in textbook(layer, tape).items()}


@kinds
def test_values_and_gradients_stay_bit_for_bit(make, forward):
    observed = make()
    plain = copy.deepcopy(observed)
    _, ours = snapshot_of(observed, forward)
    theirs = run(plain, forward)
    for one, other in zip((*ours.inputs, *ours.read), (*theirs.inputs, *theirs.read), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one.grad, other.grad)
    for (name, one), other in zip(observed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def textbook(layer, tape):
    dim = -1 - next((dims for dims in (1, 2, 3) if f"{dims}d" in type(layer).__name__), 0)
    directions = 2 if getattr(layer, "bidirectional", False) else 1
    ins, outs = tape.inputs[0].shape[dim], tape.outputs[0].shape[dim] // directions
    a, da = channels(tape.inputs, dim, ins), channels([tensor.grad for tensor in tape.inputs], dim, ins)
    z, dz = channels(tape.outputs, dim, outs), channels(tape.gradients(), dim, outs)
    holder = layer.out_proj if isinstance(layer, nn.MultiheadAttention) else layer
    z = z - holder.bias.detach() if isinstance(holder.bias, torch.Tensor) else z
    found = {
        "shift_ratio": (z.mean(0).square().mean() / variance(z)).sqrt(),
        "input_mean": a.mean(),
        "input_mean_spread": a.mean(0).std(correction=0),
        "preactivation_std": variance(z).sqrt(),
        "gradient_std": variance(dz).sqrt(),
        "amplification_forward": variance(z) / variance(a),
        "amplification_backward": variance(da) / variance(dz),
        "sparsity": (a == 0).double().mean(),
        "dead_units": (a == 0).all(0).double().mean(),
        "constraint_residual": max(kernel.sum().abs() / kernel.norm() for kernel in kernels(layer)),
    }
    if not isinstance(layer, nn.Bilinear):
        angles = [shift_angle(*pair) for pair in meetings(layer, a.mean(0))]
        found["shift_angle_degrees"] = torch.stack(angles).mean()
    return {name: value.item() for name, value in found.items()}


def channels(tensors, dim, width):
    """Shape (samples x positions x directions, channels)."""
    return torch.cat([tensor.detach().double().movedim(dim, -1).reshape(-1, width) for tensor in tensors])


def variance(values):
    return values.var(0, correction=0).mean()


def kernels(layer):
    """The weights of every unit."""
    if "Transpose" in type(layer).__name__:
        groups = layer.weight.detach().double().chunk(layer.groups)
        return [group[:, out] for group in groups for out in range(group.shape[1])]
    weights = [weight for name, weight in layer.named_parameters() if "weight" in name]
    return [unit for weight in weights for unit in weight.detach().double()]


def meetings(layer, mean):
    """Every weight vector that meets the input, and the mean of what it meets."""
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        weights = [weight for name, weight in layer.named_parameters() if name.startswith("weight_ih")]
        return [(row, mean) for weight in weights if weight.shape[1] == len(mean) for row in weight.double()]
    if isinstance(layer, nn.MultiheadAttention):
        query = layer.q_proj_weight if layer.in_proj_weight is None else layer.in_proj_weight[: len(mean)]
        return [(row, mean) for row in query.double()]
    units, groups = kernels(layer), getattr(layer, "groups", 1)
    seen = [mean.chunk(groups)[number * groups // len(units)] for number in range(len(units))]
    return [
        (unit, part.view(-1, *[1] * (unit.dim() - 1)).expand_as(unit)) for unit, part in zip(units, seen, strict=True)
    ]


def shift_angle(weights, mean):
    cosine = torch.cosine_similarity(weights.detach().flatten(), mean.flatten(), dim=0)
    return (90 - torch.rad2deg(cosine.acos())).abs()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def test_units_are_counted_as_dead_under_autocast_too(dtype):
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        network[0].bias[:8] = -1e3
        network[0].bias[8:] = 1e3
    snapshot = Snapshot(observed_layers(network))
    with snapshot.watching(), torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        network(torch.rand(1001, 8)).sum().backward()
    statistics = snapshot.statistics()["2"]
    assert statistics["dead_units"] == statistics["sparsity"] == 0.5
