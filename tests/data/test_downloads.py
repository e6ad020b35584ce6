import os
import shutil

import numpy as np
import pytest
import torch
import torchvision.datasets

from lcw_lightning.data.downloads import prepare, read

NAMES = ["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"]
# One of each family: where the archive lies, where a file that is read lies, and how many of those there are.
ARCHIVES = {"FashionMNIST": "FashionMNIST/raw/t10k-images-idx3-ubyte.gz", "CIFAR10": "cifar-10-python.tar.gz"}
FILES = {"FashionMNIST": "FashionMNIST/raw/t10k-images-idx3-ubyte", "CIFAR10": "cifar-10-batches-py/data_batch_3"}
FIRST_ARCHIVES = {
    "MNIST": "MNIST/raw/train-images-idx3-ubyte.gz",
    "FashionMNIST": "FashionMNIST/raw/train-images-idx3-ubyte.gz",
    "CIFAR10": "cifar-10-python.tar.gz",
    "CIFAR100": "cifar-100-python.tar.gz",
}
NUMBERS = {"MNIST": 4, "FashionMNIST": 4, "CIFAR10": 7, "CIFAR100": 3}
both_families = pytest.mark.parametrize("name", ["FashionMNIST", "CIFAR10"])
every_set = pytest.mark.parametrize("name", NAMES)


def contents(folder):
    """Every file's bytes and time of change."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def put_archives(name, server, folder):
    """Copy the published archives to where torchvision looks for them."""
    target = folder / ARCHIVES[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in (server.folder / name).glob("*.gz"):
        shutil.copy(path, target.parent)
    return target


def flip_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def error_of(name, folder, download=True):
    """Return the message, and make sure that nothing changed and that it names the folder."""
    before = contents(folder)
    with pytest.raises(RuntimeError) as caught:
        prepare(name, folder, download)
    message = str(caught.value)
    assert f"{name} " in message
    assert str(folder.absolute()) in message
    assert contents(folder) == before
    return message


@every_set
def test_a_downloaded_set_is_the_published_one(name, published, tmp_path):
    prepare(name, tmp_path, download=True)
    assert len(contents(tmp_path)) == NUMBERS[name]  # no archive and no temporary file is left
    for train, part in ((True, "train"), (False, "test")):
        images, labels = read(name, tmp_path, train)
        expected_images, expected_labels = published[name][part]
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.is_contiguous()
        assert np.array_equal(images, expected_images)
        assert np.array_equal(labels, expected_labels)


@every_set
def test_a_whole_set_is_left_as_it_is_without_a_request(name, published, server, tmp_path):
    prepare(name, tmp_path, download=True)
    before, asked = contents(tmp_path), len(server.requests)
    for download in (True, False):
        prepare(name, tmp_path, download)
    assert contents(tmp_path) == before
    assert len(server.requests) == asked


@both_families
def test_archives_that_lie_there_are_unpacked_without_a_network(name, published, server, no_network, tmp_path):
    put_archives(name, server, tmp_path)
    before = contents(tmp_path)
    prepare(name, tmp_path, download=True)
    assert contents(tmp_path).items() > before.items()
    assert np.array_equal(read(name, tmp_path, train=False)[0], published[name]["test"][0])


@both_families
def test_only_missing_files_are_put_in_place(name, published, tmp_path):
    prepare(name, tmp_path, download=True)
    whole = contents(tmp_path)
    (tmp_path / FILES[name]).unlink()
    kept = contents(tmp_path)
    prepare(name, tmp_path, download=True)
    assert contents(tmp_path).items() > kept.items()
    assert contents(tmp_path)[FILES[name]][0] == whole[FILES[name]][0]


@both_families
@pytest.mark.parametrize("damage", [halve, flip_last_byte])
def test_a_damaged_archive_is_named_and_left_alone(damage, name, published, server, tmp_path):
    archive = put_archives(name, server, tmp_path)
    damage(archive)
    asked = len(server.requests)
    message = error_of(name, tmp_path)
    assert f"is incomplete or damaged: {archive} has the wrong md5" in message
    assert "delete it and run again" in message
    assert len(server.requests) == asked
    archive.unlink()
    prepare(name, tmp_path, download=True)


def test_torchvision_alone_overwrites_a_damaged_archive(published, server, tmp_path):
    archive = put_archives("CIFAR10", server, tmp_path)
    whole = archive.read_bytes()
    halve(archive)
    torchvision.datasets.CIFAR10(tmp_path, download=True)
    assert archive.read_bytes() == whole


@pytest.mark.parametrize("damage", [halve, flip_last_byte])
def test_a_file_with_a_wrong_md5_is_named_and_left_alone(damage, published, tmp_path):
    prepare("CIFAR10", tmp_path, download=True)
    damage(tmp_path / FILES["CIFAR10"])
    for download in (True, False):
        assert f"{tmp_path / FILES['CIFAR10']} has the wrong md5" in error_of("CIFAR10", tmp_path, download)
    with pytest.raises(RuntimeError, match="data_batch_3 has the wrong md5"):
        read("CIFAR10", tmp_path, train=False)


def test_a_half_file_whose_md5_nobody_published_is_never_read(published, tmp_path):
    prepare("FashionMNIST", tmp_path, download=True)
    halve(tmp_path / FILES["FashionMNIST"])
    with pytest.raises(RuntimeError, match="cannot be read, one of these files is incomplete") as caught:
        read("FashionMNIST", tmp_path, train=False)
    assert str(tmp_path / FILES["FashionMNIST"]) in str(caught.value)
    assert "Delete them and run again" in str(caught.value)


@both_families
@pytest.mark.parametrize("damage", [halve, flip_last_byte])
def test_a_download_that_arrives_damaged_is_not_put_in_place(damage, name, published, server, tmp_path):
    (archive,) = (server.folder / name).glob(ARCHIVES[name].split("/")[-1])
    whole = archive.read_bytes()
    damage(archive)
    try:
        message = error_of(name, tmp_path)
    finally:
        archive.write_bytes(whole)
    assert "could not be put into" in message
    assert "File not found or corrupted" in message
    assert not contents(tmp_path)


@every_set
def test_without_a_network_the_message_says_what_to_put_where(name, published, no_network, tmp_path):
    message = error_of(name, tmp_path / "data")
    assert "Connection refused" in message
    assert f"without a network, put {FIRST_ARCHIVES[name]}" in message
    assert "from http://127.0.0.1:9/ there" in message
    assert "\n" not in message


@every_set
def test_without_download_a_missing_set_is_an_error_and_no_folder_is_made(name, published, tmp_path):
    message = error_of(name, tmp_path / "nothing", download=False)
    assert "Give the folder that holds it as data_dir" in message
    assert "download=True" in message
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_cannot_be_made_is_an_error(published, tmp_path):
    (tmp_path / "file").write_text("taken")
    assert "Give a folder that can be written as data_dir" in error_of("CIFAR10", tmp_path / "file" / "data")
    assert (tmp_path / "file").read_text() == "taken"


@pytest.fixture
def nobody(tmp_path):
    """Root, whom no mode of a folder stops, goes on as nobody, who can come to ``tmp_path``."""
    if os.geteuid() != 0:
        yield
        return
    modes = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.parents[:-2])}
    for path in modes:
        path.chmod(0o755)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    for path, mode in modes.items():
        path.chmod(mode)


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are posix")
def test_a_folder_that_cannot_be_written_is_an_error(published, tmp_path, nobody):
    folder = tmp_path / "data"
    message = error_of("CIFAR10", folder)
    assert "Permission denied" in message
    assert "Give a folder that can be written as data_dir" in message
