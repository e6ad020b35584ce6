from itertools import chain

import torch
from torch.utils.data import TensorDataset

from lcw_lightning.data.batches import BatchLoader

DATASET = TensorDataset(torch.arange(10), torch.arange(10) ** 2)


def epoch_of(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [batch[0].tolist() for batch in loader]


def test_all_samples_come_once_in_order():
    loader = BatchLoader(DATASET, batch_size=4)
    assert epoch_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3


def test_the_last_batch_is_dropped_on_request_where_it_is_smaller():
    loader = BatchLoader(DATASET, batch_size=4, drop_last=True)
    assert epoch_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(loader) == 2
    assert len(BatchLoader(DATASET, batch_size=5, drop_last=True)) == 2


def test_tensors_stay_in_step():
    for numbers, squares in BatchLoader(DATASET, batch_size=4, shuffle=True):
        assert torch.equal(numbers**2, squares)


def test_the_order_follows_from_seed_and_epoch():
    one, same, other = (BatchLoader(DATASET, batch_size=4, shuffle=True, seed=seed) for seed in (1, 1, 2))
    assert epoch_of(one, 3) == epoch_of(same, 3)
    assert epoch_of(one, 3) != epoch_of(one, 4)
    assert epoch_of(one, 3) != epoch_of(other, 3)
    assert sorted(chain(*epoch_of(one, 3))) == list(range(10))


def test_the_global_random_state_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    epoch_of(BatchLoader(DATASET, batch_size=4, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_share_an_epoch_without_overlap():
    loaders = [BatchLoader(DATASET, 2, shuffle=True, seed=1, num_replicas=2, rank=rank) for rank in (0, 1)]
    parts = [list(chain(*epoch_of(loader, 5))) for loader in loaders]
    assert sorted(parts[0] + parts[1]) == list(range(10))
