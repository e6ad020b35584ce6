"""The path of AtomicCheckpointIO in version 0.1, kept for scripts and configs; now ``lcw_lightning.checkpoints``."""

from lcw_lightning.checkpoints.atomic_io import AtomicCheckpointIO

__all__ = ["AtomicCheckpointIO"]
