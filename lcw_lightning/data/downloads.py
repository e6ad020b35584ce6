"""Put torchvision's data sets completely into a folder, or raise an error that tells what to do."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from torch import Tensor
from torchvision.datasets.utils import check_integrity

__all__ = ["prepare", "read"]


def prepare(name: str, folder: Path, download: bool) -> None:
    """Make sure that the folder contains the complete data set.

    Missing files are unpacked from archives in the folder, or downloaded. They are written to a temporary folder
    inside, and only complete files are moved to their places. Existing files are never overwritten.

    Args:
        name: Name of the class in ``torchvision.datasets``.
        folder: The folder that torchvision calls ``root``.
        download: Download missing files.

    Raises:
        RuntimeError: A file or archive has a wrong md5, files are missing and ``download`` is off, the folder cannot be
            written, or the download failed.
    """
    dataset = getattr(torchvision.datasets, name)
    files, archives = _layout(dataset)
    if not _missing(name, folder, files):
        return
    if not download:
        raise RuntimeError(
            f"{name} is not in {folder.absolute()}, or not all of it. Give the folder that holds it as data_dir, or "
            "let it be downloaded with download=True."
        )
    absent = _missing(name, folder, archives)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as temporary:
            for path in archives.keys() - absent:
                copy = Path(temporary, path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / path, copy)
            dataset(temporary, download=True)
            for path in _missing(name, folder, files):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Path(temporary, path).replace(folder / path)
    except Exception as error:
        source = dataset.url if hasattr(dataset, "url") else dataset.mirrors[0]
        reason = " ".join(str(error).split())  # torchvision's may have several lines
        raise RuntimeError(
            f"{name} could not be put into {folder.absolute()}: {reason}. No file there was overwritten. Give a folder "
            f"that can be written as data_dir; without a network, put {', '.join(archives)} from {source} there."
        ) from error


def read(name: str, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Read all images and labels of the training or the test set.

    Returns:
        uint8 ``(images, channels, height, width)`` and int64 ``(images,)``.

    Raises:
        RuntimeError: The folder does not contain the complete data set.
    """
    dataset = getattr(torchvision.datasets, name)
    try:
        whole = dataset(folder, train=train)
        if len(whole.data) != len(whole.targets):
            raise ValueError(f"{len(whole.data)} images have {len(whole.targets)} labels")
    except Exception as error:
        prepare(name, folder, download=False)  # its errors say more than torchvision's
        paths = ", ".join(str(folder.absolute() / path) for path in _layout(dataset)[0])
        raise RuntimeError(
            f"{name} in {folder.absolute()} cannot be read, one of these files is incomplete or damaged: {paths}. "
            "Delete them and run again with download=True."
        ) from error
    images = torch.as_tensor(whole.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(whole.targets)


def _layout(dataset: Any) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Return the paths of the data files and of their archives, each with its md5 if known."""
    if hasattr(dataset, "resources"):  # the MNIST family
        archives = {f"{dataset.__name__}/raw/{file}": md5 for file, md5 in dataset.resources}
        return dict.fromkeys(path.removesuffix(".gz") for path in archives), archives
    files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    return {f"{dataset.base_folder}/{file}": md5 for file, md5 in files}, {dataset.filename: dataset.tgz_md5}


def _missing(name: str, folder: Path, files: dict[str, str | None]) -> list[str]:
    """Return the missing files; raise if an existing file has a wrong md5."""
    present = [path for path in files if check_integrity(folder / path)]
    damaged = [str(folder.absolute() / path) for path in present if not check_integrity(folder / path, files[path])]
    if damaged:
        raise RuntimeError(
            f"{name} in {folder.absolute()} is incomplete or damaged: {', '.join(damaged)} has the wrong md5. Nothing "
            "was changed; delete it and run again with download=True."
        )
    return [path for path in files if path not in present]
