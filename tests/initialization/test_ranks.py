"""Ranks that take different layers on the minibatch end in the same error, with the weights as they were."""

import time
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from lcw_lightning import edge_of_chaos_init_, minibatch_init_
from lcw_lightning.initialization import edge_of_chaos, minibatch
from lcw_lightning.initialization.ranks import alone

INITIALIZE = {"minibatch": minibatch_init_, "edge-of-chaos": edge_of_chaos_init_}


class Branches(nn.Module):
    """Takes, in order, the layers that it is told to."""

    def __init__(self, path):
        super().__init__()
        torch.manual_seed(0)
        self.path = path
        self.first, self.left, self.right = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.last = nn.Linear(24, 4)

    def forward(self, x):
        for name in self.path:
            x = getattr(self, name)(x).relu()
        return x


class StochasticDepth(nn.Module):
    """Skips each residual block with probability 1/2, by the random numbers of its rank."""

    def __init__(self, rank):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(12, 12) for _ in range(8))
        self.coins = torch.Generator().manual_seed(rank)

    def forward(self, x):
        for block in self.blocks:
            if torch.rand((), generator=self.coins) < 0.5:
                x = x + block(x).relu()
        return x


def inputs_of(rank):
    return torch.randn(32, 12, generator=torch.Generator().manual_seed(rank)) * (1 + rank)


def initialize_on_rank(rank, initialize, network, *given, compares=True):
    """Return what a rank raised, and its weights before and after."""
    if not compares:
        minibatch.in_step = edge_of_chaos.in_step = lambda by_hand: nullcontext(alone)
    model = network(given[rank])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = None
    settings = {"activation": torch.relu} if initialize == "edge-of-chaos" else {}
    try:
        INITIALIZE[initialize](model, inputs_of(rank), **settings)
    except RuntimeError as error:
        message = str(error)
    return {"message": message, "before": before, "after": model.state_dict()}


def initialize_uncompared(rank, *given):
    return initialize_on_rank(rank, *given, compares=False)


def equal(state, other):
    return all(torch.equal(state[name], tensor) for name, tensor in other.items())


WHOLE = ("first", "left", "right", "last")
PATHS = {
    "branches by rank": (
        [("first", "left", "last"), ("first", "right", "last")],
        "at 'left.weight' (rank 0), at 'right.weight' (rank 1)",
    ),
    "one rank skips a layer": (
        [WHOLE, ("first", "left", "last"), WHOLE],
        "at 'right.weight' (ranks 0, 2), at 'last.weight' (rank 1)",
    ),
    "one rank ends early": (
        [WHOLE, WHOLE[:3], WHOLE[:3]],
        "at 'last.weight' (rank 0), at the end of the forward pass (ranks 1, 2)",
    ),
    "another order": (
        [WHOLE, ("first", "right", "left", "last")],
        "at 'left.weight' (rank 0), at 'right.weight' (rank 1)",
    ),
}


@pytest.mark.parametrize("case", PATHS)
def test_ranks_that_take_different_layers_end_in_one_error_and_keep_their_weights(case, on_ranks):
    paths, places = PATHS[case]
    ranks = on_ranks(len(paths), initialize_on_rank, "minibatch", Branches, *paths)
    for rank in ranks:
        assert places in rank["message"]
        assert "minibatch_init_(module, inputs) before fit" in rank["message"]
        assert equal(rank["after"], rank["before"])


def test_stochastic_depth_by_rank_ends_in_one_error(on_ranks):
    ranks = on_ranks(3, initialize_on_rank, "minibatch", StochasticDepth, 0, 1, 2)
    assert ranks[0]["message"].count("(rank") > 1
    assert len({rank["message"] for rank in ranks}) == 1
    assert all(equal(rank["after"], rank["before"]) for rank in ranks)


def test_layers_in_the_same_order_on_all_ranks_are_rescaled_alike(on_ranks):
    first, second, third = on_ranks(3, initialize_on_rank, "minibatch", Branches, WHOLE, WHOLE, WHOLE)
    assert first["message"] is None
    assert equal(first["after"], second["after"])
    assert equal(first["after"], third["after"])
    assert not equal(first["after"], first["before"])


def test_at_the_edge_of_chaos_the_first_layer_must_be_the_same(on_ranks):
    ranks = on_ranks(2, initialize_on_rank, "edge-of-chaos", StochasticDepth, 0, 1)
    assert len({rank["message"] for rank in ranks}) == 1
    assert "edge_of_chaos_init_(module, inputs) before fit" in ranks[0]["message"]
    assert all(equal(rank["after"], rank["before"]) for rank in ranks)


def test_at_the_edge_of_chaos_later_layers_may_differ(on_ranks):
    first, second = on_ranks(2, initialize_on_rank, "edge-of-chaos", Branches, *PATHS["branches by rank"][0])
    assert first["message"] is None
    assert equal(first["after"], second["after"])


def test_control_without_the_comparison_a_layer_gets_the_statistics_of_another(on_ranks):
    first, second = on_ranks(2, initialize_uncompared, "minibatch", Branches, *PATHS["branches by rank"][0])
    assert first["message"] is None
    assert not equal(first["after"], second["after"])


def test_control_without_the_comparison_a_skipped_layer_ends_the_processes(on_ranks):
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):  # gloo aborts: sizes of tensors differ
        on_ranks(2, initialize_uncompared, "minibatch", Branches, WHOLE, ("first", "left", "last"))


def fail_on_rank(rank):
    """Let the forward pass of rank 1 fail; it goes on, so that the end of its process frees nobody."""
    model = Branches(WHOLE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if rank == 1:
        model.right.register_forward_pre_hook(lambda *_: {}["mine"])
    with pytest.raises(KeyError if rank == 1 else RuntimeError) as failure:
        minibatch_init_(model, inputs_of(rank))
    if rank == 1:
        time.sleep(2)
    return {"message": str(failure.value), "before": before, "after": model.state_dict()}


def test_an_error_of_one_rank_alone_frees_the_others_and_weights_are_kept(on_ranks):
    ranks = on_ranks(3, fail_on_rank)
    assert ranks[1]["message"] == "'mine'"
    assert all(equal(rank["after"], rank["before"]) for rank in ranks)
