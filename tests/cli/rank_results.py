"""``lcw`` with a callback that keeps what each rank computes: ``python rank_results.py fit ...``."""

import copy

import torch
from lightning.pytorch import Callback

from lcw_lightning.cli import main


class RankResults(Callback):
    """Write this rank's loss of each step, its initial and its final weights into ``<folder>/rank<rank>.pt``.

    Name it ``rank_results.RankResults`` on the command line, in place of which this file runs.
    """

    def __init__(self, folder):
        self.folder = folder
        self.losses = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:  # the first forward pass has initialized the weights
            self.initial = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach())

    def on_train_end(self, trainer, pl_module):
        results = {"losses": torch.stack(self.losses), "initial": self.initial, "final": pl_module.state_dict()}
        torch.save(results, f"{self.folder}/rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
