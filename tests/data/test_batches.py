from itertools import chain

import pytest
import torch
from torch.utils.data import DistributedSampler, TensorDataset

from lcw_lightning.data.augmentation import ImageTransform
from lcw_lightning.data.batches import BatchLoader

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # by workers

DATASET = TensorDataset(torch.arange(10), torch.arange(10) ** 2)
IMAGES = TensorDataset(torch.randint(256, (50, 1, 6, 6), dtype=torch.uint8), torch.arange(50))
AUGMENT = ImageTransform(torch.tensor(100.0), torch.tensor(50.0), augment=True)


def epoch_of(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [batch[0].tolist() for batch in loader]


def augmented(**kwargs):
    return BatchLoader(IMAGES, shuffle=True, transform=AUGMENT, **{"batch_size": 8, "drop_last": True, **kwargs})


def same(batches, others):
    pairs = zip(chain(*batches), chain(*others), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_all_samples_come_once_in_order():
    loader = BatchLoader(DATASET, batch_size=4)
    assert epoch_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3


def test_the_last_batch_is_dropped_on_request_where_it_is_smaller():
    loader = BatchLoader(DATASET, batch_size=4, drop_last=True)
    assert epoch_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(loader) == 2
    assert len(BatchLoader(DATASET, batch_size=5, drop_last=True)) == 2


def test_a_batch_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        BatchLoader(DATASET, batch_size=0)


def test_tensors_stay_in_step():
    for numbers, squares in BatchLoader(DATASET, batch_size=4, shuffle=True):
        assert torch.equal(numbers**2, squares)


def test_the_order_follows_from_seed_and_epoch():
    one, same, other = (BatchLoader(DATASET, batch_size=4, shuffle=True, seed=seed) for seed in (1, 1, 2))
    assert epoch_of(one, 3) == epoch_of(same, 3)
    assert epoch_of(one, 3) != epoch_of(one, 4)
    assert epoch_of(one, 3) != epoch_of(other, 3)
    assert sorted(chain(*epoch_of(one, 3))) == list(range(10))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
def test_the_order_is_that_of_torchs_distributed_sampler(shuffle, ranks):
    for rank in range(ranks):
        loader = BatchLoader(DATASET, 4, shuffle, seed=5, num_replicas=ranks, rank=rank)
        sampler = DistributedSampler(DATASET, ranks, rank, shuffle, seed=5)
        sampler.set_epoch(2)
        assert list(chain(*epoch_of(loader, 2))) == list(sampler)


def test_augmentation_follows_from_seed_and_epoch_and_belongs_to_a_place_not_to_an_image():
    loader = augmented(seed=1)
    first, again = list(loader), list(augmented(seed=1))
    assert same(first, again)
    loader.sampler.set_epoch(1)
    by_label = [{int(label): image for images, labels in epoch for image, label in zip(images, labels, strict=True)}
                for epoch in (first, list(loader))]  # fmt: skip
    shared = by_label[0].keys() & by_label[1].keys()
    assert len(shared) > 40
    assert sum(torch.equal(by_label[0][label], by_label[1][label]) for label in shared) < 5  # 2 * 81 in one
    assert not same(first, list(augmented(seed=2)))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_neither_read_nor_moved(workers):
    before = torch.get_rng_state()
    batches = list(augmented(workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert same(batches, list(augmented(workers=workers)))


def test_worker_processes_prepare_the_same_batches():
    assert same(list(augmented(workers=1)), list(augmented()))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_an_epoch_without_overlap(ranks):
    loaders = [BatchLoader(DATASET, 2, True, 1, ranks, rank) for rank in range(ranks)]
    parts = [list(chain(*epoch_of(loader, 5))) for loader in loaders]
    assert len({len(part) for part in parts}) == 1
    everything = sorted(chain(*parts))
    assert set(everything) == set(range(10))
    assert len(everything) == {1: 10, 2: 10, 4: 12}[ranks]  # the last ones repeat a few


def union(ranks, epoch):
    """Batches of all ranks together, in the order of one process."""
    loaders = [augmented(batch_size=8 // ranks, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    for loader in loaders:
        loader.sampler.set_epoch(epoch)
    for parts in zip(*loaders, strict=True):
        yield [torch.stack(tensors, dim=1).flatten(0, 1) for tensors in zip(*parts, strict=True)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_global_batches_and_their_augmentation_do_not_depend_on_the_number_of_ranks(ranks):
    assert len(list(union(1, 3))) == 6
    assert same(union(ranks, 3), union(1, 3))
    assert not same(union(ranks, 4), union(1, 3))


@pytest.mark.parametrize(("ranks", "batches"), [(1, 5), (2, 5), (4, 5)])
def test_ranks_that_repeat_a_sample_take_no_batch_more(ranks, batches):
    odd = TensorDataset(torch.arange(47))  # which two ranks could stretch to six batches of eight
    assert len(BatchLoader(odd, 8 // ranks, num_replicas=ranks, drop_last=True)) == batches


@pytest.mark.parametrize("given", [0, 1, 5, 6])
@pytest.mark.parametrize("workers", [0, 1])
def test_another_loader_goes_on_after_the_batches_that_were_given_out(workers, given):
    loader, other = augmented(workers=workers), augmented(workers=workers)
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    for _ in range(given):
        next(batches)
    other.load_state_dict(loader.state_dict())
    assert other.state_dict() == loader.state_dict()
    other.sampler.set_epoch(2)
    rest = list(batches)
    assert len(rest) == 6 - given
    assert same(other, rest)
    assert len(list(other)) == 6  # the same epoch again, from its start


def test_a_state_of_another_epoch_leaves_nothing_out():
    loader, other = augmented(), augmented()
    next(iter(loader))
    other.load_state_dict(loader.state_dict())
    other.sampler.set_epoch(1)
    assert len(list(other)) == 6


def test_making_an_iterator_takes_nothing_from_the_state():
    loader, other = augmented(), augmented()
    next(iter(loader))
    other.load_state_dict(loader.state_dict())
    iter(other)  # as Lightning does to see whether it can
    assert len(list(other)) == 5


def test_more_ranks_go_on_where_one_stopped():
    one = augmented()
    batches = iter(one)
    next(batches)
    parts = []
    for rank in range(2):
        loader = augmented(batch_size=4, num_replicas=2, rank=rank)
        loader.load_state_dict(one.state_dict())
        parts.append(torch.cat([labels for _, labels in loader]))
    assert torch.equal(torch.stack(parts, dim=1).flatten(), torch.cat([labels for _, labels in batches]))


def test_going_on_in_an_epoch_of_another_length_is_an_error():
    loader, other = augmented(), augmented(batch_size=5)
    next(iter(loader))
    other.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="in the middle of an epoch of 6 batches, but this run's epochs have 10: keep"):
        next(iter(other))


def test_lightning_finds_what_it_looks_for_and_no_dataset_to_rebuild():
    loader = augmented()
    assert loader.batch_sampler is None
    assert not hasattr(loader, "dataset")
