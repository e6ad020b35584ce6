"""The number of the present training step, as logs and messages name it."""

from lightning.pytorch import LightningModule, Trainer

__all__ = ["step_number"]


def step_number(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the number of optimizer steps before this one, or of batches where Lightning sees no optimizer."""
    # The global step stands still in runs whose optimizers Lightning does not see.
    is_counted = trainer.global_step > 0 or pl_module.automatic_optimization
    return trainer.global_step if is_counted else trainer.fit_loop.total_batch_idx
