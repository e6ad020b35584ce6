"""Checkpoints: load constrained and plain ones into each other, all or nothing, and export plain files.

Loading may constrain a network as the record in a checkpoint says. These modules use LightningModule, but no callbacks
and no command line.
"""

from lcw_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from lcw_lightning.checkpoints.export import export
from lcw_lightning.checkpoints.load import load_from_checkpoint
from lcw_lightning.checkpoints.read import read_checkpoint

__all__ = ["AtomicCheckpointIO", "export", "load_from_checkpoint", "read_checkpoint"]
