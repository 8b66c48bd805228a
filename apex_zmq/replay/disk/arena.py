"""The memory behind a shard's log: its own, or that of a file which outlives the process."""

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

PIECE = 4 << 20  # bytes taken from the disk, and given back, at once: whole huge pages


class Arena:
    """Zeroed bytes, resident from when they are written until they are given back.

    A ring as long as its budget would in time be resident as a whole, however little of it is in use. So would it
    be on the disk: a file takes and gives back its space in pieces too.

    bytes: [size], to read; and to write, after `reserve`, which may put others in their place.
    """

    def __init__(self, size: int, path: Path | None = None) -> None:
        """path: of the file, made where there is none; what it holds is there again. None: memory of its own.

        Raises:
            ConfigError: the file cannot be opened or mapped, or so much memory.
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
        self._reserved = np.zeros(-(-size // PIECE), bool)  # pieces whose space on the disk is certain
        self._evicted = 0  # up to here, a multiple of PIECE, the records evicted since the front have been given back

    def _map(self, memory: mmap.mmap) -> None:
        self._memory = memory
        with contextlib.suppress(AttributeError, OSError):  # a system without huge pages, or not for files
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: UInt8s = np.frombuffer(memory, np.uint8)

    @property
    def is_file(self) -> bool:
        """Whether what is written outlives the process."""
        return self._file is not None

    def reserve(self, start: int, stop: int) -> None:
        """Make sure that [start, stop) can be written: on a full disk writing to a mapped file is a bus error.

        Where the disk has no space left, the contents move into memory of their own and the file stays as it is.
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
                log.error("the log goes on in memory and is lost at the end: no space for it, %s", error.strerror)
                self._leave_file()
                return
            self._reserved[piece] = True

    def _leave_file(self) -> None:
        before = self.bytes
        self._map(mmap.mmap(-1, len(before), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        for start, stop in self.written():
            self.bytes[start:stop] = before[start:stop]
        self._file = None  # and not closed: another thread may be in `sync`

    def sync(self) -> None:
        """Wait until what has been written so far is on the disk; from any thread.

        Raises:
            OSError: it cannot be written.
        """
        file = self._file
        if file is not None:
            os.fdatasync(file)

    def written(self) -> Iterator[tuple[int, int]]:
        """Ranges [start, stop), multiples of the page size but for the end, outside of which a file holds only zeros.

        Raises:
            OSError: the file cannot be read.
        """
        assert self._file is not None
        stop, size = 0, len(self.bytes)
        while stop < size:
            try:
                start = os.lseek(self._file, stop, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing behind
                    return
                raise
            stop = os.lseek(self._file, start, os.SEEK_HOLE)
            yield start, stop

    def clear(self) -> None:
        """Give back everything."""
        self._give_back(0, len(self.bytes))

    def keep(self, tail: int, head: int) -> None:
        """Give back all but the records from offset `tail` to `head`, around the end of the ring where head <= tail."""
        self._evicted = tail // PIECE * PIECE
        if head > tail:
            self._give_back(0, self._evicted)
            self._give_back(_piece_after(head), len(self.bytes))
        else:
            self._give_back(_piece_after(head), self._evicted)

    def evict(self, offset: int, end: int, head: int) -> None:
        """Give back what the records evicted from the tail leave unused, the last of them being [offset, end).

        Bytes given back are zero again. head: offset behind the newest record; what lies between it and the tail is
        in use, around the end of the ring where head <= offset.
        """
        if offset < self._evicted:  # the tail has come round to the front
            self._give_back(max(self._evicted, _piece_after(head)), len(self.bytes))
            self._evicted = 0
        free_from = self._evicted if head > offset else max(self._evicted, _piece_after(head))
        self._give_back(free_from, end // PIECE * PIECE)
        self._evicted = end // PIECE * PIECE

    def _give_back(self, start: int, stop: int) -> None:
        if stop <= start:
            return
        if self._file is not None:
            self._reserved[start // PIECE : -(-stop // PIECE)] = False
            with contextlib.suppress(OSError):  # a file system without holes keeps the space
                self._memory.madvise(mmap.MADV_REMOVE, start, stop - start)
                return
        self._memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _piece_after(offset: int) -> int:
    return -(-offset // PIECE) * PIECE
