"""Files that are replaced whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A path beside `path` to write to; what is there when the block ends well takes its place, and is on the disk.

    previous: where the file goes that was at `path`, if any; None: it is gone.

    Raises:
        OSError: it cannot be written. Both are as before then, as when the block raises.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # one left by a killed process may be a link to a file still in use
    try:
        yield temporary
        _sync(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        # Also after success: renaming one link of a file over another of the same file does nothing.
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
