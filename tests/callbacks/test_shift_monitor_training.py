"""The monitor changes nothing of training, and leaves nothing behind."""

import copy
import gc
import weakref

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, ShiftMonitor


class Normed(nn.Sequential):
    """BatchNorm and Dropout."""

    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


class Spectral(nn.Module):
    """Every kind of layer under torch's spectral norm, which moves on at every look in training mode."""

    def __init__(self):
        super().__init__()
        spectral_norm = parametrizations.spectral_norm
        self.conv = spectral_norm(nn.Conv1d(2, 4, 2, groups=2))
        self.transposed = spectral_norm(nn.ConvTranspose1d(4, 4, 2, groups=2))
        self.cell = spectral_norm(spectral_norm(nn.GRUCell(16, 6), "weight_ih"), "weight_hh")
        self.head = spectral_norm(nn.Linear(6, 3))

    def forward(self, inputs):
        hidden = self.transposed(torch.tanh(self.conv(inputs.view(-1, 2, 4))))
        return self.head(self.cell(hidden.flatten(1)))


class Sequences(nn.Module):
    """A recurrent layer of which the last state is read, and attention with a residual connection."""

    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(4, 6, num_layers=2, dropout=0.2, bidirectional=True, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(12, 2, 16, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, inputs):
        output, (state, _) = self.memory(inputs.view(-1, 2, 4))
        return self.head(self.attention(output).mean(1) + torch.cat((state[-2], state[-1]), dim=1))


def tied():
    network = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3))
    network[2].weight = network[0].weight
    return network


def frozen():
    network = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3))
    network[0].requires_grad_(False)
    network[2].requires_grad_(False)
    network[2].bias.requires_grad_()
    return network


def shared():
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.Sigmoid(), layer, nn.ReLU(inplace=True), layer, nn.Linear(8, 3))


def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.Sigmoid(), nn.LazyLinear(3))


def compiled():
    network = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3))
    network.compile(backend="eager")
    return network


NETWORKS = {
    "normed": Normed,
    "spectral": Spectral,
    "sequences": Sequences,
    "tied": tied,
    "frozen": frozen,
    "shared": shared,
    "lazy": lazy,
    "compiled": compiled,
}


class Task(LightningModule):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(1)
        self.network = make()
        self.losses = []

    def training_step(self, batch, number):
        inputs, labels = batch
        self.losses.append(nn.functional.cross_entropy(self.network(inputs), labels))
        return self.losses[-1]

    def on_train_batch_end(self, *_):
        self.losses[-1] = self.losses[-1].detach()

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


@pytest.fixture
def logger(tmp_path):
    return TensorBoardLogger(tmp_path)


def train(task, trainer, loader):
    """Train and return all that training changes: state, losses, the state of the random number generator."""
    torch.manual_seed(5)
    trainer.fit(task, loader)
    state = {name: value.clone() for name, value in task.state_dict().items()}
    return state | {"losses": torch.stack(task.losses), "rng": torch.get_rng_state()}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.filterwarnings("ignore:.*[Ll]azy", "ignore:.*uninitialized parameter")
def test_training_is_bit_for_bit_the_same_with_and_without(make, make_trainer, loader, logger):
    monitor = ShiftMonitor(every_n_steps=1, figures=make is Normed, histograms=True)
    watched = train(Task(make), make_trainer(monitor, logger=logger, max_epochs=2, log_every_n_steps=1), loader)
    plain = train(Task(make), make_trainer(max_epochs=2), loader)
    assert watched.keys() == plain.keys()
    for key, value in plain.items():
        assert torch.equal(watched[key], value), key
    assert len(set(plain["losses"].tolist())) == 8  # a control: it does train


@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])
@pytest.mark.parametrize("accumulated", [1, 2], ids=["each-batch", "accumulated"])
def test_training_under_the_other_callbacks_is_the_same_too(
    kind, accumulated, make_project, make_trainer, loader, logger
):
    states = []
    for monitor in ([ShiftMonitor(every_n_steps=1, figures=False)], []):
        project = make_project()
        callbacks = [*monitor, ConstraintCallback(kind), MinibatchInitCallback()]
        settings = {"logger": logger if monitor else False, "accumulate_grad_batches": accumulated}
        make_trainer(*callbacks, max_epochs=2, log_every_n_steps=1, **settings).fit(project, loader)
        states.append(project.state_dict())
    for key, value in states[1].items():
        assert torch.equal(states[0][key], value), key


@pytest.mark.filterwarnings("ignore:.*[Ll]azy")
def test_lazy_layers_are_seen_from_the_second_sample_on(make_trainer, loader, logger):
    monitor = ShiftMonitor(every_n_steps=1, figures=False)
    trainer = make_trainer(monitor, logger=logger, log_every_n_steps=1)
    trainer.fit(Task(lambda: nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(3))), loader)
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0})
    events.Reload()
    seen = {layer: [event.step for event in events.Scalars(f"shift_ratio/network.{layer}")] for layer in (0, 1)}
    assert seen == {0: [0, 1, 2, 3], 1: [1, 2, 3]}


def hooks(module):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


class Failing(nn.Sequential):
    """Fails where it is told to: in its forward pass, or in the backward pass."""

    def __init__(self, where):
        super().__init__(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3))
        self.where = where

    def forward(self, inputs):
        outputs = super().forward(inputs)
        if self.where == "forward":
            raise FloatingPointError("in forward")
        outputs.register_hook(self.fail)
        return outputs

    def fail(self, gradient):
        if self.where == "backward":
            raise FloatingPointError("in backward")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_exception_anywhere_in_a_step_leaves_no_hook(where, make_trainer, loader, logger):
    task = Task(lambda: Failing(where))
    with pytest.raises(FloatingPointError, match=where):
        make_trainer(ShiftMonitor(), logger=logger, log_every_n_steps=1).fit(task, loader)
    assert hooks(task) == 0


def test_activations_of_a_sampled_step_die_with_it(make_trainer, loader, logger):
    task, alive = Task(Normed), []

    def note(_, __, output):
        alive.append(weakref.ref(output))

    task.network[2].register_forward_hook(note)

    class Look(Callback):
        def on_train_batch_end(self, *_):
            gc.collect()
            found.append([reference() is not None for reference in alive])

    found = []
    monitor = ShiftMonitor(every_n_steps=2)
    make_trainer(monitor, Look(), logger=logger, log_every_n_steps=1).fit(task, loader)
    assert len(found) == 4
    assert not any(map(any, found))
    assert hooks(task) == 1


class Census(Callback):
    """Counts living tensors and figures at the start of the third step and of the last."""

    def __init__(self):
        self.counts = []

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step in (2, 19):
            gc.collect()
            kinds = [type(thing) for thing in gc.get_objects()]
            self.counts.append((sum(issubclass(kind, torch.Tensor) for kind in kinds), kinds.count(Figure)))


def test_twenty_samples_with_figures_leave_as_many_tensors_and_figures_as_there_were(make_trainer, logger):
    data = DataLoader(TensorDataset(torch.randn(320, 8), torch.zeros(320, dtype=torch.int64)), batch_size=16)
    census = Census()
    task = Task(Normed)
    task.on_train_batch_end = lambda outputs, batch, batch_idx: task.losses.clear()
    monitor = ShiftMonitor(every_n_steps=1, histograms=True)
    make_trainer(census, monitor, logger=logger, log_every_n_steps=1).fit(task, data)
    before, after = census.counts
    assert after == before
    assert after[0] > 10
    assert after[1] == 0


def test_a_monitor_that_has_run_can_be_copied(make_project, make_trainer, loader, logger):
    monitor = ShiftMonitor(every_n_steps=3, figures=False)
    make_trainer(monitor, logger=logger, log_every_n_steps=1).fit(make_project(), loader)
    again = copy.deepcopy(monitor)
    assert (again.every_n_steps, again.figures, again.include) == (3, False, ["*"])
