"""Read a checkpoint file without running code that it holds."""

import os
import re
from typing import Any

import fsspec
import torch

__all__ = ["read_checkpoint"]


def read_checkpoint(
    path: str | os.PathLike[str], map_location: Any = None, weights_only: bool = True
) -> dict[str, Any]:
    """Return the content of a Lightning checkpoint.

    Args:
        path: A local path or a URL.
        map_location: The device of the tensors, as in :func:`torch.load`.
        weights_only: If False, the whole file is unpickled, which may run code that it contains.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a complete and safe checkpoint, or the checkpoint is sharded.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise ValueError(
            f"{path!r} is a folder: a sharded checkpoint, which only its own strategy can read. Resume it there "
            "with save_distributed_checkpoint=False, which writes one file."
        )
    if "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint {path!r}; runs keep theirs in <log folder>/checkpoints.")
    with fsspec.open(path, "rb") as file:
        try:
            checkpoint: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=weights_only)
            whole = "state_dict" in checkpoint and "pytorch-lightning_version" in checkpoint
        except Exception as error:  # torch.load may raise anything on other bytes
            if named := re.search(r"GLOBAL (\S+)", str(error)):
                raise ValueError(
                    f"{path!r} holds {named[1]}, which is more than tensors and plain values and may run code, so it "
                    "was not loaded. If you trust the file, load it with weights_only=False."
                ) from error
            whole = False
    if not whole:
        raise ValueError(
            f"{path!r} is no checkpoint of Lightning that can be read: it is truncated or another kind of file. Take "
            "another checkpoint of the run."
        )
    return checkpoint
