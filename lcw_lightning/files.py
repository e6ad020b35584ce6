"""Write files atomically: a file is complete or does not exist."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_atomically"]


@contextmanager
def written_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to, beside ``path``, and put that file in place once the block ends without an error.

    Readers see the old file or the complete new one, even if the process is killed or the power fails. After an error
    the old file is unchanged and no temporary file is left. Missing folders are made.

    Args:
        path: The file to write.

    Raises:
        OSError: No space is left, or the folder cannot be written to.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_atomically(Path(folder) / "new" / "numbers.txt") as temporary:
        ...         _ = temporary.write_text("1 2 3")
        ...     (Path(folder) / "new" / "numbers.txt").read_text()
        '1 2 3'
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent, ignore_cleanup_errors=True) as folder:
        temporary = Path(folder) / final.name  # some writers choose the format by the suffix
        try:
            yield temporary
            with temporary.open("r+b") as written:
                os.fsync(written.fileno())
            temporary.replace(final)
        except (OSError, RuntimeError) as error:
            if not _is_lack_of_space(error):
                raise
            free = shutil.disk_usage(folder).free / 1e6
            raise OSError(
                errno.ENOSPC,
                f"no space is left for {str(final)!r} on its disk or in its quota ({free:.0f} MB are free, with what "
                "was written of it); free some, or write elsewhere",
            ) from error


def _is_lack_of_space(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(words in str(error) for words in ("iostream error", "inline_container"))  # torch.save's
