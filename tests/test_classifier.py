from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset

from lcw_lightning import ConstraintCallback, GeometricDecay, ImageClassifier, MinibatchInitCallback, constrain
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.data.batches import BatchLoader

SGD = partial(torch.optim.SGD, lr=0.1)


def make_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


@pytest.fixture
def loader():
    return BatchLoader(TensorDataset(torch.randn(40, 3, 2, 2), torch.randint(5, (40,))), batch_size=16)


@pytest.fixture
def make_trainer(tmp_path):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return partial(Trainer, default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, **quiet)


def test_loss_and_accuracy_are_means_over_samples_not_batches(loader, make_trainer):
    classifier = ImageClassifier(make_network(), SGD)
    trainer = make_trainer()
    trainer.test(classifier, loader, verbose=False)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    logits = classifier(images)
    expected = {
        "test/loss": nn.functional.cross_entropy(logits, labels).item(),
        "test/accuracy": (logits.argmax(1) == labels).double().mean().item(),
    }
    assert {key: value.item() for key, value in trainer.callback_metrics.items()} == pytest.approx(expected)


def test_a_loss_that_is_nan_in_one_batch_is_nan_for_the_epoch(make_trainer):
    images, labels = torch.randn(40, 3, 2, 2), torch.randint(5, (40,))
    losses = []
    for value in (0.0, torch.nan):
        images[20] = value
        trainer = make_trainer()
        trainer.test(
            ImageClassifier(make_network(), SGD), BatchLoader(TensorDataset(images, labels), 16), verbose=False
        )
        losses.append(trainer.callback_metrics["test/loss"])
    assert [loss.isfinite().item() for loss in losses] == [True, False]


def test_fit_logs_every_stage(loader, make_trainer):
    trainer = make_trainer()
    trainer.fit(ImageClassifier(make_network(), SGD), loader, loader)
    assert set(trainer.callback_metrics) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}


def test_predict_gives_logits(loader, make_trainer):
    classifier = ImageClassifier(make_network(), SGD)
    predictions = make_trainer().predict(classifier, loader)
    torch.testing.assert_close(torch.cat(predictions), classifier(torch.cat([images for images, _ in loader])))


def test_a_plateau_scheduler_watches_the_validation_loss(loader, make_trainer):
    classifier = ImageClassifier(make_network(), SGD, partial(ReduceLROnPlateau, threshold=1e9, patience=0, factor=0.5))
    trainer = make_trainer(max_epochs=3)
    trainer.fit(classifier, loader, loader)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)


def test_a_checkpoint_from_python_loads_safely_with_the_same_arguments(loader, make_trainer):
    trainer = make_trainer(callbacks=[ConstraintCallback()])
    classifier = ImageClassifier(make_network(), SGD)
    trainer.fit(classifier, loader, loader)
    path = trainer.checkpoint_callback.best_model_path
    assert not torch.load(path, weights_only=True).get("hyper_parameters")
    loaded = ImageClassifier.load_from_checkpoint(path, network=make_network(), optimizer=SGD)
    assert constrained_weights(loaded) == {"network.1.weight": "lcw"}
    assert torch.equal(loaded.network[1].weight, classifier.network[1].weight)


def test_a_network_constrained_by_hand_travels_with_the_checkpoint_too(loader, make_trainer):
    classifier = ImageClassifier(make_network(), SGD)
    constrain(classifier.network)
    trainer = make_trainer()
    trainer.fit(classifier, loader, loader)
    path = trainer.checkpoint_callback.best_model_path
    loaded = ImageClassifier.load_from_checkpoint(path, network=make_network(), optimizer=SGD)
    assert torch.equal(loaded.network[1].weight, classifier.network[1].weight)


def test_compile_compiles_the_network_and_keeps_its_names(loader, make_trainer):
    torch.compiler.reset()
    classifier = ImageClassifier(make_network(), SGD, compile=True)
    assert classifier.network._compiled_call_impl is not None
    assert set(classifier.state_dict()) == {"network.1.weight", "network.1.bias"}


@pytest.mark.slow  # starts a C++ compiler
def test_a_compiled_constrained_network_trains(loader, make_trainer):
    eager, compiled = make_network(), make_network()
    compiled.load_state_dict(eager.state_dict())
    for network, flag in ((eager, False), (compiled, True)):
        trainer = make_trainer(callbacks=[ConstraintCallback()], enable_checkpointing=False)
        trainer.fit(ImageClassifier(network, SGD, compile=flag), loader, loader)
    torch.testing.assert_close(compiled[1].weight, eager[1].weight)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, lambda epoch: max(0.1 * 0.95**epoch, 0.001), id="mlp"),
        pytest.param({"every_n_epochs": 3}, lambda epoch: max(0.1 * 0.95 ** (epoch // 3), 0.001), id="vgg"),
        pytest.param({"floor": 0.5}, lambda epoch: 0.1, id="floor-above-start"),
    ],
)
def test_geometric_decay_is_the_papers_schedule(settings, expected):
    optimizer = SGD([nn.Parameter(torch.zeros(1))])
    scheduler = GeometricDecay(optimizer, **settings)
    rates = []
    for _ in range(300):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([expected(epoch) for epoch in range(300)])


@pytest.mark.parametrize("epochs", [7, 10, 30, 50, 90, 150, 299, 300, 600])
def test_geometric_decay_runs_through_the_papers_rates_in_any_number_of_epochs(epochs):
    short = GeometricDecay(SGD([nn.Parameter(torch.zeros(1))]), every_n_epochs=3 * epochs / 300)
    # In whole numbers: epoch t of the short run has the rate of the paper's epoch 300 t / epochs.
    expected = [max(0.95 ** (300 * epoch // (3 * epochs)), 0.01) for epoch in range(epochs)]
    assert [short.lr_lambdas[0](epoch) for epoch in range(epochs)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["none", "lcw", "cwn", "wn", "sn"])
@pytest.mark.parametrize("flag", [True, False])
def test_channels_last_reaches_the_images_between_the_layers(kind, flag):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    classifier = ImageClassifier(network, SGD, channels_last=flag)
    constrain(classifier, kind)
    assert classifier(torch.randn(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last) is flag


def test_geometric_decay_keeps_each_groups_own_rate():
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0}])
    scheduler = GeometricDecay(optimizer, factor=0.5, floor=0.08)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.08, 0.5])


@pytest.mark.parametrize(
    "settings", [{"factor": -1.0}, {"factor": 1.5}, {"every_n_epochs": 0}, {"floor": -1.0}], ids=lambda s: next(iter(s))
)
def test_geometric_decay_refuses_impossible_settings(settings):
    with pytest.raises(ValueError, match="0 < factor <= 1, every_n_epochs > 0 and floor >= 0"):
        GeometricDecay(SGD([nn.Parameter(torch.zeros(1))]), **settings)


MARK = {"lcw_lightning_initialized": True}


@pytest.mark.parametrize(
    ("checkpoint", "initializes"),
    [
        pytest.param({"global_step": 3}, False, id="trained"),
        pytest.param({"global_step": 0, "callbacks": {"MinibatchInitCallback": MARK}}, False, id="initialized"),
        pytest.param({"global_step": 0, **MARK}, False, id="of-version-0.1.0"),
        pytest.param({"global_step": 0, "lcw_lightning_initialized": False}, True, id="tuner"),
    ],
)
def test_loaded_weights_are_not_initialized_again(checkpoint, initializes, loader, make_trainer):
    classifier = ImageClassifier(make_network(), SGD)
    classifier.on_load_checkpoint(checkpoint)
    bias_before = classifier.network[1].bias.detach().clone()
    classifier.optimizer = partial(torch.optim.SGD, lr=0.0)
    make_trainer(callbacks=[MinibatchInitCallback()]).fit(classifier, loader, loader)
    assert torch.equal(classifier.network[1].bias, bias_before) is not initializes
