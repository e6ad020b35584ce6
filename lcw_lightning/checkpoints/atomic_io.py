"""Write checkpoint files atomically: a file is complete or does not exist."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from typing_extensions import override

from lcw_lightning.files import written_atomically

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write Lightning's checkpoint files atomically, even if the process is killed or the power fails.

    Lightning's own plugin writes into the system's temporary folder and moves the file. Across file systems such a move
    is a copy, which a kill can interrupt. Lightning's own plugin still writes paths with ``://``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with written_atomically(path) as temporary:
            torch.save(checkpoint, temporary)
