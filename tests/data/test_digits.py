import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.datasets import load_digits

from lcw_lightning import Digits


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup("fit")
    return data


def test_train_and_test_images_are_all_of_scikit_learns_and_disjoint(digits):
    train, test = digits.train_dataset.tensors[0], digits.test_dataset.tensors[0]
    assert train.shape == (1437, 1, 8, 8)
    assert test.shape == (360, 1, 8, 8)
    labels = torch.cat((digits.train_dataset.tensors[1], digits.test_dataset.tensors[1]))
    assert labels.bincount().tolist() == torch.tensor(load_digits().target).bincount().tolist()


def test_images_keep_their_labels(digits):
    raw = load_digits()
    by_image = {image.tobytes(): label for image, label in zip(raw.images, raw.target, strict=True)}
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    labels = digits.test_dataset.tensors[1]
    assert [by_image[raw.images[index].tobytes()] for index in order[1437:]] == labels.tolist()


def test_each_training_pixel_has_mean_zero_and_all_together_std_one(digits):
    train = digits.train_dataset.tensors[0]
    torch.testing.assert_close(train.mean(0), torch.zeros(1, 8, 8), atol=1e-5, rtol=0)
    assert train.std(correction=0).item() == pytest.approx(1)


def test_test_images_are_scaled_by_the_training_images_alone(digits):
    test = digits.test_dataset.tensors[0]
    assert 1e-3 < test.mean(0).abs().max() < 0.5


def test_the_split_follows_from_its_own_seed_alone(digits, monkeypatch):
    def test_labels(**seeds):
        data = Digits(**seeds)
        data.setup("fit")
        return data.test_dataset.tensors[1].tolist()

    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert test_labels() == digits.test_dataset.tensors[1].tolist()
    assert test_labels(split_seed=1) != digits.test_dataset.tensors[1].tolist()


def test_training_batches_are_shuffled_and_the_others_are_not(digits):
    images, labels = next(iter(digits.train_dataloader()))
    assert images.shape == (128, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.tolist() != digits.train_dataset.tensors[1][:128].tolist()
    for loader in (digits.val_dataloader(), digits.test_dataloader(), digits.predict_dataloader()):
        assert next(iter(loader))[1].tolist() == digits.test_dataset.tensors[1][:128].tolist()


@pytest.mark.parametrize(("batch_size", "sizes"), [(128, [128] * 11), (1437, [1437]), (2000, [1437])])
def test_training_takes_whole_batches_and_a_smaller_one_only_where_there_is_no_other(batch_size, sizes):
    data = Digits(batch_size=batch_size)
    data.setup("fit")
    assert [len(labels) for _, labels in data.train_dataloader()] == sizes


def test_all_images_are_evaluated(digits):
    assert sum(len(labels) for _, labels in digits.val_dataloader()) == 360


def test_the_order_follows_from_the_seed_of_seed_everything(digits, monkeypatch):
    def first_labels():
        return next(iter(digits.train_dataloader()))[1].tolist()

    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    one = first_labels()
    assert first_labels() == one
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert first_labels() != one


@pytest.mark.parametrize(("overfit_batches", "same"), [(2, True), (0, False)], ids=["overfit", "train"])
def test_overfitting_sees_the_same_batches_each_epoch(overfit_batches, same):
    data = Digits()
    data.setup("fit")
    data.trainer = Trainer(accelerator="cpu", overfit_batches=overfit_batches, logger=False)
    loader, labels = data.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        labels.append(next(iter(loader))[1].tolist())
    assert (labels[0] == labels[1]) is same
