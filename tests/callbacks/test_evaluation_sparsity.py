"""Exact zeros over whole validation and test sets, counted while a trainer evaluates."""

import csv
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ShiftMonitor

LAYERS = ["network.0", "network.2", "network.4"]


def network(activation=nn.ReLU):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 24), activation(), nn.Linear(24, 12), activation(), nn.Linear(12, 3))


class Classifier(LightningModule):
    """Logs its loss; evaluates whatever it is given."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("loss", self.training_step(batch, batch_idx))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def data():
    """45 samples: with batches of 16 the last one is uneven."""
    torch.manual_seed(3)
    return TensorDataset(torch.randn(45, 8), torch.randint(3, (45,)))


@pytest.fixture
def batches(data):
    return DataLoader(data, batch_size=16)


def zeros_by_hand(network, inputs):
    """The fraction of zeros in the input of every Linear but the first, sample by sample, in numpy."""
    activations = {}
    for values in inputs:
        for index, module in enumerate(network):
            if isinstance(module, nn.Linear) and index:
                activations.setdefault(f"network.{index}", []).append(values.detach().numpy())
            values = module(values)  # noqa: PLW2901
    return {name: float(np.mean(np.stack(samples) == 0)) for name, samples in activations.items()}


def mean_by_hand(network, inputs):
    return np.mean(list(zeros_by_hand(network, inputs).values()))


def evaluate(trainer, stage, module, loaders):
    getattr(trainer, stage)(module, loaders, verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def logged_by_layer(logger):
    """What a CSV holds of every layer."""
    rows = csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines())
    found = [(tag, value) for row in rows for tag, value in row.items() if tag.startswith("test_sparsity/") and value]
    return {tag.partition("/")[2]: float(value) for tag, value in found}


STAGES = {"validate": "val", "test": "test"}


@pytest.mark.parametrize(("stage", "name"), STAGES.items(), ids=STAGES)
def test_the_metric_is_the_mean_fraction_of_zeros_over_the_whole_set(stage, name, make_trainer, batches, data):
    expected = zeros_by_hand(network(), data.tensors[0])
    found = evaluate(make_trainer(ShiftMonitor()), stage, Classifier(network()), batches)
    assert found[f"{name}/sparsity"] == pytest.approx(np.mean(list(expected.values())), abs=1e-7)
    # Controls: the mean over batches, the zeros of all activations pooled, and the data as one more layer.
    by_batch = [zeros_by_hand(network(), inputs) for inputs, _ in batches]
    sizes = {"network.2": 24, "network.4": 12}
    others = [
        np.mean([np.mean(list(each.values())) for each in by_batch]),
        sum(expected[layer] * size for layer, size in sizes.items()) / sum(sizes.values()),
        np.mean([0, *expected.values()]),
    ]
    assert all(abs(found[f"{name}/sparsity"] - other) > 1e-4 for other in others)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Softplus], ids=lambda kind: kind.__name__)
def test_dense_activations_have_none(activation, make_trainer, batches):
    assert (
        evaluate(make_trainer(ShiftMonitor()), "test", Classifier(network(activation)), batches)["test/sparsity"] == 0
    )


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_results_are_bit_for_bit_the_same_with_and_without(precision, make_trainer, batches):
    results = []
    for callbacks in ([ShiftMonitor()], [ShiftMonitor(every_n_steps=0)], []):
        trainer = make_trainer(*callbacks, precision=precision)
        results.append(evaluate(trainer, "test", Classifier(network()), batches))
    sparsity = results[0].pop("test/sparsity")
    assert results[0] == results[1] == results[2]
    assert sparsity == pytest.approx(mean_by_hand(network(), batches.dataset.tensors[0]), abs=0.01)


SETTINGS = {
    "default": ({}, True, True),
    "off": ({"every_n_steps": 0}, False, False),
    "sparsity-alone": ({"every_n_steps": 0, "sparsity": True}, True, False),
    "steps-alone": ({"sparsity": False}, False, True),
}


@pytest.mark.parametrize(("settings", "has_sparsity", "has_statistics"), SETTINGS.values(), ids=SETTINGS)
def test_sparsity_and_the_statistics_of_steps_are_logged_each_without_the_other(
    settings, has_sparsity, has_statistics, make_trainer, batches, tmp_path
):
    logger, module = CSVLogger(tmp_path), Classifier(network())
    trainer = make_trainer(ShiftMonitor(figures=False, **settings), logger=logger, log_every_n_steps=1)
    trainer.fit(module, batches, batches)
    assert ("val/sparsity" in trainer.callback_metrics) == has_sparsity
    assert ("shift_ratio/network.0" in Path(logger.log_dir, "metrics.csv").read_text()) == has_statistics
    assert ("test/sparsity" in evaluate(trainer, "test", module, batches)) == has_sparsity


def test_fitting_logs_every_validation_but_the_sanity_check(make_trainer, batches, data, tmp_path):
    logger, module, states = CSVLogger(tmp_path), Classifier(network()), []
    module.on_validation_epoch_end = lambda: states.append(deepcopy(module.network.state_dict()))
    trainer = make_trainer(ShiftMonitor(figures=False), logger=logger, max_epochs=2, log_every_n_steps=1)
    trainer.fit(module, batches, batches)
    rows = csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines())
    found = [float(row["val/sparsity"]) for row in rows if row["val/sparsity"]]
    expected, trained = [], network()
    for state in states:
        trained.load_state_dict(state)
        expected.append(mean_by_hand(trained, data.tensors[0]))
    assert found == pytest.approx(expected[1:], abs=1e-7)
    assert len(set(expected)) == 3  # a control: it does train


def test_a_test_tells_loggers_every_layer(make_trainer, batches, data, tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(ShiftMonitor(), logger=logger)
    found = evaluate(trainer, "test", Classifier(network()), batches)
    assert set(found) == {"loss", "test/sparsity"}  # a metric each would fill the table that is printed
    assert logged_by_layer(logger) == pytest.approx(zeros_by_hand(network(), data.tensors[0]), abs=1e-7)


def test_several_data_sets_count_together(make_trainer, data):
    parts = [DataLoader(TensorDataset(*data[:40]), batch_size=16), DataLoader(TensorDataset(*data[40:]), batch_size=16)]
    found = evaluate(make_trainer(ShiftMonitor()), "test", Classifier(network()), parts)
    expected = mean_by_hand(network(), data.tensors[0])
    assert found["test/sparsity"] == pytest.approx(expected, abs=1e-7)


PATTERNS = {
    "include": ({"include": ["*.2.*"]}, ["network.2"]),
    "exclude": ({"exclude": ["*.4.*"]}, ["network.2"]),
    "without-the-first": ({"exclude": ["*.0.*"]}, ["network.2", "network.4"]),  # the second is no first one then
    "the-first-alone": ({"include": ["*.0.*"]}, []),
}


@pytest.mark.parametrize(("patterns", "layers"), PATTERNS.values(), ids=PATTERNS)
def test_patterns_choose_layers_and_the_first_never_counts(patterns, layers, make_trainer, batches, data):
    found = evaluate(make_trainer(ShiftMonitor(**patterns)), "test", Classifier(network()), batches)
    expected = zeros_by_hand(network(), data.tensors[0])
    assert ("test/sparsity" in found) == bool(layers)
    if layers:
        assert found["test/sparsity"] == pytest.approx(np.mean([expected[layer] for layer in layers]), abs=1e-7)


def test_a_pattern_that_matches_nothing_is_named(make_trainer, batches):
    with pytest.raises(ValueError, match=r"'memory\.\*' matches no weight of Classifier"):
        make_trainer(ShiftMonitor(include=["memory.*"])).test(Classifier(network()), batches)


NOTHING_TO_COUNT = {
    "one-layer": nn.Sequential(nn.ReLU(), nn.Linear(8, 3)),
    "no-layer": nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()),
}


@pytest.mark.parametrize("network", NOTHING_TO_COUNT.values(), ids=NOTHING_TO_COUNT)
def test_a_network_without_hidden_layers_has_no_such_metric(network, make_trainer, batches):
    assert set(evaluate(make_trainer(ShiftMonitor()), "test", Classifier(network), batches)) == {"loss"}


def hooks(module):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


def test_there_are_hooks_in_the_steps_of_an_evaluation_alone(make_trainer, batches):
    module, seen = Classifier(network()), {}
    for hook in ("on_test_epoch_start", "on_test_batch_start", "on_test_batch_end", "on_test_epoch_end"):
        setattr(module, hook, lambda *_, hook=hook: seen.setdefault(hook, set()).add(hooks(module)))
    step = module.test_step
    module.test_step = lambda *args: (seen.setdefault("step", set()).add(hooks(module)), step(*args))[1]
    make_trainer(ShiftMonitor()).test(module, batches, verbose=False)
    assert seen["step"] == {2 * len(LAYERS)}
    assert seen["on_test_epoch_start"] == seen["on_test_batch_end"] == seen["on_test_epoch_end"] == {0}
    assert hooks(module) == 0


@pytest.mark.parametrize("error", [FloatingPointError, KeyboardInterrupt], ids=lambda error: error.__name__)
@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.filterwarnings("ignore:Detected KeyboardInterrupt")
def test_whatever_ends_an_evaluation_leaves_no_hook(error, stage, make_trainer, batches, data):
    module, monitor = Classifier(network()), ShiftMonitor()

    def fail(*_):
        if not module.training:
            assert hooks(module) > before
            raise error

    module.network[3].register_forward_hook(fail)
    before = hooks(module)
    loaders = [batches, batches] if stage == "fit" else [batches]
    trainer = make_trainer(monitor, num_sanity_val_steps=0)
    with pytest.raises((error, SystemExit)):
        getattr(trainer, stage)(module, *loaders)
    assert hooks(module) == before
    # The same monitor counts afresh.
    found = evaluate(make_trainer(monitor), "test", Classifier(network()), batches)
    expected = mean_by_hand(network(), data.tensors[0])
    assert found["test/sparsity"] == pytest.approx(expected, abs=1e-7)


def _in_place(module):
    module.network.compile(backend="eager")


def _wrapped(module):
    module.network = torch.compile(module.network, backend="eager")


@pytest.mark.parametrize("compiled", [_in_place, _wrapped], ids=["in-place", "wrapped"])
def test_a_compiled_network_stays_compiled_and_is_not_counted(compiled, make_trainer, batches):
    module, seen = Classifier(network()), []
    module.network.append(Probe(seen))
    compiled(module)
    assert "test/sparsity" not in evaluate(make_trainer(ShiftMonitor()), "test", module, batches)
    assert True in seen


class Probe(nn.Module):
    """Notes whether it is called while torch compiles, and passes its input on."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, inputs):
        self.seen.append(torch.compiler.is_compiling())
        return inputs


class Encoder(nn.Module):
    """A layer that torch fuses in evaluation, between two that it does not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(4, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs):
        return self.head(self.encoder(self.embedding(inputs.view(-1, 2, 4))).mean(1).relu())


def test_a_fused_layer_stays_fused(make_trainer, batches, tmp_path):
    module, logger = Classifier(Encoder()), CSVLogger(tmp_path)
    module.network.encoder.linear1.forward = pytest.fail  # which the fused layer never calls
    evaluate(make_trainer(ShiftMonitor(), logger=logger), "test", module, batches)
    assert list(logged_by_layer(logger)) == ["network.head"]


class Uneven(Classifier):
    """Gives one rank 40 samples in three batches, the other 5 in one."""

    def __init__(self, network, data):
        super().__init__(network)
        self.data = data

    def test_dataloader(self):
        part = slice(40) if self.global_rank == 0 else slice(40, None)
        return DataLoader(TensorDataset(*self.data[part]), batch_size=16)


def test_two_ranks_with_uneven_batches_log_the_fraction_of_their_union(make_trainer, data, forkserver):
    strategy = DDPStrategy(start_method=forkserver.get_start_method())
    settings = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False}
    found = evaluate(make_trainer(ShiftMonitor(), **settings), "test", Uneven(network(), data), None)
    expected = mean_by_hand(network(), data.tensors[0])
    assert found["test/sparsity"] == pytest.approx(expected, abs=1e-7)
    halves = [mean_by_hand(network(), part) for part in data.tensors[0].split(40)]
    assert all(abs(found["test/sparsity"] - other) > 1e-3 for other in (*halves, np.mean(halves)))
