"""The factor by which a training step multiplies the gradients of its loss."""

from lightning.pytorch import LightningModule, Trainer

__all__ = ["gradient_scale"]


def gradient_scale(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return the factor on dL/dz in a rank's backward pass, where L is the mean loss over the batches of all ranks."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    loss_scale = float(scaler.get_scale()) if scaler is not None else 1.0
    accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
    return loss_scale * trainer.world_size / accumulated
