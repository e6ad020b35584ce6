"""Read a checkpoint file without running code that it holds."""

import os
import re
import zipfile
from typing import IO, Any

import fsspec
import torch

__all__ = ["check_crcs", "read_checkpoint"]


def check_crcs(file: IO[bytes], path: str) -> None:
    """Raise if a zip file, as torch writes it, holds bytes other than those that were written; torch does not look.

    Raises:
        ValueError: The check sum of a record differs, or the archive is broken.
    """
    if zipfile.is_zipfile(file):
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except Exception as error:  # zipfile may raise anything on other bytes
            damaged = str(error)
        if damaged is not None:
            raise ValueError(
                f"{path!r} is damaged: the check sum (CRC) of its record {damaged!r} differs. Take another checkpoint. "
                "(A file that torch.serialization.set_crc32_options(False) wrote has no check sums: load it with torch "
                "and save it again with the option on.)"
            )
    file.seek(0)


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
        check_crcs(file, path)
        try:
            checkpoint: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=weights_only)
            whole = isinstance(checkpoint.get("state_dict"), dict) and "pytorch-lightning_version" in checkpoint
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
