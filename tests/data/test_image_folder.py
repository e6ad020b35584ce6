"""Pictures of the user's own: how they are found, divided, read, and trained on by one command."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms import v2

from lcw_lightning import ImageFolder
from lcw_lightning.cli import main
from lcw_lightning.data import pictures


def write(path, shape=(12, 9, 3), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Twenty cats and ten dogs of different sizes."""
    for number in range(20):
        write(tmp_path / "pictures/cat" / f"{number}.png", (8 + number, 16, 3))
    for number in range(10):
        write(tmp_path / "pictures/dog" / f"{number}.png", (16, 8 + number, 3), seed=1)
    return tmp_path / "pictures"


@pytest.fixture
def parted(folder):
    """The same pictures in train, some of them in val and test too."""
    root = folder.parent / "parted"
    shutil.copytree(folder, root / "train")
    for part, numbers in (("val", (0, 1)), ("test", (2,))):
        for number in numbers:
            (root / part / "dog").mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / f"dog/{number}.png", root / part / "dog")
    return root


def made(root, **settings):
    data = ImageFolder(root, **{"image_size": 8, "batch_size": 4, **settings})
    data.setup("fit")
    return data


def as_torchvision_reads(folder, size):
    """All images and labels in the order of the files' names."""
    transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    images, labels = zip(*torchvision.datasets.ImageFolder(folder, transform), strict=True)
    return torch.stack(images), torch.tensor(labels)


def pairs(*datasets):
    """The images, as bytes, with their labels."""
    return sorted(
        (image.numpy().tobytes(), int(label))
        for dataset in datasets
        for image, label in zip(*dataset.tensors, strict=True)
    )


@pytest.mark.parametrize("size", [8, 5, 20], ids=["smaller", "much-smaller", "larger"])
def test_pictures_are_resized_and_cropped_as_torchvision_does_it(size, folder):
    images, labels = as_torchvision_reads(folder, size)
    data = made(folder, image_size=size)
    assert data.train_dataset.tensors[0].dtype == torch.uint8
    assert data.image_shape == images.shape[1:]
    found = pairs(data.train_dataset, data.val_dataset, data.test_dataset)
    assert found == pairs(torch.utils.data.TensorDataset(images, labels))
    assert found != pairs(torch.utils.data.TensorDataset(images, 1 - labels))
    assert data.classes == ["cat", "dog"]


def test_a_fraction_of_one_folder_is_held_out_by_the_split_seed_alone(folder, monkeypatch):
    data = made(folder, val_fraction=0.2, test_fraction=0.1)
    assert [len(part) for part in (data.train_dataset, data.val_dataset, data.test_dataset)] == [21, 6, 3]
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    torch.manual_seed(1)
    assert pairs(made(folder, val_fraction=0.2).val_dataset) == pairs(data.val_dataset)
    assert pairs(made(folder, val_fraction=0.2, split_seed=1).val_dataset) != pairs(data.val_dataset)


def test_parts_with_folders_of_their_own_are_those_folders(parted):
    data = made(parted)
    assert [len(part) for part in (data.train_dataset, data.val_dataset, data.test_dataset)] == [30, 2, 1]
    images, _ = as_torchvision_reads(parted / "val", 8)
    # torchvision alone numbers the only class of this folder 0; in training it is 1.
    assert pairs(data.val_dataset) == pairs(torch.utils.data.TensorDataset(images, torch.tensor([1, 1])))


def test_a_part_without_a_folder_is_held_out_of_the_training_pictures(parted):
    shutil.rmtree(parted / "test")
    data = made(parted, test_fraction=0.2)
    assert [len(part) for part in (data.train_dataset, data.val_dataset, data.test_dataset)] == [24, 2, 6]
    images, labels = as_torchvision_reads(parted / "train", 8)
    both = pairs(data.train_dataset, data.test_dataset)
    assert both == pairs(torch.utils.data.TensorDataset(images, labels))


@pytest.mark.parametrize(("fractions", "sizes"), [((0, 0.1), [27, 3, 3]), ((0.1, 0), [27, 3, 3])], ids=["val", "test"])
def test_where_nothing_is_held_out_for_one_part_it_uses_the_other(fractions, sizes, folder):
    data = made(folder, val_fraction=fractions[0], test_fraction=fractions[1])
    assert [len(part) for part in (data.train_dataset, data.val_dataset, data.test_dataset)] == sizes
    assert data.val_dataset is data.test_dataset


def test_training_channels_have_mean_zero_and_std_one(folder):
    data = made(folder, val_fraction=0.2)
    images = data.test_transform(data.train_dataset.tensors[0], torch.empty(0))
    for statistic, value in ((images.mean((0, 2, 3)), 0.0), (images.std((0, 2, 3), correction=0), 1.0)):
        torch.testing.assert_close(statistic, torch.full((3,), value), atol=1e-5, rtol=0)


@pytest.mark.parametrize("augment", [True, False])
def test_pictures_are_augmented_on_demand_alone(augment, folder):
    data = made(folder, augment=augment)
    images = data.test_transform(data.train_dataset.tensors[0], torch.empty(0))
    known = {image.numpy().tobytes() for image in images}
    trained = torch.cat([batch for batch, _ in data.train_dataloader()])
    assert trained.shape[1:] == (3, 8, 8)
    assert all(image.numpy().tobytes() in known for image in trained) is not augment


def test_grey_and_transparent_pictures_and_hidden_folders_do_no_harm(folder):
    write(folder / "cat/grey.png", (9, 9))
    write(folder / "cat/transparent.png", (9, 9, 4))
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "cat/notes.txt").write_text("not a picture")
    data = made(folder)
    assert sum(len(part) for part in (data.train_dataset, data.val_dataset, data.test_dataset)) == 32
    assert data.classes == ["cat", "dog"]


def test_pictures_are_read_once(folder):
    data = made(folder)
    before = data.train_dataset
    shutil.rmtree(folder)
    data.setup("test")
    assert data.train_dataset is before


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def flat(folder):
    empty(folder)
    write(folder / "1.png")


def only_test(folder):
    folder.rename(folder.parent / "test")
    folder.mkdir()
    (folder.parent / "test").rename(folder / "test")


def new_class_in_val(folder):
    shutil.copytree(folder, folder / "train")
    write(folder / "val/fish/1.png")


def val_without_pictures(folder):
    shutil.copytree(folder, folder / "train")
    (folder / "val/dog").mkdir(parents=True)


def damaged(folder):
    path = folder / "dog/3.png"
    path.write_bytes(path.read_bytes()[:60])


FOLDERS = {
    "missing": (shutil.rmtree, FileNotFoundError, "there is no folder .*pictures: give the folder of pictures as root"),
    "empty": (
        empty,
        FileNotFoundError,
        "there are no class folders with pictures in .*: ImageFolder needs a folder for each class",
    ),
    "flat": (
        flat,
        FileNotFoundError,
        "there are no class folders with pictures in .*: ImageFolder needs a folder for each class",
    ),
    "class": (lambda folder: (folder / "ant").mkdir(), FileNotFoundError, "no picture is in the class folders ant of"),
    "no-train": (only_test, FileNotFoundError, "has the folder test with classes in it, but none named train"),
    "new-class": (new_class_in_val, ValueError, "val has classes that train has not, give both the same: fish"),
    "empty-val": (val_without_pictures, FileNotFoundError, "there are no pictures in .*val: fill it, or remove it"),
    "damaged": (damaged, ValueError, r"dog/3.png is no picture that can be read, repair or remove it: "),
}


@pytest.mark.parametrize(("harm", "error", "says"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_cannot_be_used_is_told_in_a_sentence(harm, error, says, folder):
    harm(folder)
    with pytest.raises(error, match=says) as raised:
        made(folder)
    assert len(str(raised.value).splitlines()) == 1


SPLITS = {
    "sum": ({"val_fraction": 0.5, "test_fraction": 0.5}, "give two with a sum below 1"),
    "negative": ({"val_fraction": -0.1}, "fractions of at least 0 that leave pictures to train on"),
    "size": ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
    "rounded": ({"val_fraction": 0.01}, "val_fraction=0.01 of 30 pictures is none: give a larger fraction, or 0"),
    "none": ({"val_fraction": 0, "test_fraction": 0}, "leaves no picture to validate or test"),
    "class": ({"val_fraction": 0.9, "test_fraction": 0.05}, "leaves no training picture of cat: give smaller"),
}


@pytest.mark.parametrize(("settings", "says"), SPLITS.values(), ids=SPLITS)
def test_a_setting_that_leaves_nothing_is_told_in_a_sentence(settings, says, folder):
    with pytest.raises(ValueError, match=says):
        made(folder, **settings)


def test_pictures_beyond_the_memory_are_refused_before_they_are_read():
    with pytest.raises(MemoryError, match=r"take 300000 GB, but this machine has \d+ GB: give a smaller image_size"):
        pictures.read_pictures(["nowhere.png"] * 1000, 316_228)


def test_one_command_trains_a_folder_of_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = Path(f"pictures/{label}/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    network = ["--model.network=DeepCNN", "--model.network.depth=3", "--model.network.channels=16"]
    model = ["--model=ImageClassifier", *network, "--model.optimizer=SGD", "--model.optimizer.lr=0.1"]
    data = ["--data=lcw_lightning.ImageFolder", "--data.root=pictures", "--data.image_size=8", "--data.batch_size=32"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--shift_monitor.every_n_steps=0"]
    main(
        [
            "fit",
            *model,
            *data,
            *quiet,
            "--trainer.max_epochs=2",
            "--trainer.log_every_n_steps=10",
            "--test_after_fit=true",
        ]
    )
    events = EventAccumulator("lightning_logs/version_0")
    events.Reload()
    assert events.Scalars("test/accuracy")[-1].value > 0.5  # chance is 0.1
