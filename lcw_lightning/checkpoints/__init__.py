"""Checkpoints: constrained and plain ones load into each other, whole or not at all, and leave as plain files.

May constrain a network as a record says. It knows of LightningModule, and nothing of callbacks or the command line.
"""

from lcw_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from lcw_lightning.checkpoints.export import export
from lcw_lightning.checkpoints.load import load_from_checkpoint
from lcw_lightning.checkpoints.read import read_checkpoint

__all__ = ["AtomicCheckpointIO", "export", "load_from_checkpoint", "read_checkpoint"]
