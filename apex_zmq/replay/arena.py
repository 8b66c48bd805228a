"""The memory behind a shard's log."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from apex_zmq.types import UInt8s

PIECE = 4 << 20  # bytes given back at once: whole huge pages


class Arena:
    """Zeroed bytes, resident from when they are written until they are given back.

    A ring as long as its budget would in time be resident as a whole, however little of it is in use.

    bytes: [size], to read and write.
    """

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):  # a system without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: UInt8s = np.frombuffer(self._memory, np.uint8)
        self._evicted = 0  # up to here, a multiple of PIECE, the records evicted since the front have been given back

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
        if stop > start:
            self._memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _piece_after(offset: int) -> int:
    return -(-offset // PIECE) * PIECE
