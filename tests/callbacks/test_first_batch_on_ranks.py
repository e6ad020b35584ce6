"""The first training batch on several ranks: they initialize alike, or all end in the same error and change nothing."""

import os
import warnings
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, EdgeOfChaosInitCallback, MinibatchInitCallback, minibatch_init_
from lcw_lightning.callbacks import first_batch
from lcw_lightning.initialization.ranks import alone

CALLBACKS = {"minibatch": MinibatchInitCallback, "edge-of-chaos": EdgeOfChaosInitCallback}
ADVICE = {"minibatch": "minibatch_init_", "edge-of-chaos": "edge_of_chaos_init_"}


class Project(LightningModule):
    """Takes, in order, the layers that it is told to; no layers: skips the batch."""

    def __init__(self, path, by_hand=False):
        super().__init__()
        torch.manual_seed(0)
        self.path, self.automatic_optimization = path, not by_hand
        self.first, self.left, self.right = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.last, self.relu = nn.Linear(24, 4), nn.ReLU()

    def forward(self, x):
        for name in self.path:
            x = self.relu(getattr(self, name)(x))
        return x

    def training_step(self, batch, batch_idx):
        if not self.path:
            return None
        loss = self(batch[0]).square().mean()
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        self.optimizers().step()
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit_on_rank(rank, callback, paths, by_hand=False, before_fit=False, compares=True, others=()):
    """Return what a rank raised, and its weights before and after one step."""
    warnings.simplefilter("ignore")
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    if not compares:
        first_batch.in_step = lambda by_hand: nullcontext(alone)
    module = Project(paths[rank], by_hand)
    torch.manual_seed(rank)
    inputs = torch.randn(32, 12, generator=torch.Generator().manual_seed(1))
    if before_fit:  # on weights that differ between ranks
        module.left.reset_parameters()
        module.path = WHOLE
        minibatch_init_(module, inputs)
        module.path = paths[rank]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu", devices=len(paths), strategy=DDPStrategy(find_unused_parameters=True), max_steps=1,
        callbacks=[*([CALLBACKS[callback]()] if callback else []), *others], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    message = None
    try:
        trainer.fit(module, DataLoader(TensorDataset(inputs), 8))
    except RuntimeError as error:
        message = str(error)
    return {"message": message, "before": before, "after": module.state_dict()}


def equal(state, other):
    return all(torch.equal(state[name], tensor) for name, tensor in other.items())


WHOLE = ("first", "left", "right", "last")
LEFT, RIGHT = ("first", "left", "last"), ("first", "right", "last")
DIFFERENT = {
    "branches by rank": ([LEFT, RIGHT], "at 'left.weight' (rank 0), at 'right.weight' (rank 1)"),
    "one rank skips a layer": ([WHOLE, WHOLE, LEFT], "at 'right.weight' (ranks 0, 1), at 'last.weight' (rank 2)"),
    "one rank ends early": (
        [WHOLE, WHOLE[:3]],
        "at 'last.weight' (rank 0), at the end of the forward pass (rank 1)",
    ),
}


@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "by hand"])
@pytest.mark.parametrize("case", DIFFERENT)
def test_ranks_that_take_different_layers_end_in_one_error_and_keep_their_weights(case, by_hand, on_ranks):
    paths, places = DIFFERENT[case]
    for rank in on_ranks(len(paths), fit_on_rank, "minibatch", paths, by_hand):
        assert places in rank["message"]
        assert f"{ADVICE['minibatch']}(module, inputs) before fit and leave the callback out" in rank["message"]
        assert equal(rank["after"], rank["before"])


@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_rank_that_skips_the_batch_ends_in_the_same_error(callback, on_ranks):
    ranks = on_ranks(2, fit_on_rank, callback, [(), WHOLE], True)  # Lightning itself refuses it unless stepped by hand
    for rank in ranks:
        assert "at the end of the batch (rank 0), at 'first.weight' (rank 1)" in rank["message"]
        assert f"{ADVICE[callback]}(module, inputs) before fit and leave the callback out" in rank["message"]
        assert equal(rank["after"], rank["before"])


def test_a_rank_that_skips_the_batch_keeps_its_weights_beside_other_callbacks(on_ranks):
    others = [ConstraintCallback("lcw")]  # which lets go of what it keeps when the batch ends
    ranks = on_ranks(2, fit_on_rank, "edge-of-chaos", [(), WHOLE], True, False, True, others)
    for rank in ranks:
        assert "at the end of the batch (rank 0), at 'first.weight' (rank 1)" in rank["message"]
        assert rank["after"].keys() == rank["before"].keys()
        assert equal(rank["after"], rank["before"])


@pytest.mark.parametrize("callback", CALLBACKS)
def test_ranks_that_take_the_same_layers_end_equal(callback, on_ranks):
    first, second, third = on_ranks(3, fit_on_rank, callback, [WHOLE] * 3)
    assert first["message"] is None
    assert not equal(first["after"], first["before"])
    assert equal(first["after"], second["after"])
    assert equal(first["after"], third["after"])


def test_the_way_out_trains_branches_by_rank(on_ranks):
    first, second = on_ranks(2, fit_on_rank, None, [LEFT, RIGHT], False, True)
    assert first["message"] is None
    assert equal(first["after"], second["after"])


def test_control_without_the_comparison_branches_by_rank_end_with_different_weights(on_ranks):
    first, second = on_ranks(2, fit_on_rank, "minibatch", [LEFT, RIGHT], False, False, False)
    assert first["message"] is None
    assert not equal(first["after"], second["after"])
