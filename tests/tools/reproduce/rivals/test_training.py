import json

import pytest
import torch
from torch import nn

from tools.reproduce.convert import Images
from tools.reproduce.rivals import training
from tools.reproduce.rivals.choosing import Axis
from tools.reproduce.rivals.training import Recipe, digits, fit, record, train

RATE = (Axis("rate", 0.05, 4.0),)
RECIPE = Recipe(batch_size=50, images=600, choosing_images=300, looks=2)


def linear(settings, images):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_the_digits_are_held_out_from_the_training_images_of_the_package():
    data = digits()
    assert [len(images.labels) for images in data] == [1200, 237, 360]
    rows = [images.images.flatten(1) for images in data]
    assert torch.cdist(rows[0], rows[1]).min() > 0.1
    assert torch.cdist(rows[0], rows[2]).min() > 0.1


def test_sgd_is_torchs_and_ends_with_a_tenth_of_the_rate():
    data = digits()._replace(train=Images(*(part[:50] for part in digits().train)))  # each batch is all of them
    torch.manual_seed(0)
    network, twin = linear({}, None), linear({}, None)
    twin.load_state_dict(network.state_dict())
    fit(network, data, 0.1, Recipe(50, images=500, choosing_images=0, weight_decay=0.01, clip=0.5))
    optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for step in range(10):
        optimizer.param_groups[0]["lr"] = 0.1 if step < 8 else 0.01
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(data.train.images), data.train.labels).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
    torch.testing.assert_close(network[1].weight, twin[1].weight)


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_every_batch_size_sees_as_many_images(batch_size):
    seen = []
    network = linear({}, None)
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])) if module.training else None)
    fit(network, digits(), 0.01, Recipe(batch_size, images=210 // batch_size * batch_size, choosing_images=0))
    assert sum(seen) == 210 // batch_size * batch_size
    assert set(seen) == {batch_size}


def test_a_run_learns_and_a_run_that_diverges_ends():
    good, bad = (train(linear, digits(), {"rate": rate}, RECIPE, seed=0) for rate in (0.05, 1e38))
    assert good["test_accuracy"] > 0.8
    assert len(good["held_out_accuracy"]) == len(good["held_out_loss"]) == 2
    assert (good["diverged"], bad["diverged"]) == (False, True)


def test_a_loss_on_held_out_images_that_is_not_finite_is_divergence():
    found = {"held_out_accuracy": [], "held_out_loss": []}
    broken = Images(torch.full((2, 64), torch.nan), torch.zeros(2, dtype=torch.long))
    training.look(nn.Linear(64, 10), broken, found)
    assert found["diverged"]
    assert found["held_out_loss"] == [None]


def test_what_cannot_be_done_says_why():
    found = train(
        lambda *_: nn.Sequential(*linear({}, None), nn.BatchNorm1d(10)),
        digits(),
        {"rate": 0.1},
        RECIPE._replace(batch_size=1),
        0,
    )
    assert list(found) == ["cannot"]
    assert "Expected more than 1 value per channel" in found["cannot"]


@pytest.fixture
def two_seeds(monkeypatch):
    monkeypatch.setattr(training, "SEEDS", range(2))


def test_settings_are_chosen_without_the_test_images_and_runs_are_kept(two_seeds, tmp_path, monkeypatch):
    found = record(linear, digits(), RECIPE, RATE, tmp_path)
    assert all("test_accuracy" not in attempt for attempt in found["tried"])
    assert found["chosen"]["rate"] == found["tried"][0]["rate"]
    assert found["tried"][0]["held_out_accuracy"] == [max(run["held_out_accuracy"][0] for run in found["tried"])]
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["runs"][0]["test_accuracy"] != found["runs"][1]["test_accuracy"]
    assert json.loads(json.dumps(found)) == found

    monkeypatch.setattr(training, "train", None)  # a second call trains nothing
    again = record(linear, digits(), RECIPE, RATE, tmp_path)
    assert (again["tried"], again["runs"]) == (found["tried"], found["runs"])
    (path, *_) = tmp_path.glob("*_0_600.json")
    path.unlink()
    with pytest.raises(TypeError):
        record(linear, digits(), RECIPE, RATE, tmp_path)


def test_a_method_that_cannot_run_has_no_seeds(two_seeds, tmp_path):
    def build(settings, images):
        raise ValueError("no such network")

    found = record(build, digits(), RECIPE, RATE, tmp_path)
    assert found["runs"] == []
    assert {run["cannot"] for run in found["tried"]} == {"no such network"}
