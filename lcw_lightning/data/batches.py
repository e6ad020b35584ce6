"""Batches of data that fits into memory, in an order that can be repeated and resumed."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

__all__ = ["BatchLoader", "EpochSampler", "Transform"]


class Transform(Protocol):
    """A transform of the first tensor's batches, with random numbers for each sample's place in the epoch."""

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Return random numbers for a whole epoch, one row per sample."""

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the transformed batch."""


class EpochSampler:
    """The permutation of an epoch and the generator after it, both determined by (seed, epoch) alone."""

    def __init__(self, samples: int, shuffle: bool, seed: int) -> None:
        self.samples = samples
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that is iterated next."""
        self.epoch = epoch

    def draw(self) -> tuple[Tensor, torch.Generator]:
        """Return the indices of all samples in this epoch's order, and the generator that permuted them."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)  # the order of torch's DistributedSampler
        if self.shuffle:
            return torch.randperm(self.samples, generator=generator), generator
        return torch.arange(self.samples), generator


class BatchLoader:
    """Iterate over batches of tensors in memory, on the tensors' device.

    The order of an epoch, and the random numbers of the transform, follow from (seed, epoch) and each sample's place in
    the epoch. Samples are dealt to the ranks in turn, so the ranks' batches together equal the batches of one process
    with the total batch size. All ranks get equally many samples; unless ``drop_last``, a few samples may be repeated
    for this.

    Lightning calls ``sampler.set_epoch`` before each epoch, and puts ``state_dict`` into its checkpoints: a run resumed
    in the middle of an epoch gets the batches that an uninterrupted run would have got. The number of ranks may change
    in between, as long as the total batch size stays the same.

    Args:
        dataset: Tensors with equal first dimensions, such as images and labels.
        batch_size: Samples in a batch; the last one of an epoch may be smaller, unless ``drop_last``.
        shuffle: Permute anew each epoch.
        seed: Seed of the permutations and the transform.
        num_replicas: Number of ranks.
        rank: This process's number.
        drop_last: Leave out the last batch of an epoch where the ranks cannot fill theirs.
        transform: Transform of the first tensor's part of a batch.
        workers: Number of processes that prepare batches ahead, as torch's DataLoader does.

    Raises:
        ValueError: The batch size is below 1; or, while iterating, the run resumes in the middle of an epoch of another
            length.

    Example:
        >>> loader = BatchLoader(TensorDataset(torch.arange(5)), batch_size=2)
        >>> [batch.tolist() for (batch,) in loader]
        [[0, 1], [2, 3], [4]]
    """

    batch_sampler = None  # Lightning reads it from any loader with a sampler

    def __init__(
        self,
        dataset: TensorDataset,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        transform: Transform | None = None,
        workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.batch_size = batch_size
        self.num_replicas = num_replicas
        self.rank = rank
        self.drop_last = drop_last
        self.transform = transform
        self.workers = workers
        self.sampler = EpochSampler(len(dataset), shuffle, seed)
        # Not named dataset: Lightning would rebuild a loader that has one as a DataLoader.
        self._tensors = dataset.tensors
        self._reached = {"epoch": 0, "batches": 0, "batches_per_epoch": len(self)}
        self._resume: dict[str, int] | None = None

    def __len__(self) -> int:
        if self.drop_last:
            return self.sampler.samples // (self.batch_size * self.num_replicas)
        return math.ceil(self._samples_per_rank() / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rest = range(self._first_batch(), len(self))
        epoch = self.sampler.epoch
        # The generator seeds the workers, which draw nothing. Without it torch would draw from the global generator.
        seeds = torch.Generator()
        batches: DataLoader[tuple[Tensor, ...]] = DataLoader(
            self._batches(), batch_size=None, sampler=rest, num_workers=self.workers, collate_fn=tuple, generator=seeds
        )
        for index, batch in zip(rest, batches, strict=True):
            self._reached = {"epoch": epoch, "batches": index + 1, "batches_per_epoch": len(self)}
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were yielded."""
        return dict(self._reached)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start the next iteration, if it is of the same epoch, after the batches that were yielded."""
        self._reached = self._resume = dict(state_dict)

    def _first_batch(self) -> int:
        state, self._resume = self._resume, None
        if state is None or state["epoch"] != self.sampler.epoch:
            return 0
        if state["batches_per_epoch"] != len(self):
            raise ValueError(
                f"The checkpoint was saved in the middle of an epoch of {state['batches_per_epoch']} batches, but this "
                f"run's epochs have {len(self)}: keep batch size times devices as it was, or resume from the end of an "
                "epoch."
            )
        return state["batches"]

    def _samples_per_rank(self) -> int:
        return math.ceil(self.sampler.samples / self.num_replicas)

    def _batches(self) -> "_Batches":
        order, generator = self.sampler.draw()
        places = torch.arange(self._samples_per_rank()) * self.num_replicas + self.rank
        places %= self.sampler.samples  # the last places repeat the first samples
        draws = None if self.transform is None else self.transform.draw(self.sampler.samples, generator)[places]
        return _Batches(self._tensors, self.batch_size, order[places], self.transform, draws)


class _Batches(Dataset[tuple[Tensor, ...]]):
    """All batches of one rank in one epoch, indexed by number."""

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        batch_size: int,
        order: Tensor,
        transform: Transform | None,
        draws: Tensor | None,
    ) -> None:
        device = tensors[0].device
        self.tensors = tensors
        self.batch_size = batch_size
        self.order = order.to(device)
        self.transform = transform
        self.draws = None if draws is None else draws.to(device)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        # index_select copies whole images; indexing by a tensor copies single numbers, which is twenty times slower.
        first, *others = (tensor.index_select(0, self.order[part]) for tensor in self.tensors)
        if self.transform is not None and self.draws is not None:
            first = self.transform(first, self.draws[part])
        return first, *others
