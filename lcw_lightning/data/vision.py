"""The data sets of the papers: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

from pathlib import Path

import torch
from torch.utils.data import TensorDataset
from typing_extensions import override

from lcw_lightning.data.augmentation import ImageTransform, channel_mean_and_std
from lcw_lightning.data.downloads import prepare, read
from lcw_lightning.data.in_memory import InMemoryData
from lcw_lightning.data.sequences import Reader, SequenceOf

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "VisionData"]


class VisionData(InMemoryData):
    """A torchvision data set that fits into memory.

    Batches are float32 images ``(batch, *image_shape)`` and labels ``(batch,)``. Each channel is normalized by its mean
    and standard deviation over the training images. Crops are padded with black, that is with zeros before
    normalization.

    The images stay in one uint8 tensor on the training device, where whole batches are cropped, flipped and normalized
    at once. The order of training batches and their augmentation follow from the seed of Lightning's
    ``seed_everything``, 0 without it, and not from the number of devices. A run that is stopped in the middle of an
    epoch resumes there. Training leaves out the last, smaller batch of an epoch, which ranks could not share equally.

    Args:
        data_dir: Folder that contains the data set in torchvision's layout, or into which it is downloaded.
        batch_size: Images in a batch, on each device.
        val_size: Number of training images held out for validation. With 0 all images are used for training, and
            validation uses the test images, as the paper's curves do.
        augment: Crop at random after padding by 4, and flip from left to right with probability 1/2, in training. None
            augments as the paper does: CIFAR-10 and CIFAR-100 only.
        split_seed: Seed of the random choice of held-out images.
        download: Download files that are not in the folder.
        workers: Number of processes of a torch DataLoader that prepare the same batches from images on the host, for
            devices with little memory. 0 keeps them on the device.
        sequence: None for images; ``rows`` or ``pixels`` for sequences ``(batch, height, width * channels)`` or
            ``(batch, height * width, channels)``, which :class:`lcw_lightning.RecurrentClassifier` reads.
        permuted: Whether sequences are read after one fixed permutation of the pixels.

    Raises:
        RuntimeError: In ``prepare_data`` and ``setup``, if the folder does not contain the complete data set and it
            could not be downloaded.
        ValueError: Unknown name of a sequence, or a permutation without one; in ``setup``, if ``val_size`` is negative
            or leaves no image for training.
    """

    name: str  # the name of torchvision's class
    num_classes: int
    augmented_in_paper: bool

    def __init__(
        self,
        data_dir: str | Path = "data",
        batch_size: int = 128,
        val_size: int = 0,
        augment: bool | None = None,
        split_seed: int = 0,
        download: bool = True,
        workers: int = 0,
        sequence: SequenceOf | None = None,
        permuted: bool = False,
    ) -> None:
        super().__init__(batch_size, workers)
        self.data_dir = Path(data_dir).expanduser()
        self.val_size = val_size
        self.augment = self.augmented_in_paper if augment is None else augment
        self.split_seed = split_seed
        self.download = download
        self.read = Reader(sequence, permuted)

    @override
    def prepare_data(self) -> None:
        prepare(self.name, self.data_dir, self.download)

    @override
    def setup(self, stage: str) -> None:
        if hasattr(self, "train_dataset"):  # Lightning calls setup for each stage
            return
        images, labels = read(self.name, self.data_dir, train=True)
        test_dataset = TensorDataset(*read(self.name, self.data_dir, train=False))
        if not 0 <= self.val_size < len(images):
            raise ValueError(f"val_size must be at least 0 and below the {len(images)} images, got {self.val_size}.")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.split_seed))
        held_out, kept = order[: self.val_size], order[self.val_size :].sort().values
        self.test_dataset = test_dataset
        self.val_dataset = TensorDataset(images[held_out], labels[held_out]) if self.val_size else test_dataset
        self.train_dataset = TensorDataset(images[kept], labels[kept])
        mean, std = channel_mean_and_std(images[kept])
        self.train_transform = ImageTransform(mean, std, self.augment, self.read)
        self.test_transform = ImageTransform(mean, std, False, self.read)


class MNIST(VisionData):
    """60,000 handwritten digits to train and 10,000 to test, 28 x 28 grey pixels; see VisionData for the arguments."""

    name = "MNIST"
    num_classes = 10
    image_shape = (1, 28, 28)
    augmented_in_paper = False


class FashionMNIST(VisionData):
    """60,000 pictures of clothes to train and 10,000 to test, 28 x 28 grey pixels; arguments as for MNIST."""

    name = "FashionMNIST"
    num_classes = 10
    image_shape = (1, 28, 28)
    augmented_in_paper = False


class CIFAR10(VisionData):
    """50,000 photos to train and 10,000 to test in ten classes, 32 x 32 pixels in colour; arguments as for MNIST."""

    name = "CIFAR10"
    num_classes = 10
    image_shape = (3, 32, 32)
    augmented_in_paper = True


class CIFAR100(VisionData):
    """50,000 photos to train and 10,000 to test in 100 classes, 32 x 32 pixels in colour; arguments as for MNIST."""

    name = "CIFAR100"
    num_classes = 100
    image_shape = (3, 32, 32)
    augmented_in_paper = True
