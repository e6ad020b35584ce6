import torch
from torch import multiprocessing

from lcw_lightning import MLP, constrain, minibatch_init_


def _initialize_on_rank(rank, store, inputs, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = MLP(12, 5, depth=3, width=8)
    constrain(network)
    minibatch_init_(network, inputs[rank])
    torch.save(network.state_dict(), f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_act_on_the_union_of_their_batches_and_end_bit_equal(tmp_path):
    inputs = torch.randn(2, 40, 12) * torch.tensor([1.0, 5.0]).view(2, 1, 1)
    multiprocessing.spawn(_initialize_on_rank, (tmp_path / "store", inputs, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)

    torch.manual_seed(0)
    network = MLP(12, 5, depth=3, width=8)
    constrain(network)
    minibatch_init_(network, inputs.flatten(0, 1))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(first[key], value)
