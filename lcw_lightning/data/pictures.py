"""Picture files in one folder a class: which there are, which train, validate and test, and their pixels."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, make_dataset
from torchvision.transforms.v2 import functional

__all__ = ["check_fractions", "divide", "find_parts", "read_pictures"]

Picture = tuple[str, int]
"""The path of a picture and the number of its class."""


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise a ValueError unless both fractions are at least 0 and leave pictures to train on."""
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            "ImageFolder needs fractions of at least 0 that leave pictures to train on, got "
            f"val_fraction={val_fraction} and test_fraction={test_fraction}: give two with a sum below 1."
        )


def divide(pictures: Sequence[Picture], fractions: dict[str, float], seed: int) -> dict[str, list[Picture]]:
    """Hold out a random fraction of the pictures for each named part; the rest is ``train``, in the order given.

    Args:
        pictures: All pictures.
        fractions: Part to its fraction of all pictures, rounded to whole pictures; 0 holds out none.
        seed: Seed of the random choice, which nothing else has a part in.

    Raises:
        ValueError: A fraction above 0 holds out no picture.

    Example:
        >>> parts = divide([("a.png", 0), ("b.png", 1), ("c.png", 0), ("d.png", 1)], {"val": 0.25}, seed=0)
        >>> len(parts["train"]), len(parts["val"])
        (3, 1)
    """
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = {}
    for part, fraction in fractions.items():
        size = round(fraction * len(pictures))
        if fraction and not size:
            raise ValueError(
                f"{part}_fraction={fraction} of {len(pictures)} pictures is none: give a larger fraction, or 0."
            )
        chosen, order = order[:size], order[size:]
        parts[part] = [pictures[index] for index in chosen]
    return {"train": [pictures[index] for index in sorted(order)], **parts}


def find_parts(
    root: Path, val_fraction: float, test_fraction: float, seed: int
) -> tuple[list[str], dict[str, list[Picture]]]:
    """Return the names of the classes, sorted, and the pictures of the parts ``train``, ``val`` and ``test``.

    At most one of ``val`` and ``test`` is empty, which is so where its fraction is 0.

    Raises:
        FileNotFoundError: There is no such folder, it has no pictures, or a class has none.
        ValueError: ``val`` or ``test`` has a class that ``train`` has not, or a division leaves a part, or a class in
            training, without pictures.
    """
    own = {part: root / part for part in ("train", "val", "test") if _class_names(root / part)}
    if own and "train" not in own:
        raise FileNotFoundError(
            f"{root.absolute()} has the folder {' and '.join(own)} with classes in it, but none named train."
        )
    folder = own.pop("train", root)
    classes = _class_names(folder)
    pictures = _pictures_of_all(folder, classes)
    fractions = {"val": val_fraction, "test": test_fraction}
    parts = divide(pictures, {part: fraction for part, fraction in fractions.items() if part not in own}, seed)
    parts |= {part: _pictures_of_known(path, classes) for part, path in own.items()}
    _check_parts(parts, classes, folder)
    return classes, parts


def read_pictures(paths: Sequence[str], size: int) -> Tensor:
    """Read pictures into one uint8 tensor ``(pictures, 3, size, size)``.

    The shorter side of each is resized to ``size``, then the middle is cut out, as torchvision's Resize and CenterCrop
    do it. Grey pictures get three equal channels.

    Raises:
        MemoryError: The tensor would be larger than this machine's memory.
        ValueError: A file is no picture that can be read.
    """
    needed, memory = len(paths) * 3 * size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise MemoryError(
            f"{len(paths)} pictures of {size} x {size} pixels take {needed / 1e9:.0f} GB, but this machine has "
            f"{memory / 1e9:.0f} GB: give a smaller image_size, or fewer pictures."
        )
    pixels = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def read(index: int) -> None:
        pixels[index] = _read_one(paths[index], size)

    with ThreadPoolExecutor() as threads:  # pictures are decoded outside of Python's lock
        list(threads.map(read, range(len(paths))))
    return pixels


def _read_one(path: str, size: int) -> Tensor:
    try:
        image = default_loader(path)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read, repair or remove it: {error}.") from error
    cropped = functional.center_crop(functional.resize(image, [size]), [size, size])
    return cast(Tensor, functional.pil_to_tensor(cropped))


def _class_names(folder: Path) -> list[str]:
    """Return the names of the folders inside, sorted; none if there is no such folder. Hidden folders hold no class."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path, classes: list[str]) -> list[Picture]:
    numbers = {name: number for number, name in enumerate(classes)}
    found: list[Picture] = make_dataset(folder, numbers, IMG_EXTENSIONS, allow_empty=True)
    return found


def _pictures_of_all(folder: Path, classes: list[str]) -> list[Picture]:
    """Return the pictures of a folder in which every class must have some."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.absolute()}: give the folder of pictures as root.")
    pictures = _pictures(folder, classes) if classes else []
    if not pictures:
        raise FileNotFoundError(
            f"there are no class folders with pictures in {folder.absolute()}: ImageFolder needs a folder for each "
            f"class in it, such as {folder.name}/cat/1.png, of {', '.join(IMG_EXTENSIONS)} files."
        )
    known = {number for _, number in pictures}
    empty = [name for number, name in enumerate(classes) if number not in known]
    if empty:
        raise FileNotFoundError(
            f"no picture is in the class folders {', '.join(empty)} of {folder.absolute()}: remove them, or fill them."
        )
    return pictures


def _pictures_of_known(folder: Path, classes: list[str]) -> list[Picture]:
    """Return the pictures of a folder all of whose classes are known in training."""
    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise ValueError(
            f"{folder.absolute()} has classes that train has not, give both the same: {', '.join(unknown)}."
        )
    pictures = _pictures(folder, classes)
    if not pictures:
        raise FileNotFoundError(f"there are no pictures in {folder.absolute()}: fill it, or remove it.")
    return pictures


def _check_parts(parts: dict[str, list[Picture]], classes: list[str], folder: Path) -> None:
    trained = {number for _, number in parts["train"]}
    lost = [name for number, name in enumerate(classes) if number not in trained]
    if lost:
        raise ValueError(
            f"the split of {folder.absolute()} leaves no training picture of {', '.join(lost)}: give smaller "
            "fractions, another split_seed, or folders train, val and test."
        )
    if not (parts["val"] or parts["test"]):
        raise ValueError(
            f"the split of {folder.absolute()} leaves no picture to validate or test: give a val_fraction above 0."
        )
