"""Processes that compute together, as fixtures."""

from datetime import timedelta
from functools import partial

import pytest
import torch
from torch import distributed, multiprocessing


def call_on_rank(rank, world_size, function, arguments, folder):
    size = {"rank": rank, "world_size": world_size}
    distributed.init_process_group("gloo", f"file://{folder}/store", timedelta(minutes=1), **size)
    torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="session")
def on_ranks(forkserver, tmp_path_factory):
    """Return a function that calls ``function(rank, *arguments)`` in each process of a group: what each returned.

    A process finds the function by its name, so it must be one of a module.
    """

    def call(world_size, function, *arguments):
        folder = tmp_path_factory.mktemp("ranks")
        method, given = forkserver.get_start_method(), (world_size, function, arguments, folder)
        multiprocessing.start_processes(call_on_rank, given, nprocs=world_size, start_method=method)
        return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]

    return call


@pytest.fixture(scope="session")
def on_two_ranks(on_ranks):
    """Return ``on_ranks`` for two processes."""
    return partial(on_ranks, 2)
