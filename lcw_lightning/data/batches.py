"""Batches of data that fits into memory, in an order that can be repeated."""

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, TensorDataset

__all__ = ["BatchLoader"]


class BatchLoader:
    """Iterate over batches of tensors that lie in memory, one gather a batch.

    The order of an epoch follows from (seed, epoch), the part of it that a rank gets from its rank, so a run that is
    resumed at an epoch's start sees the batches of the unbroken run. Lightning calls ``sampler.set_epoch`` before each
    epoch. Ranks get equally many samples, for which the last ones may repeat a few.

    Args:
        dataset: Tensors with equal first dimensions, such as images and labels.
        batch_size: Samples in a batch; the last one of an epoch may be smaller, unless ``drop_last``.
        shuffle: Permute anew each epoch.
        seed: Of the permutations.
        num_replicas: Number of ranks.
        rank: This process's number.
        drop_last: Leave out the last batch of an epoch where it is smaller than the others.

    Example:
        >>> import torch
        >>> loader = BatchLoader(TensorDataset(torch.arange(5)), batch_size=2)
        >>> [batch.tolist() for (batch,) in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        dataset: TensorDataset,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        self._tensors = dataset.tensors
        self.sampler: DistributedSampler[int] = DistributedSampler(dataset, num_replicas, rank, shuffle, seed)
        self.batch_sampler = BatchSampler(self.sampler, batch_size, drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for indices in self.batch_sampler:
            yield tuple(tensor[indices] for tensor in self._tensors)

    def __len__(self) -> int:
        return len(self.batch_sampler)
