import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from lcw_lightning import CIFAR10, CIFAR100, MNIST, FashionMNIST

CLASSES = [MNIST, FashionMNIST, CIFAR10, CIFAR100]
every_set = pytest.mark.parametrize("module", CLASSES)


@pytest.fixture
def make(published, tmp_path):
    """Make a data module of the published data, set up."""

    def made(module=CIFAR10, **kwargs):
        data = module(tmp_path, **{"batch_size": 16, **kwargs})
        data.prepare_data()
        data.setup("fit")
        return data

    return made


def whole(loader):
    """All images and labels of an epoch."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def originals(data, sets):
    """Index of each training image by its bytes."""
    return {image.tobytes(): index for index, image in enumerate(sets[data.name]["train"][0])}


def indices(dataset, data, sets):
    known = originals(data, sets)
    return [known[image.numpy().tobytes()] for image in dataset.tensors[0]]


@every_set
def test_all_four_loaders_give_normalized_images_and_their_labels(module, published, make):
    data = make(module, augment=False)
    pixels = published[data.name]["train"][0].astype(np.float64).swapaxes(0, 1).reshape(data.image_shape[0], -1)
    mean, std = (statistic.reshape(-1, 1, 1) for statistic in (pixels.mean(1), pixels.std(1)))
    expected_images, expected_labels = published[data.name]["test"]
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        images, labels = whole(loader)
        assert images.dtype == torch.float32
        assert images.shape[1:] == data.image_shape
        assert np.allclose(images, (expected_images - mean) / std, atol=1e-5)
        assert np.array_equal(labels, expected_labels)
    images, labels = next(iter(data.train_dataloader()))
    levels = np.rint(images.numpy() * std + mean).astype(np.uint8)
    order = [originals(data, published)[image.tobytes()] for image in levels]
    assert np.array_equal(labels, published[data.name]["train"][1][order])
    assert order != sorted(order)


@every_set
def test_labels_are_below_the_number_of_classes(module, make):
    assert make(module).train_dataset.tensors[1].max() < module.num_classes


@pytest.mark.parametrize(("module", "augmented"), [(CIFAR10, True), (CIFAR100, True), (MNIST, False)])
def test_training_images_are_augmented_by_default_where_the_paper_does_it(module, augmented, make):
    images, plain = (whole(make(module, augment=augment).train_dataloader())[0] for augment in (None, False))
    assert torch.equal(images, plain) is not augmented


def test_images_that_are_evaluated_are_never_augmented(make):
    data = make(augment=True, val_size=20)
    for loader, dataset in ((data.val_dataloader(), data.val_dataset), (data.test_dataloader(), data.test_dataset)):
        images, labels = whole(loader)
        assert torch.equal(images, data.test_transform(dataset.tensors[0], torch.empty(0)))
        assert torch.equal(labels, dataset.tensors[1])


def test_held_out_images_are_not_trained_on(published, make):
    data = make(val_size=25)
    train, held_out = (indices(dataset, data, published) for dataset in (data.train_dataset, data.val_dataset))
    assert (len(train), len(held_out)) == (35, 25)
    assert sorted(train + held_out) == list(range(60))


def test_held_out_images_follow_from_the_split_seed_alone(published, make, monkeypatch):
    one = make(val_size=25).val_dataset.tensors[1]
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert torch.equal(make(val_size=25).val_dataset.tensors[1], one)
    assert not torch.equal(make(val_size=25, split_seed=1).val_dataset.tensors[1], one)


def test_held_out_images_have_no_part_in_the_normalization(make):
    data, other = make(val_size=25), make()
    pixels = data.train_dataset.tensors[0].double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(data.train_transform.mean.flatten().double(), pixels.mean(1), rtol=1e-6, atol=0)
    assert not torch.equal(data.train_transform.mean, other.train_transform.mean)


def test_without_held_out_images_all_are_trained_on_and_validation_is_on_the_test_images(published, make):
    data = make()
    assert indices(data.train_dataset, data, published) == list(range(60))
    assert data.val_dataset is data.test_dataset


@pytest.mark.parametrize("val_size", [-1, 60])
def test_a_split_that_leaves_nothing_is_an_error(val_size, make):
    with pytest.raises(ValueError, match=rf"val_size must be at least 0 and below the 60 images, got {val_size}"):
        make(val_size=val_size)


def test_the_first_epoch_differs_from_the_second_and_equals_itself_under_the_same_seed(make, monkeypatch):
    def epoch(number, seed="0"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        loader = make().train_dataloader()
        loader.sampler.set_epoch(number)
        return whole(loader)[0]

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, seed="1"))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_processes_give_the_same_batches(make):
    images, others = (whole(make(workers=workers).train_dataloader())[0] for workers in (0, 1))
    assert torch.equal(images, others)


@pytest.mark.parametrize(("overfit_batches", "same"), [(2, True), (0, False)], ids=["overfit", "train"])
def test_overfitting_sees_the_same_batches_each_epoch(overfit_batches, same, make):
    data = make()
    data.trainer = Trainer(accelerator="cpu", overfit_batches=overfit_batches, logger=False)
    loader, epochs = data.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(whole(loader)[0])
    assert torch.equal(*epochs) is same


def test_files_are_read_once(make, tmp_path):
    data = make()
    before = data.train_dataset
    next(tmp_path.glob("cifar*/data_batch_1")).unlink()
    data.setup("test")
    assert data.train_dataset is before


def test_setup_on_a_machine_without_the_files_says_so(published, tmp_path):
    with pytest.raises(RuntimeError, match=f"CIFAR10 is not in {tmp_path}"):
        CIFAR10(tmp_path).setup("fit")


def test_a_home_folder_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert MNIST("~/data").data_dir == tmp_path / "data"
