"""Files that are whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_atomically"]


@contextmanager
def written_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to, beside ``path``, and put that file in place once the block ends without an error.

    Readers see the old file or the whole new one, whenever the process is killed or the power fails. After an error
    nothing is left and the old file is as it was. Folders are made as needed.

    Args:
        path: Where the file will be.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_atomically(Path(folder) / "new" / "numbers.txt") as temporary:
        ...         _ = temporary.write_text("1 2 3")
        ...     (Path(folder) / "new" / "numbers.txt").read_text()
        '1 2 3'
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so on the same file system: only there a rename is atomic.
    with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent, ignore_cleanup_errors=True) as folder:
        temporary = Path(folder) / final.name  # the suffix tells some writers the format
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(final)
