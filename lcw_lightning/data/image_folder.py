"""Any data set of the user's: a folder of pictures, with one folder in it for each class."""

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import TensorDataset
from typing_extensions import override

from lcw_lightning.data.augmentation import ImageTransform, channel_mean_and_std
from lcw_lightning.data.in_memory import InMemoryData
from lcw_lightning.data.pictures import check_fractions, find_parts, read_pictures

__all__ = ["ImageFolder"]


class ImageFolder(InMemoryData):
    """Pictures in folders, one for each class: ``root/cat/1.png``, ``root/dog/2.jpg``, as torchvision's ImageFolder.

    Batches are float32 images ``(batch, 3, image_size, image_size)`` and labels ``(batch,)``, the numbers of the sorted
    names of the classes. The shorter side of each picture is resized to ``image_size``, then the middle is cut out.
    Each channel is normalized by its mean and standard deviation over the training pictures.

    If there are folders ``root/train/cat/...``, those are the training pictures, and ``root/val`` and ``root/test``,
    where they are there, the others. A part without a folder is held out of the training pictures: a random fraction of
    them, by ``split_seed`` alone. Where that fraction is 0, validation uses the test pictures, or the other way round.

    All pictures are read into one uint8 tensor on the training device, where whole batches are cropped, flipped and
    normalized at once. The order of training batches and their augmentation follow from the seed of Lightning's
    ``seed_everything``, 0 without it, and not from the number of devices. A run that is stopped in the middle of an
    epoch resumes there. Training leaves out the last, smaller batch of an epoch, which ranks could not share equally.

    Args:
        root: The folder.
        image_size: Rows and columns of an image, in pixels.
        batch_size: Images in a batch, on each device.
        val_fraction: Fraction of the training pictures held out for validation, unless ``root/val`` is there.
        test_fraction: Fraction held out for the test, unless ``root/test`` is there.
        augment: Crop at random after padding by 4 pixels, and flip from left to right with probability 1/2, in
            training. Off by default, since a mirrored letter is another letter.
        split_seed: Seed of the random choice of held-out pictures.
        workers: Number of processes of a torch DataLoader that prepare the same batches from pictures on the host, for
            devices with little memory. 0 keeps them on the device.

    Attributes:
        classes: Names of the classes, sorted, after ``setup``.
        image_shape: ``(3, image_size, image_size)``.

    Raises:
        ValueError: A size below 1 or fractions that leave nothing to train on; in ``setup``, a division that leaves a
            part or a class without pictures, a class that is not in ``root/train``, or a file that cannot be read.
        FileNotFoundError: In ``setup``, if there is no such folder, or no picture in it or in a class.
        MemoryError: In ``setup``, if the pictures do not fit into memory.

    Example:
        >>> data = ImageFolder("pictures", image_size=64)
        >>> data.image_shape
        (3, 64, 64)
    """

    classes: list[str]

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        augment: bool = False,
        split_seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, workers)
        check_fractions(val_fraction, test_fraction)
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}.")
        self.root = Path(root).expanduser()
        self.image_shape = (3, image_size, image_size)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.augment = augment
        self.split_seed = split_seed

    @override
    def setup(self, stage: str) -> None:
        if hasattr(self, "train_dataset"):  # Lightning calls setup for each stage
            return
        self.classes, parts = find_parts(self.root, self.val_fraction, self.test_fraction, self.split_seed)
        sizes = ", ".join(f"{len(pictures)} {part}" for part, pictures in parts.items())
        rank_zero_info(f"ImageFolder: {len(self.classes)} classes in {self.root}; pictures by part: {sizes}.")
        datasets = {part: self._read(pictures) for part, pictures in parts.items() if pictures}
        self.train_dataset = datasets["train"]
        self.val_dataset = datasets.get("val") or datasets["test"]
        self.test_dataset = datasets.get("test") or datasets["val"]
        mean, std = channel_mean_and_std(self.train_dataset.tensors[0])
        self.train_transform = ImageTransform(mean, std, self.augment)
        self.test_transform = ImageTransform(mean, std, augment=False)

    def _read(self, pictures: list[tuple[str, int]]) -> TensorDataset:
        paths, labels = zip(*pictures, strict=True)
        return TensorDataset(read_pictures(paths, self.image_shape[1]), torch.tensor(labels))
