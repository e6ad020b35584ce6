"""Write checkpoint files atomically: a file is complete or does not exist."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from typing_extensions import override

from lcw_lightning.checkpoints.read import check_crcs
from lcw_lightning.files import written_atomically

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write Lightning's checkpoint files atomically, even if the process is killed or the power fails.

    A file whose bytes have changed since is refused. Lightning's own plugin writes into the system's temporary folder
    and moves the file. Across file systems such a move is a copy, which a kill can interrupt. Lightning's own plugin
    still reads and writes paths with ``://``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    @override
    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if "://" not in str(path) and Path(path).is_file():
            with Path(path).open("rb") as file:
                check_crcs(file, str(path))
        return super().load_checkpoint(path, *args, **kwargs)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with written_atomically(path) as temporary:
            torch.save(checkpoint, temporary)
