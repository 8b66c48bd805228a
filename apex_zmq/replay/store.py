"""The replay shard's log: segments in a byte ring, priorities in a sum tree.

A segment is stored as one record in the arena (`record.py`), still encoded. The only
data per transition are its record's offset and its priority, both at slot
`key mod capacity`.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from apex_zmq.replay import record
from apex_zmq.replay.disk.arena import Arena
from apex_zmq.replay.disk.recovery import Recovery, recover
from apex_zmq.replay.disk.snapshot import StoreState
from apex_zmq.replay.sum_tree import SumTree
from apex_zmq.types import (
    TRANSITION,
    Bools,
    Float32s,
    Float64s,
    FrameSpec,
    Int64s,
    Sample,
    Segment,
    Shipment,
    UInt32s,
    UInt64s,
)


class UpdateCounts(NamedTuple):
    """Number of rows of a priority update by outcome; the four add up to its length."""

    applied: int
    retired: int  # retired by this row or before
    evicted: int  # no longer stored
    unknown: int  # keys that this store has not assigned


class Store:
    """Prioritized first-in first-out store of encoded segments; not thread-safe.

    Attributes:
        incarnation: random 63-bit number, new for every store; keys are valid in one store only.
        first_key: key of the oldest stored transition.
        next_key: key of the next transition; first_key .. next_key - 1 are stored.
        num_bytes: bytes of all stored records.
    """

    def __init__(
        self,
        *,
        capacity: int,
        arena_bytes: int,
        frame_window: int,
        alpha: float,
        epsilon: float,
        seed: int | None,
        arena_path: Path | None = None,
    ) -> None:
        """Make an empty store; only the used part of the arena is resident.

        capacity: maximum number of transitions.
        arena_bytes: maximum size of all records, in bytes.
        frame_window: W = stack + n, frames per window.
        alpha, epsilon: a stored priority is (|TD| + epsilon)^alpha.
        seed: seed of sampling; None: random.
        arena_path: file of the records, which `restore` reads; None: anonymous memory.

        Raises:
            ConfigError: the arena cannot be mapped.
            ValueError: alpha outside [0, 1], or epsilon not finite and > 0 (0 is the priority of retired transitions).
        """
        if not 0 <= alpha <= 1 or not 0 < epsilon < np.inf:
            raise ValueError(f"need alpha in [0, 1] and epsilon > 0, not {alpha} and {epsilon}")
        self.capacity = capacity
        self.frame_window = frame_window
        self.alpha = alpha
        self.epsilon = epsilon
        self.incarnation = secrets.randbits(63)
        self.first_key = 0
        self.next_key = 0
        self.num_bytes = 0
        self._frame: FrameSpec | None = None
        self._tree = SumTree(capacity)
        self._rng = np.random.default_rng(seed)
        self._log_id = secrets.randbits(32)
        self._memory = Arena(arena_bytes // record.UNIT * record.UNIT, arena_path)
        self._arena = self._memory.bytes
        self._headers = self._arena.view(record.HEADER)
        self._head = 0  # arena offset of the end of the newest record
        self._records: Int64s = np.zeros(capacity, np.int64)  # [slot] arena offset of the record

    @property
    def num_transitions(self) -> int:
        """Number of stored transitions, including retired ones."""
        return self.next_key - self.first_key

    @property
    def mass(self) -> float:
        """M, the sum of all stored priorities."""
        return self._tree.total

    def append(self, shipment: Shipment) -> int:
        """Store a segment; evict the oldest segments, each as a whole, to make room.

        Returns:
            The key of its first transition; the keys of the others are consecutive.

        Raises:
            ValueError: the segment is inconsistent, differs from the store's window or frame spec, or exceeds
                the store's size. The store is unchanged.
        """
        segment = shipment.segment
        frame_ends = self._check(segment)
        count, actor_bytes = segment.num_transitions, len(shipment.actor.encode())
        record_bytes = record.size_of(count, len(segment.frame_sizes), actor_bytes, int(frame_ends[-1]))
        if count > self.capacity or record_bytes > len(self._arena):
            raise ValueError(
                f"segment of {count} transitions and {record_bytes} bytes exceeds the store's {self.capacity} or "
                f"{len(self._arena)}; raise replay.capacity or replay.arena_bytes"
            )
        while self.num_transitions + count > self.capacity:
            self._evict_oldest()
        while (offset := self._place(record_bytes)) is None:
            self._evict_oldest()

        self._reserve(offset, offset + record_bytes)
        key = self.next_key
        room = self._arena[offset : offset + record_bytes]
        record.write(room, shipment, frame_ends, self._log_id, key, self.first_key)
        priority = self._priority(segment.transitions["td_error"])
        for rows, slots in self._slot_ranges(key, count):
            self._records[slots] = offset
            self._tree.set_range(slots.start, slots.stop, priority[rows])
        self.next_key += count
        self.num_bytes += record_bytes
        self._head = offset + record_bytes
        self._frame = segment.frame
        return key

    def sample(self, batch_size: int) -> Sample:
        """Draw B transitions with probability p_i / M each, stratified.

        Raises:
            ValueError: the mass is 0: no transitions are stored, or all are retired.
        """
        slots = self._tree.stratified(batch_size, self._rng)
        assert self._frame is not None
        keys = self.first_key + (slots - self.first_key) % self.capacity
        transitions = np.empty(batch_size, TRANSITION)
        frame_sizes = np.zeros((batch_size, self.frame_window), np.uint32)
        begins = np.empty(batch_size, np.int64)
        record.read_rows(
            self._arena,
            self._headers,
            self._records[slots],
            keys,
            self._frame.stack,
            transitions,
            frame_sizes,
            begins,
        )
        window_bytes = frame_sizes.sum(axis=1, dtype=np.int64)
        frames = np.empty(int(window_bytes.sum()), np.uint8)
        record.copy_windows(self._arena, begins, window_bytes, frames)
        return Sample(
            num_transitions=self.num_transitions,
            mass=self.mass,
            frame=self._frame,
            keys=keys.astype(np.uint64),
            priority=self._tree.get(slots),
            transitions=transitions,
            frame_sizes=frame_sizes,
            frames=frames.data,
        )

    def update(self, keys: UInt64s, td_error: Float32s, retired: Bools) -> UpdateCounts:
        """Set the priorities of keys[B] from td_error[B], or to 0 until eviction where `retired` is True.

        The last row of a repeated key applies, unless any of its rows retires it.

        Raises:
            ValueError: lengths differ, or a td_error is negative or not finite. The store is unchanged.
        """
        if not len(keys) == len(td_error) == len(retired) or not ((td_error >= 0) & (td_error < np.inf)).all():
            raise ValueError("a priority update needs one finite td_error >= 0 and one flag per key")
        evicted = keys < np.uint64(self.first_key)
        unknown = keys >= np.uint64(self.next_key)
        live = ~(evicted | unknown)
        slots = (keys[live] % np.uint64(self.capacity)).astype(np.int64)
        # Priorities are positive, so a stored transition with a leaf of 0 has been retired.
        dead = retired[live] | (self._tree.get(slots) == 0)
        self._tree.set(slots[~dead], self._priority(td_error[live][~dead]))
        self._tree.set(slots[dead], 0.0)
        num_retired = int(dead.sum())
        return UpdateCounts(
            applied=len(slots) - num_retired,
            retired=num_retired,
            evicted=int(evicted.sum()),
            unknown=int(unknown.sum()),
        )

    def actors_of(self, keys: Iterable[int]) -> list[str]:
        """Return the names of the actors that sent these transitions, sorted; ignore keys that are not stored."""
        stored = {int(self._records[key % self.capacity]) for key in map(int, keys) if self._holds(key)}
        return sorted({record.actor_of(self._arena[offset:]) for offset in stored})

    @property
    def is_durable(self) -> bool:
        """Whether the records outlive the process."""
        return self._memory.is_file

    def sync(self) -> None:
        """Flush the records stored so far to disk; callable from any thread.

        Raises:
            OSError: the disk cannot be written.
        """
        self._memory.sync()

    def state(self) -> StoreState | None:
        """Return a copy of the state that `restore` needs beside the records; None before the first record."""
        if self._frame is None:
            return None
        return StoreState(
            log_id=self._log_id,
            first_key=self.first_key,
            priority=np.concatenate(
                [
                    self._tree.get_range(slots.start, slots.stop)
                    for _, slots in self._slot_ranges(self.first_key, self.num_transitions)
                ]
            ),
            alpha=self.alpha,
            epsilon=self.epsilon,
            frame=self._frame,
            random=dict(self._rng.bit_generator.state),
        )

    def restore(self, state: StoreState) -> Recovery:
        """Fill this empty store from the records in its file, including those newer than `state`.

        Priorities are taken from `state`. They are reset to the initial ones for newer transitions, and for all but
        retired transitions if alpha or epsilon has changed.

        Returns:
            The recovered spans, with counts of recovered and dropped transitions.

        Raises:
            OSError: the file cannot be read.
        """
        stored_then = range(state.first_key, state.next_key)
        recovery = recover(self._arena, self._memory.written(), state.log_id, stored_then, self.capacity)
        if not recovery.spans:
            self._memory.clear()
            return recovery
        self._log_id, self._frame = state.log_id, state.frame
        self._rng.bit_generator.state = state.random
        known = (state.alpha, state.epsilon) == (self.alpha, self.epsilon)
        for span in recovery.spans:
            if span.tombstone:
                self._reserve(span.start, span.stop)
                room, missing = self._arena[span.start : span.stop], span.next_key - span.first_key
                record.write_tombstone(room, missing, self._log_id, span.first_key, recovery.spans[0].first_key)
            stored = self._arena[span.start : span.stop]
            priority = self._priority(record.transitions_of(stored)["td_error"])
            first, stop = max(span.first_key, state.first_key), min(span.next_key, state.next_key)
            if first < stop:
                rows = slice(first - span.first_key, stop - span.first_key)
                before = state.priority[first - state.first_key : stop - state.first_key]
                priority[rows] = before if known else np.where(before > 0, priority[rows], 0.0)
            if span.tombstone:
                priority[:] = 0.0
            for rows, slots in self._slot_ranges(span.first_key, span.next_key - span.first_key):
                self._records[slots] = span.start
                self._tree.set_range(slots.start, slots.stop, priority[rows])
            self.num_bytes += span.stop - span.start
        self.first_key, self.next_key = recovery.spans[0].first_key, recovery.spans[-1].next_key
        self._head = recovery.spans[-1].stop
        self._memory.keep(recovery.spans[0].start, self._head)
        return recovery

    def check_valid(self) -> None:
        """Verify every record and the tree; reads the whole arena.

        Raises:
            AssertionError: records, slots, priorities and counters are inconsistent.
        """
        self._tree.check_valid()
        assert 0 <= self.num_transitions <= self.capacity, "more transitions than the capacity"
        spans = []
        key = self.first_key
        while key < self.next_key:
            header = self._header(key)
            count, record_bytes = int(header["transitions"]), int(header["record_bytes"])
            offset = int(self._records[key % self.capacity])
            assert header["magic"] == record.MAGIC, f"no record holds key {key}"
            assert header["first_key"] == key, f"no record begins with key {key}"
            stored = self._arena[offset : offset + record_bytes]
            assert record.UNIT <= record_bytes == len(stored), f"size of the record of key {key}"
            assert record.at(self._arena, offset) is not None, f"CRC of key {key}"
            assert record.frames_valid(stored), f"CRC of a frame of the record of key {key}"
            for _, slots in self._slot_ranges(key, count):
                assert np.all(self._records[slots] == offset), f"wrong slot of the record of key {key}"
            spans.append((offset, offset + record_bytes))
            key += count
        assert key == self.next_key, "the newest record ends beyond the next key"
        assert sum(stop - start for start, stop in spans) == self.num_bytes <= len(self._arena), "num_bytes is wrong"
        assert not spans or spans[-1][1] == self._head, "the head is not at the end of the newest record"
        ordered = sorted(spans)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered)), "overlap"
        free = np.ones(self.capacity, bool)
        free[np.arange(self.first_key, self.next_key) % self.capacity] = False
        assert not self._tree.get(np.flatnonzero(free)).any(), "an empty slot has a priority"

    def _priority(self, td_error: Float32s) -> Float64s:
        return cast(Float64s, (np.asarray(td_error, np.float64) + self.epsilon) ** self.alpha)

    def _holds(self, key: int) -> bool:
        return self.first_key <= key < self.next_key

    def _reserve(self, start: int, stop: int) -> None:
        """Reserve [start, stop) of the arena for writing; update the views if the arena has moved."""
        self._memory.reserve(start, stop)
        if self._arena is not self._memory.bytes:
            self._arena = self._memory.bytes
            self._headers = self._arena.view(record.HEADER)

    def _header(self, key: int) -> np.void:
        return cast(np.void, self._headers[self._records[key % self.capacity] // record.UNIT])

    def _slot_ranges(self, key: int, count: int) -> Iterable[tuple[slice, slice]]:
        """Yield (rows, slots) of `count` transitions from `key` on: two pairs if the slots wrap, else one."""
        start = key % self.capacity
        fitting = min(count, self.capacity - start)
        yield slice(0, fitting), slice(start, start + fitting)
        if fitting < count:
            yield slice(fitting, count), slice(0, count - fitting)

    def _place(self, record_bytes: int) -> int | None:
        """Return the arena offset for a new record; None if stored records must be evicted first."""
        if self.num_transitions == 0:
            return 0
        tail = int(self._records[self.first_key % self.capacity])
        if self._head <= tail:
            return self._head if self._head + record_bytes <= tail else None
        if self._head + record_bytes <= len(self._arena):
            return self._head
        return 0 if record_bytes <= tail else None

    def _evict_oldest(self) -> None:
        offset = int(self._records[self.first_key % self.capacity])
        header = self._header(self.first_key)
        count, record_bytes = int(header["transitions"]), int(header["record_bytes"])
        for _, slots in self._slot_ranges(self.first_key, count):
            self._tree.set_range(slots.start, slots.stop, 0.0)
        self.first_key += count
        self.num_bytes -= record_bytes
        self._memory.evict(offset, offset + record_bytes, self._head)

    def _check(self, segment: Segment) -> UInt32s:
        """Check the invariants that decoders do not check; return the frame ends, uint32[F + 1]."""
        frames, stack, transitions = len(segment.frame_sizes), segment.frame.stack, segment.transitions

        def require(condition: bool | np.bool_, message: str) -> None:
            if not condition:
                raise ValueError(message)

        if self._frame is not None and segment.frame != self._frame:
            require(
                False,
                f"frames of {segment.frame}, but this store holds {self._frame}; use the config of the other actors, "
                "or delete the shard's files in replay.snapshot_dir",
            )
        require(len(transitions) > 0, "no transitions")
        require(len(segment.frame_crcs) == frames, "not one CRC per frame")
        ends = np.zeros(frames + 1, np.uint64)
        segment.frame_sizes.cumsum(dtype=np.uint64, out=ends[1:])
        require(int(ends[-1]) == memoryview(segment.frames).nbytes < 2**32, "frame sizes do not add up to the frames")
        windows = transitions["steps"].astype(np.int64) + stack
        require(windows.max() <= self.frame_window, f"windows longer than {self.frame_window}")
        require((transitions["first"] + windows).max() <= frames, "a window ends beyond the frames")
        td_error = transitions["td_error"]
        require(bool(((td_error >= 0) & (td_error < np.inf)).all()), "a td_error negative or not finite")
        return ends.astype(np.uint32)
