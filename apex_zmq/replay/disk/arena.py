"""Memory of a shard's log: anonymous, or mapped from a file that outlives the process."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from apex_zmq.errors import ConfigError
from apex_zmq.types import UInt8s

log = logging.getLogger(__name__)

PIECE = 4 << 20  # bytes per allocation on disk and per release: whole huge pages


class Arena:
    """Zeroed bytes that occupy memory, or disk space, only between being written and being released.

    Without releases, a ring would become resident as a whole, even if records fill little of it. Memory and the disk
    space of a file are allocated and released in pieces of `PIECE` bytes.

    bytes: uint8 [size]. Call `reserve` before writing to a range; it may replace this array.
    """

    def __init__(self, size: int, path: Path | None = None) -> None:
        """Map the memory.

        size: bytes.
        path: file that holds the bytes, created if missing; its contents are kept. None: anonymous memory.

        Raises:
            ConfigError: the file cannot be opened or mapped, or there is not enough memory.
        """
        self._file: int | None = None
        try:
            if path is not None:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.ftruncate(self._file, size)
                self._map(mmap.mmap(self._file, size))
            else:
                self._map(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError as error:
            remedy = "lower replay.arena_bytes" if path is None else "set another replay.snapshot_dir"
            what = f"map {size / 1e9:.1f} GB of memory" if path is None else f"use {path}"
            raise ConfigError(f"cannot {what}: {error.strerror}; {remedy}") from None
        self._reserved = np.zeros(-(-size // PIECE), bool)  # pieces with allocated disk space
        self._evicted = 0  # offset, a multiple of PIECE, up to which this round of evictions has released

    def _map(self, memory: mmap.mmap) -> None:
        self._memory = memory
        with contextlib.suppress(AttributeError, OSError):  # huge pages are not supported, or not for files
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: UInt8s = np.frombuffer(memory, np.uint8)

    @property
    def is_file(self) -> bool:
        """Whether the bytes outlive the process."""
        return self._file is not None

    def reserve(self, start: int, stop: int) -> None:
        """Allocate disk space for [start, stop): writing to a mapped file on a full disk would raise SIGBUS.

        If the disk is full, the contents move to anonymous memory, the file stays as it is, and an error is logged.
        """
        if self._file is None:
            return
        for piece in range(start // PIECE, -(-stop // PIECE)):
            if self._reserved[piece]:
                continue
            begin = piece * PIECE
            try:
                os.posix_fallocate(self._file, begin, min(PIECE, len(self.bytes) - begin))
            except OSError as error:
                log.error(
                    "%s: the replay continues in memory and is not kept; free disk space and restart",
                    error.strerror,
                )
                self._leave_file()
                return
            self._reserved[piece] = True

    def _leave_file(self) -> None:
        before = self.bytes
        self._map(mmap.mmap(-1, len(before), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        for start, stop in self.written():
            self.bytes[start:stop] = before[start:stop]
        self._file = None  # not closed: another thread may be in `sync`

    def sync(self) -> None:
        """Flush to disk all that has been written so far (fdatasync); callable from any thread.

        Raises:
            OSError: the disk cannot be written.
        """
        file = self._file
        if file is not None:
            os.fdatasync(file)

    def written(self) -> Iterator[tuple[int, int]]:
        """Yield ranges [start, stop) of whole pages, except at the end; the file holds only zeros outside of them.

        Raises:
            OSError: the file cannot be read.
        """
        assert self._file is not None
        stop, size = 0, len(self.bytes)
        while stop < size:
            try:
                start = os.lseek(self._file, stop, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data beyond
                    return
                raise
            stop = os.lseek(self._file, start, os.SEEK_HOLE)
            yield start, stop

    def clear(self) -> None:
        """Release all bytes."""
        self._release(0, len(self.bytes))

    def keep(self, tail: int, head: int) -> None:
        """Release all but the range from offset `tail` to `head`, which wraps if head <= tail."""
        self._evicted = tail // PIECE * PIECE
        if head > tail:
            self._release(0, self._evicted)
            self._release(_piece_after(head), len(self.bytes))
        else:
            self._release(_piece_after(head), self._evicted)

    def evict(self, offset: int, end: int, head: int) -> None:
        """Release the whole pieces that became unused when the record at [offset, end) was evicted from the tail.

        Released bytes are zero again.

        offset, end: range of the evicted record.
        head: offset of the end of the newest record. The stored records occupy `end` to `head`, wrapping around the end
            of the ring if head <= offset.
        """
        if offset < self._evicted:  # the tail has wrapped to the front: first release the rest of the last round
            self._release(max(self._evicted, _piece_after(head)), len(self.bytes))
            self._evicted = 0
        free_from = self._evicted if head > offset else max(self._evicted, _piece_after(head))
        self._release(free_from, end // PIECE * PIECE)
        self._evicted = end // PIECE * PIECE

    def _release(self, start: int, stop: int) -> None:
        if stop <= start:
            return
        if self._file is not None:
            self._reserved[start // PIECE : -(-stop // PIECE)] = False
            with contextlib.suppress(OSError):  # the file system has no holes: the space stays allocated
                self._memory.madvise(mmap.MADV_REMOVE, start, stop - start)
                return
        self._memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _piece_after(offset: int) -> int:
    return -(-offset // PIECE) * PIECE
