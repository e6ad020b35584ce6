"""scikit-learn's handwritten digits: real images that need no download."""

import torch
from torch.utils.data import TensorDataset
from typing_extensions import override

from lcw_lightning.data.in_memory import InMemoryData
from lcw_lightning.data.sequences import Reader, SequenceOf

__all__ = ["Digits"]


class Digits(InMemoryData):
    """1,797 images of 8 x 8 pixels in ten classes (UCI, Alpaydin and Kaynak), 1,437 to train and 360 to test.

    Batches are float32 images ``(batch, 1, 8, 8)`` and labels ``(batch,)``. Each pixel's mean over the training images
    is subtracted, then all are divided by one global standard deviation: with a global mean only, the input's own
    shift would survive linearly constrained weights. Validation uses the test images, as the paper's curves do. The
    order of training batches follows from the seed of Lightning's ``seed_everything``, 0 without it. Training leaves
    out the last, smaller batch of an epoch, which ranks could not share equally; only where a rank has fewer images
    than one batch, it trains on those.

    Args:
        batch_size: Images in a batch.
        split_seed: Seed of the random division into training and test images.
        sequence: None for images; ``rows`` or ``pixels`` for sequences ``(batch, 8, 8)`` or
            ``(batch, 64, 1)``, which :class:`lcw_lightning.RecurrentClassifier` reads.
        permuted: Whether sequences are read after one fixed permutation of the pixels.

    Raises:
        ValueError: Unknown name of a sequence, or a permutation without one.
    """

    num_classes = 10
    image_shape = (1, 8, 8)

    def __init__(
        self, batch_size: int = 128, split_seed: int = 0, sequence: SequenceOf | None = None, permuted: bool = False
    ) -> None:
        super().__init__(batch_size)
        self.split_seed = split_seed
        self.read = Reader(sequence, permuted)

    @override
    def setup(self, stage: str) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415  # takes half a second, and only Digits needs it

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
        labels = torch.tensor(digits.target, dtype=torch.int64)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.split_seed))
        train, test = order[:1437], order[1437:]
        mean = images[train].mean(dim=0)
        std = (images[train] - mean).std(correction=0)
        inputs = self.read((images - mean) / std)
        self.train_dataset = TensorDataset(inputs[train], labels[train])
        self.val_dataset = self.test_dataset = TensorDataset(inputs[test], labels[test])
