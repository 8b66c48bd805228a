"""Atomic replacement of files, and locks on files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Atomically replace `path`: yield a temporary file to write; fsync and rename it when the block succeeds.

    previous: path to which the former file is moved; None: the former file is replaced.

    Raises:
        OSError: the file cannot be written. Then, and when the block raises, both files are unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a file left by a killed process may be a hard link to one in use
    try:
        yield temporary
        _sync(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        # Needed after success too: renaming one hard link over another of the same file has no effect.
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileLock:
    """An exclusive lock on a file, created if missing; the OS releases the lock when the process ends.

    Raises:
        BlockingIOError: the file is locked by another process or another object.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise

    def release(self) -> None:
        """Release the lock; no effect if released."""
        self._file.close()
