"""Two processes that compute together, as a fixture."""

from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing


def call_on_rank(rank, function, arguments, folder):
    distributed.init_process_group("gloo", f"file://{folder}/store", timedelta(minutes=1), rank=rank, world_size=2)
    torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="session")
def on_two_ranks(forkserver, tmp_path_factory):
    """Return a function that calls ``function(rank, *arguments)`` in both processes of a group: what each returned.

    A process finds the function by its name, so it must be one of a module.
    """

    def call(function, *arguments):
        folder = tmp_path_factory.mktemp("ranks")
        method = forkserver.get_start_method()
        multiprocessing.start_processes(call_on_rank, (function, arguments, folder), nprocs=2, start_method=method)
        return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]

    return call
