"""The base class of data modules whose data fit into memory."""

import os

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import TensorDataset
from typing_extensions import override

from lcw_lightning.data.augmentation import ImageTransform
from lcw_lightning.data.batches import BatchLoader

__all__ = ["InMemoryData"]


class InMemoryData(LightningDataModule):
    """Batches of tensors that ``setup`` puts into ``train_dataset``, ``val_dataset`` and ``test_dataset``.

    The tensors are on the training device, or on the host if ``workers`` prepare the batches. The order of training
    batches follows from the seed of Lightning's ``seed_everything``, 0 without it. Training leaves out the last,
    smaller batch of an epoch, which ranks could not share equally; only where a rank has fewer images than one batch,
    it trains on those. ``Trainer(overfit_batches=...)`` sees the same batches each epoch. Prediction uses the test
    images.
    """

    image_shape: tuple[int, int, int]
    train_dataset: TensorDataset
    val_dataset: TensorDataset
    test_dataset: TensorDataset
    train_transform: ImageTransform | None = None
    test_transform: ImageTransform | None = None

    def __init__(self, batch_size: int, workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.workers = workers

    @override
    def train_dataloader(self) -> BatchLoader:
        # Lightning does not shuffle its own loaders either with overfit_batches.
        fixed = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        transform = self.test_transform if fixed else self.train_transform
        return self._loader(self.train_dataset, transform, shuffle=not fixed, train=True)

    @override
    def val_dataloader(self) -> BatchLoader:
        return self._loader(self.val_dataset, self.test_transform)

    @override
    def test_dataloader(self) -> BatchLoader:
        return self._loader(self.test_dataset, self.test_transform)

    @override
    def predict_dataloader(self) -> BatchLoader:
        return self._loader(self.test_dataset, self.test_transform)

    def _loader(
        self, dataset: TensorDataset, transform: ImageTransform | None, shuffle: bool = False, train: bool = False
    ) -> BatchLoader:
        ranks, rank, device = 1, 0, torch.device("cpu")
        if self.trainer:
            ranks, rank = self.trainer.world_size, self.trainer.global_rank
            if not self.workers:
                device = self.trainer.strategy.root_device
        return BatchLoader(
            TensorDataset(*(tensor.to(device) for tensor in dataset.tensors)),
            self.batch_size,
            shuffle,
            seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
            num_replicas=ranks,
            rank=rank,
            drop_last=train and len(dataset) >= ranks * self.batch_size,
            transform=transform and transform.to(device),
            workers=self.workers,
        )
