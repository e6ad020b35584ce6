"""A loss that is not finite on one rank ends all ranks alike."""

import os
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import LossWatch
from lcw_lightning.callbacks import loss_watch
from lcw_lightning.callbacks.later import later


class Project(LightningModule):
    """Has a loss that is NaN in one step on one rank; stepped by hand, the rank may skip a batch before."""

    def __init__(self, by_hand, spoiled_rank, spoiled_step):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = not by_hand
        self.spoiled = spoiled_rank, spoiled_step
        self.layer = nn.Linear(12, 4)

    def training_step(self, batch, batch_idx):
        rank, step = self.spoiled
        factor = torch.nan if self.global_rank == rank and batch_idx == step else 1.0
        loss = (self.layer(batch[0]) * factor).square().mean()
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        self.optimizers().step()
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit_on_rank(rank, if_not_finite, by_hand=False, spoiled_rank=1, spoiled_step=2, num_batches=6):
    """Return what a rank raised, in which step, what it warned of, and whether its weights are finite."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    module = Project(by_hand, spoiled_rank, spoiled_step)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        callbacks=[LossWatch(if_not_finite)] if if_not_finite else [], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    message = None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            trainer.fit(module, DataLoader(TensorDataset(torch.randn(16 * num_batches, 12)), 8))
        except FloatingPointError as error:
            message = str(error)
    warned = sum("not finite" in str(warning.message) for warning in said)
    finite = all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    return {"message": message, "step": trainer.global_step, "warned": warned, "finite": finite}


@pytest.mark.parametrize("spoiled_rank", [0, 1])
@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "by hand"])
def test_all_ranks_end_in_the_same_error_in_the_same_step(by_hand, spoiled_rank, on_two_ranks):
    first, second = on_two_ranks(fit_on_rank, "stop", by_hand, spoiled_rank)
    assert "step 2 (batch 2 of epoch 0)" in first["message"]
    assert first == second
    assert first["step"] == 4


def test_all_ranks_end_after_the_last_batch(on_two_ranks):
    first, second = on_two_ranks(fit_on_rank, "stop", False, 1, 5)
    assert "step 5 (batch 5 of epoch 0)" in first["message"]
    assert first == second


def test_told_to_warn_all_ranks_train_on_and_one_warns_once(on_two_ranks):
    first, second = on_two_ranks(fit_on_rank, "warn")
    assert (first["message"], first["step"], first["warned"], first["finite"]) == (None, 6, 1, False)
    assert second == first | {"warned": 0}


def test_healthy_ranks_say_nothing(on_two_ranks):
    first, second = on_two_ranks(fit_on_rank, "stop", False, None)
    assert first == second == {"message": None, "step": 6, "warned": 0, "finite": True}


def test_control_without_the_watch_all_ranks_end_with_nan_weights(on_two_ranks):
    first, second = on_two_ranks(fit_on_rank, None)
    assert first == second == {"message": None, "step": 6, "warned": 0, "finite": False}


def alone(number, over_ranks=False):
    return later(number)


def looked_at_alone(rank):
    """Return what a rank's watch says first where ranks are not summed up, without an end of the run."""
    loss_watch.later = alone
    places = []
    LossWatch._say = lambda watch, trainer, problem, place: places.append(place.step)
    fit_on_rank(rank, "warn")
    return places[0]


def test_control_ranks_that_look_alone_would_end_in_different_steps(on_two_ranks):
    assert on_two_ranks(looked_at_alone) == [3, 2]


def read_late(rank):
    """Return two sums that are read in the other order on the other rank."""
    reads = [later(torch.tensor(float(rank + number)), over_ranks=True) for number in (1, 10)]
    first = reads[rank]()
    return [first, reads[1 - rank]()][:: 1 - 2 * rank]


def test_sums_over_ranks_can_be_read_in_any_order(on_two_ranks):
    assert on_two_ranks(read_late) == [[3.0, 21.0], [3.0, 21.0]]
