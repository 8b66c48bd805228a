"""The arena as a ring of records: what is stored stays as written, and what is evicted is given back."""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.errors import ConfigError
from apex_zmq.replay.disk import arena
from apex_zmq.replay.disk.arena import Arena

PAGE = mmap.PAGESIZE
SIZE = 12 * PAGE
ROUNDS = st.lists(st.integers(1, 3 * PAGE), min_size=30, max_size=60)  # sizes of records: some rounds of the ring


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "PIECE", PAGE)


class Ring:
    """Records of one repeated byte each in an arena, placed and evicted as a store does."""

    def __init__(self, memory: Arena) -> None:
        self.memory = memory
        self.records: deque[tuple[int, int, int]] = deque()  # offset, end, fill
        self.head = 0
        self.count = 0
        self.evicted_end = 0  # of the last evicted record

    def append(self, size: int) -> None:
        while (offset := self._place(size)) is None:
            self.evict()
        self.memory.reserve(offset, offset + size)
        fill = 1 + self.count % 255
        self.memory.bytes[offset : offset + size] = fill
        self.records.append((offset, offset + size, fill))
        self.head = offset + size
        self.count += 1

    def evict(self) -> None:
        offset, end, _ = self.records.popleft()
        self.memory.evict(offset, end, self.head)
        self.evicted_end = end

    def _place(self, size: int) -> int | None:
        if not self.records:
            return 0
        tail = self.records[0][0]
        if self.head <= tail:
            return self.head if self.head + size <= tail else None
        if self.head + size <= SIZE:
            return self.head
        return 0 if size <= tail else None

    def check(self) -> None:
        """Stored records are as written, and pieces that hold none of them are zero."""
        for offset, end, fill in self.records:
            assert (self.memory.bytes[offset:end] == fill).all()
        in_use = {piece for offset, end, _ in self.records for piece in range(offset // PAGE, -(-end // PAGE))}
        if self.records:
            in_use |= {self.records[0][0] // PAGE, self.head // PAGE, (self.head - 1) // PAGE}
            dirty = np.flatnonzero(self.memory.bytes.reshape(-1, PAGE).any(axis=1)).tolist()
            if self.evicted_end > self.records[0][0]:  # the last record before the wrap: until the next is evicted
                in_use.add((self.evicted_end - 1) // PAGE)
            assert {*dirty} <= in_use


@pytest.mark.parametrize("in_file", [False, True])
@given(sizes=ROUNDS)
@settings(max_examples=30)
def test_stored_records_stay_and_evicted_memory_is_freed(
    tmp_path_factory: pytest.TempPathFactory, in_file: bool, sizes: list[int]
) -> None:
    ring = Ring(Arena(SIZE, tmp_path_factory.mktemp("ring") / "arena" if in_file else None))
    for size in sizes:
        ring.append(size)
        ring.check()


@given(sizes=ROUNDS)
@settings(max_examples=20)
def test_file_holds_written_bytes_and_reports_their_ranges(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("ring") / "arena"
    ring = Ring(Arena(SIZE, path))
    for size in sizes:
        ring.append(size)
    ring.memory.sync()
    again = Arena(SIZE, path)
    assert again.is_file
    for offset, end, fill in ring.records:
        assert (again.bytes[offset:end] == fill).all()
    outside = again.bytes.copy()
    for start, stop in again.written():
        outside[start:stop] = 0
    assert not outside.any()


@pytest.mark.parametrize(("tail", "head"), [(3, 7), (7, 3), (0, 12), (5, 5)])
def test_keep_frees_all_memory_outside_the_ring(tail: int, head: int) -> None:
    memory = Arena(SIZE)
    memory.bytes[:] = 1
    memory.keep(tail * PAGE, head * PAGE)
    kept = range(tail, head) if tail < head else [*range(head), *range(tail, SIZE // PAGE)]
    found = [bool(memory.bytes[piece * PAGE]) for piece in range(SIZE // PAGE)]
    assert found == [piece in kept for piece in range(SIZE // PAGE)]


def test_clear_frees_all_memory(tmp_path: Path) -> None:
    memory = Arena(SIZE, tmp_path / "arena")
    memory.reserve(0, SIZE)
    memory.bytes[:] = 1
    memory.clear()
    assert not memory.bytes.any()
    assert (tmp_path / "arena").stat().st_size == SIZE


def test_full_disk_moves_records_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Ring(Arena(SIZE, tmp_path / "arena"))
    for _ in range(4):
        ring.append(2 * PAGE)
    on_disk = (tmp_path / "arena").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for _ in range(10):
        ring.append(2 * PAGE)
        ring.check()
    assert not ring.memory.is_file
    assert "No space left on device" in caplog.text
    assert (tmp_path / "arena").read_bytes() == on_disk
    ring.memory.sync()  # no effect: there is no file any more


def test_failed_allocation_of_memory_or_file_is_a_config_error(tmp_path: Path) -> None:
    """A process may be held to less than the machine has, as by `ulimit -v`."""
    with pytest.raises(ConfigError, match=r"lower replay\.arena_bytes"):
        Arena(1 << 60)
    with pytest.raises(ConfigError, match=r"set another replay\.snapshot_dir"):
        Arena(SIZE, tmp_path / "missing" / "arena")
