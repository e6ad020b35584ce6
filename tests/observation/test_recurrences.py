"""What repeated calls show of recurrent layers, against loops over torch's cells."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils.checkpoint import checkpoint

from lcw_lightning.models.recurrent import SigmoidRNN
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.recurrences import DROPPED, UNKNOWN, Recurrence, Recurrences
from lcw_lightning.observation.recurrent_inputs import gate_names
from lcw_lightning.observation.snapshot import Snapshot

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CELLS = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}


def look(network, run, **settings):
    """Return the snapshot of a forward and backward pass; ``run`` takes the network and returns the loss."""
    snapshot = Snapshot(observed_layers(network), over_time=True, **settings)
    with snapshot.watching():
        run(network).backward()
    snapshot.statistics()
    return snapshot.recurrence()


def loss_of(sample, reads):
    """A loss of what is read of a sample's outputs ``(steps, features)``, last hidden states and last cell states."""
    parts = dict(zip(("outputs", "hidden", "cells"), sample, strict=False)) | {"last output": sample[0][-1]}
    generator = torch.Generator().manual_seed(3)
    return sum(
        (parts[name].cos() * torch.randn(parts[name].shape, generator=generator, dtype=torch.float64)).sum()
        for name in reads
    )


def samples_of(layer, output):
    """Split what a layer returns of a batch into its samples."""
    outputs, states = output
    outputs = unpack_sequence(outputs) if isinstance(outputs, PackedSequence) else outputs
    outputs = outputs.unbind(0 if getattr(layer, "batch_first", False) else 1) if torch.is_tensor(outputs) else outputs
    states = [state.unbind(1) for state in (states if isinstance(states, tuple) else (states,))]
    return list(zip(outputs, *states, strict=True))


class Loop:
    """Runs a stack by torch's cells, sample by sample and step by step, and keeps states and gates' preactivations."""

    def __init__(self, layer, longest):
        self.layer = layer
        self.longest = longest  # backwards a batch begins with its longest sequence
        self.hidden = {}  # lists of the states of all samples at each step, by direction
        self.gates = {}

    def sample(self, steps, start):
        """Return what the layer returns of one sample; ``start`` is a list of the directions' states."""
        last = []
        for number in range(self.layer.num_layers):
            runs = [self.run(f"_l{number}{end}", steps, start[len(last) + n]) for n, end in enumerate(self.ends)]
            last += [state for _, state in runs]
            steps = torch.cat([states for states, _ in runs], dim=1)
        return steps, *map(torch.stack, zip(*last, strict=True))

    @property
    def ends(self):
        return ("", "_reverse") if self.layer.bidirectional else ("",)

    def run(self, suffix, inputs, state):
        weights = {
            name: getattr(self.layer, f"{name}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        cell = CELLS[type(self.layer)](inputs.shape[1], self.layer.hidden_size, dtype=torch.float64)
        steps, is_reverse = [], "reverse" in suffix
        first = self.longest - len(inputs) if is_reverse else 0
        for step, x in enumerate(inputs.flip(0) if is_reverse else inputs, first):
            self.gates.setdefault(suffix, []).append(self.preactivations(weights, x, state[0]))
            given = tuple(each.unsqueeze(0) for each in state)
            found = torch.func.functional_call(cell, weights, (x.unsqueeze(0), given if len(given) > 1 else given[0]))
            state = tuple(each[0] for each in (found if isinstance(found, tuple) else (found,)))
            state[0].retain_grad()
            self.hidden.setdefault(suffix, {}).setdefault(step, []).append(state[0])
            steps.append(state[0])
        return torch.stack(steps[::-1] if is_reverse else steps), state

    def preactivations(self, weights, x, hidden):
        a, b = weights["weight_ih"] @ x, weights["weight_hh"] @ hidden
        if isinstance(self.layer, nn.GRU):
            size = self.layer.hidden_size
            reset = torch.sigmoid(a + b + weights["bias_ih"] + weights["bias_hh"])[:size]
            b = torch.cat((b[: 2 * size], reset * b[2 * size :]))
        return (a + b).detach()

    def norms(self):
        zero = torch.zeros(())
        return {
            f"h{suffix}": [
                torch.stack([(zero if h.grad is None else h.grad).square().sum() for h in states]).sum().sqrt().item()
                for _, states in sorted(steps.items())
            ]
            for suffix, steps in self.hidden.items()
        }

    def statistics(self):
        found = {}
        for names, rows in zip(self.names_by_direction(), self.gates.values(), strict=True):
            parts = torch.stack(rows).chunk(len(names), dim=1)
            for name, z in zip(names, parts, strict=True):
                mean, variance = z.mean(0), z.var(0, correction=0).mean()
                found[name] = {
                    "preactivation_mean": mean.mean().item(),
                    "preactivation_std": variance.sqrt().item(),
                    "shift_ratio": (mean.square().mean() / variance).sqrt().item(),
                }
        return found

    def names_by_direction(self):
        gates = {
            nn.LSTM: ("input", "forget", "cell", "output"),
            nn.GRU: ("reset", "update", "candidate"),
            nn.RNN: ("hidden",),
        }[type(self.layer)]
        return [[f"{gate}_gate{suffix}" for gate in gates] for suffix in self.gates]


READS = {
    "last-output": (["last output"], False),
    "outputs-and-states": (["outputs", "hidden", "cells"], False),
    "states-from-given-ones": (["hidden", "cells"], True),
}
LAYOUTS = {
    "plain": ({}, False),
    "stacked": ({"num_layers": 3}, False),
    "batch-first-both-directions": ({"batch_first": True, "bidirectional": True, "num_layers": 2}, False),
    "packed-both-directions": ({"bidirectional": True, "num_layers": 2}, True),
}


def start_of(layer, samples, is_given):
    """Return first states as the layer takes them, and lists of the directions' states of each sample."""
    directions = layer.num_layers * (1 + layer.bidirectional)
    number = 2 if isinstance(layer, nn.LSTM) else 1
    states = torch.randn(number, directions, samples, layer.hidden_size, dtype=torch.float64) * is_given
    given = (tuple(states) if number == 2 else states[0]) if is_given else None
    return given, [list(states[:, :, sample].transpose(0, 1)) for sample in range(samples)]


@pytest.mark.parametrize(("reads", "is_given"), READS.values(), ids=READS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
def test_gates_and_gradients_are_those_of_a_loop_over_cells(kind, layout, is_given, reads):
    torch.manual_seed(0)
    settings, packed = LAYOUTS[layout]
    layer = kind(3, 4, dtype=torch.float64, **settings)
    reads = [name for name in reads if name != "cells" or kind is nn.LSTM]
    sequences = [torch.randn(length, 3, dtype=torch.float64) for length in ((4, 7, 2) if packed else (5, 5, 5))]
    batch = pack_sequence(sequences, enforce_sorted=False) if packed else torch.stack(sequences, 1 - layer.batch_first)
    given, starts = start_of(layer, len(sequences), is_given)

    def run(layer):
        return sum(loss_of(sample, reads) for sample in samples_of(layer, layer(batch, given)))

    seen = look(nn.ModuleDict({"rnn": layer}), lambda network: run(network["rnn"]))
    loop = Loop(copy.deepcopy(layer), max(map(len, sequences)))
    pairs = zip(sequences, starts, strict=True)
    sum(loss_of(loop.sample(steps, start), reads) for steps, start in pairs).backward()
    assert seen.gradients["rnn"].keys() == loop.norms().keys()
    for state, norms in loop.norms().items():
        assert seen.gradients["rnn"][state] == pytest.approx(norms, rel=1e-9), state
    assert list(seen.gates["rnn"]) == gate_names(layer)
    for gate, row in loop.statistics().items():
        assert seen.gates["rnn"][gate] == pytest.approx(row, rel=1e-9), gate
    assert seen.left == {}


def test_the_total_derivative_is_more_than_what_the_loss_reads_of_a_step():
    torch.manual_seed(0)
    layer, steps = nn.RNN(3, 4), torch.randn(5, 2, 3)
    norms = look(nn.Sequential(layer), lambda network: network(steps)[0][-1].sum()).gradients["0"]["h_l0"]
    assert all(norm > 0 for norm in norms)  # a control: the gradient of the outputs is zero except for the last
    assert norms[-1] == pytest.approx(8**0.5)


def test_a_projection_is_the_state_whose_gradient_is_seen():
    torch.manual_seed(0)
    layer, steps = nn.LSTM(3, 6, proj_size=2), torch.randn(5, 2, 3)
    seen = look(nn.Sequential(layer), lambda network: network(steps)[0][-1].square().sum())
    state, cells, states = torch.zeros(2, 2), torch.zeros(2, 6), []
    for x in steps:
        z = x @ layer.weight_ih_l0.T + state @ layer.weight_hh_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0
        taken, kept, new, shown = z.chunk(4, dim=1)
        cells = kept.sigmoid() * cells + taken.sigmoid() * new.tanh()
        state = (shown.sigmoid() * cells.tanh()) @ layer.weight_hr_l0.T
        state.retain_grad()
        states.append(state)
    state.square().sum().backward()
    assert seen.gradients == {"0": {"h_l0": pytest.approx([state.grad.norm().item() for state in states], rel=1e-4)}}
    assert len(seen.gates["0"]) == 4


class CellLoop(nn.Module):
    """Calls a cell once a step, and reads its last state."""

    def __init__(self, kind):
        super().__init__()
        self.cell = kind(3, 4, dtype=torch.float64)

    def forward(self, steps, keep=lambda state: None):
        state = None
        for x in steps:
            state = self.cell(x, state)
            keep(state[0] if isinstance(state, tuple) else state)
        return (state[0] if isinstance(state, tuple) else state).sum()


@pytest.mark.parametrize("kind", CELLS.values(), ids=lambda kind: kind.__name__)
def test_each_call_of_a_cell_is_a_step(kind):
    torch.manual_seed(0)
    network, steps, states = CellLoop(kind), torch.randn(6, 2, 3, dtype=torch.float64), []

    def keep(state):
        state.retain_grad()
        states.append(state)

    network(steps, keep).backward()
    seen = look(network, lambda network: network(steps))
    assert seen.gradients == {"cell": {"h": pytest.approx([state.grad.norm().item() for state in states])}}
    assert list(seen.gates["cell"]) == gate_names(network.cell)
    if kind is nn.RNNCell:  # whose gate is known from its states
        z = torch.stack(states).detach().atanh().flatten(0, 1) - network.cell.bias_ih - network.cell.bias_hh
        expected = z.var(0, correction=0).mean().sqrt().item()
        assert seen.gates["cell"]["hidden_gate"]["preactivation_std"] == pytest.approx(expected)


def test_the_sigmoid_cell_is_seen():
    torch.manual_seed(0)
    layer, sequences = SigmoidRNN(3, 4, num_layers=2), torch.randn(2, 5, 3)
    seen = look(nn.Sequential(layer), lambda network: network(sequences)[0][:, -1].sum())
    assert list(seen.gates["0"]) == ["hidden_gate_l0", "hidden_gate_l1"]
    z = torch.special.logit(layer(sequences)[0]).detach().flatten(0, 1) - layer.bias_ih_l1 - layer.bias_hh_l1
    expected = z.var(0, correction=0).mean().sqrt().item()
    assert seen.gates["0"]["hidden_gate_l1"]["preactivation_std"] == pytest.approx(expected, rel=1e-3)


class Stack(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 8, num_layers=2, batch_first=True, **settings), nn.Linear(8, 2)

    def forward(self, sequences):
        return self.head(self.lstm(sequences)[0][:, -1])


def test_dropout_between_layers_has_the_masks_of_the_call():
    torch.manual_seed(0)
    layer, steps, shown = nn.LSTM(3, 8, num_layers=2, dropout=0.5), torch.randn(5, 2, 3), []
    recurrences = Recurrences({"lstm": layer}, lambda name, z: shown.append(z), with_gradients=True)
    with recurrences.watching():
        outputs, _ = layer(steps)
        outputs.square().sum().backward()
    biases = layer.bias_ih_l1 + layer.bias_hh_l1
    taken, kept, cell, given = (shown[0][:, 32:] + biases).view(5, 2, 4, 8).unbind(2)
    state = torch.zeros(2, 8)
    for step, output in enumerate(outputs.detach()):  # the gates of the second layer compute the outputs
        state = kept[step].sigmoid() * state + taken[step].sigmoid() * cell[step].tanh()
        torch.testing.assert_close(given[step].sigmoid() * state.tanh(), output)
    assert recurrences.left == {}
    assert len(recurrences.gradients()["lstm"]["h_l1"]) == 5


def test_a_layer_of_ones_own_is_left_out_with_the_reason():
    class Own(nn.GRU):
        def forward(self, given, state=None):
            return super().forward(2 * given, state)

    network = nn.Sequential(Own(3, 4))
    seen = look(network, lambda network: network(torch.randn(5, 2, 3))[0].sum())
    assert seen.gates == {} == seen.gradients
    assert seen.left == {"0": UNKNOWN}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("normalized", [False, True], ids=["plain", "spectral-norm"])
def test_watching_changes_no_number_of_a_step(dropout, normalized):
    torch.manual_seed(0)
    network, sequences = Stack(dropout=dropout), torch.randn(4, 6, 3)
    if normalized:
        parametrizations.spectral_norm(network.lstm, "weight_hh_l0")
    plain, watched = (copy.deepcopy(network) for _ in range(2))  # a copy reads a parametrized weight less often
    torch.manual_seed(1)
    plain(sequences).square().sum().backward()
    numbers = torch.rand(3)
    torch.manual_seed(1)
    look(watched, lambda network: network(sequences).square().sum())
    assert torch.equal(torch.rand(3), numbers)
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(plain.buffers(), watched.buffers(), strict=True):
        assert torch.equal(one, other)
    assert not watched.lstm._forward_hooks
    assert not watched.lstm._forward_pre_hooks


def test_several_calls_and_scaled_gradients_are_of_the_mean_loss():
    torch.manual_seed(0)
    layer, steps = nn.Sequential(nn.GRU(3, 4)), torch.randn(5, 2, 3)
    one = look(layer, lambda network: network(steps)[0].sum()).gradients["0"]["h_l0"]
    both = look(layer, lambda network: 8 * (network(steps)[0] + network(steps)[0]).sum(), gradient_scale=8.0)
    assert both.gradients["0"]["h_l0"] == pytest.approx([norm * 2**0.5 for norm in one])


def test_a_second_backward_pass_through_the_same_call_adds_its_gradient():
    torch.manual_seed(0)
    layer, steps = nn.RNN(3, 4), torch.randn(5, 2, 3)
    recurrences = Recurrences({"rnn": layer}, lambda name, z: None, with_gradients=True)
    with recurrences.watching():
        loss = layer(steps)[0].sum()
        loss.backward(retain_graph=True)
        once = recurrences.gradients()["rnn"]["h_l0"]
        loss.backward()
    assert recurrences.gradients()["rnn"]["h_l0"] == pytest.approx([norm * 2**0.5 for norm in once])


@pytest.mark.parametrize("how", ["no_grad", "inference_mode"])
def test_a_frozen_call_shows_gates_and_no_gradient(how):
    torch.manual_seed(0)
    network, steps = nn.ModuleDict({"rnn": nn.RNN(3, 4), "head": nn.Linear(4, 2)}), torch.randn(5, 2, 3)

    def run(network):
        with getattr(torch, how)():
            states = network["rnn"](steps)[0]
        return network["head"](states.clone()).sum()

    seen = look(network, run)
    assert list(seen.gates) == ["rnn"]
    assert seen.gradients == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_repeated_in_full(dtype):
    torch.manual_seed(0)
    layer, steps = nn.GRU(3, 4), torch.randn(5, 2, 3)
    full = look(nn.Sequential(layer), lambda network: network(steps)[0].sum())
    half = look(nn.Sequential(layer.to(dtype)), lambda network: network(steps.to(dtype))[0].float().sum())
    for gate, row in full.gates["0"].items():
        assert half.gates["0"][gate]["preactivation_std"] == pytest.approx(row["preactivation_std"], rel=0.02)
    assert half.gradients["0"]["h_l0"] == pytest.approx(full.gradients["0"]["h_l0"], rel=0.02)


def test_masks_that_are_not_known_leave_the_upper_layers_out():
    torch.manual_seed(0)
    network, sequences = Stack(dropout=0.4), torch.randn(4, 6, 3)
    snapshot = Snapshot(observed_layers(network), over_time=True)
    snapshot.recurrences.left["lstm"] = DROPPED  # as a call on a GPU does
    with snapshot.watching():
        network(sequences).square().sum().backward()
    snapshot.statistics()
    seen = snapshot.recurrence()
    assert list(seen.gates["lstm"]) == gate_names(network.lstm)[:4]
    assert seen.gradients == {}


def gates_of_calls(batches):
    torch.manual_seed(0)
    network = nn.ModuleDict({"gru": nn.GRU(3, 4), "cell": nn.RNNCell(3, 4)})
    snapshot = Snapshot(observed_layers(network))
    with snapshot.watching():
        for batch in batches:
            network["gru"](batch)[0].sum().backward()
            if batch.sum() > 0:
                network["cell"](batch[0]).sum().backward()
    return snapshot.statistics() and snapshot.recurrence().gates


def gates_on_rank(rank, batches):
    return gates_of_calls([batches[rank]])


def test_two_processes_see_the_gates_of_the_union_of_their_batches(on_two_ranks):
    torch.manual_seed(1)
    batches = [torch.rand(5, 2, 3), torch.rand(5, 2, 3) - 2.0]
    expected, alone = gates_of_calls(batches), gates_of_calls(batches[:1])
    assert alone["gru"]["reset_gate_l0"] != pytest.approx(expected["gru"]["reset_gate_l0"], rel=0.1)
    for gates in on_two_ranks(gates_on_rank, batches):
        assert gates.keys() == expected.keys() == {"gru", "cell"}  # one of them calls the cell
        for layer, rows in expected.items():
            for gate, row in rows.items():
                assert gates[layer][gate] == pytest.approx(row, rel=1e-6), gate


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["hooks", "reentrant"])
def test_activation_checkpointing_hides_nothing(use_reentrant):
    torch.manual_seed(0)
    layer, steps = nn.GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    plain = look(nn.Sequential(layer), lambda network: network(steps)[0].sum())
    kept = look(nn.Sequential(layer), lambda network: checkpoint(network, steps, use_reentrant=use_reentrant)[0].sum())
    assert kept.gradients["0"]["h_l0"] == pytest.approx(plain.gradients["0"]["h_l0"])
    assert kept.gates["0"]["reset_gate_l0"] == pytest.approx(plain.gates["0"]["reset_gate_l0"])


@pytest.mark.parametrize("is_given", [False, True], ids=["from-zero", "from-given-states"])
def test_an_empty_batch_shows_nothing(is_given):
    network, states = nn.ModuleDict({"cell": nn.GRUCell(3, 4), "head": nn.Linear(3, 2)}), torch.zeros(0, 4)

    def run(network):
        network["cell"](torch.zeros(0, 3), states if is_given else None)
        return network["head"](torch.rand(2, 3)).sum()

    assert look(network, run) == Recurrence()


READS = {
    "output": (lambda output, hidden, cell: output, ["lstm"]),
    "last-hidden-state": (lambda output, hidden, cell: hidden, ["lstm"]),
    "last-cell-state": (lambda output, hidden, cell: cell, ["lstm"]),
    "output-times-zero": (lambda output, hidden, cell: 0 * output, []),
}


@pytest.mark.parametrize(("read", "expected"), READS.values(), ids=READS)
def test_a_layer_is_read_if_a_gradient_reaches_its_output_or_a_last_state(read, expected):
    layer = nn.LSTM(3, 4)
    recurrences = Recurrences({"lstm": layer}, lambda name, z: None)  # as ShiftMonitor has it, without gradients
    with recurrences.watching():
        output, (hidden, cell) = layer(torch.rand(5, 2, 3))
        read(output, hidden, cell).sum().backward()
    assert recurrences.read() == expected
