"""Recovery of a shard's records from an arena that may be damaged at any byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from apex_zmq.replay import record
from apex_zmq.types import UInt8s

CHUNK = 1 << 16  # units searched at once


class Span(NamedTuple):
    """A record: transitions first_key .. next_key - 1 at arena offsets [start, stop)."""

    first_key: int
    next_key: int
    start: int
    stop: int
    tombstone: bool


class Recovery(NamedTuple):
    """The recovered part of a log.

    spans: its records, oldest first, with contiguous keys. Tombstones, which the caller must write, replace
        records that do not verify.
    recovered: transitions of records that verify.
    dropped: transitions known to have been stored that do not verify, or are older than a gap without room for a
        tombstone.
    """

    spans: list[Span]
    recovered: int
    dropped: int


def recover(
    arena: UInt8s, written: Iterable[tuple[int, int]], log_id: int, stored_then: range, capacity: int
) -> Recovery:
    """Verify the records of one log, and find room for tombstones between them.

    Each record holds the oldest key at the time of its writing, so the newest record that verifies bounds the log. No
    index is needed, which could be older than the records. An incompletely written record, and the records evicted for
    it, are lost.

    Invariants of a log in the ring, read from newest to oldest: keys are contiguous, each record ends before the next
    newer one begins, and offsets wrap at most once, from the front to the end of the arena, without reaching below the
    end of the newest record.

    arena: uint8 [size]; the headers of damaged records newer than all that verify are zeroed.
    written: ranges of the arena; all other bytes are 0.
    stored_then: keys stored at the time of the snapshot, used to count missing transitions.
    capacity: maximum number of transitions to keep, the newest.
    """
    found = sorted(_spans(arena, written, log_id), reverse=True)
    newest = next((place for place, span in enumerate(found) if _frames_valid(arena, span)), len(found))
    # The keys of these records will be assigned again, so the next recovery must not find their headers.
    for span in found[:newest]:
        arena[span.start : span.start + record.UNIT] = 0
    end = max([stored_then.stop, *(span.next_key for span in found)])
    if newest == len(found):
        return Recovery([], 0, end - stored_then.start)
    oldest_key = int(record.header_of(arena[found[newest].start :])["oldest_key"])
    spans = [found[newest]]  # newest first
    in_tombstones = 0  # transitions
    wrapped = False
    for span in found[newest + 1 :]:
        later = spans[-1]
        # Skip records that were evicted, partly overwritten or damaged.
        if span.first_key < oldest_key or span.next_key > later.first_key or not _frames_valid(arena, span):
            continue
        # `free` holds the ranges between this record and the next newer one.
        if span.stop <= later.start and not (wrapped and span.start < spans[0].stop):
            free = [(span.stop, later.start)]
        elif not wrapped and span.start >= spans[0].stop:
            wrapped, free = True, [(span.stop, len(arena)), (0, later.start)]
        else:
            continue  # overlaps newer records, so it is from an earlier round of the ring
        missing = later.first_key - span.next_key
        if missing:
            # Keys must stay contiguous, because they are mapped to slots: a tombstone covers the missing ones. It is
            # smaller than their records, but may not fit if their room is split by the wrap.
            size = record.size_of(missing, 0, 0, 0)
            start = next((start for start, stop in free if stop - start >= size), None)
            if start is None:
                break  # contiguous keys end here, so older records are dropped
            spans.append(Span(span.next_key, later.first_key, start, start + size, tombstone=True))
            in_tombstones += missing
        spans.append(span)
    next_key = spans[0].next_key
    dropped = end - oldest_key - _transitions(spans) + in_tombstones
    while spans and next_key - spans[-1].first_key > capacity:
        del spans[-1]
    spans.reverse()
    return Recovery(spans, _transitions(span for span in spans if not span.tombstone), dropped)


def _spans(arena: UInt8s, written: Iterable[tuple[int, int]], log_id: int) -> Iterator[Span]:
    """Yield the records of a log whose header and columns verify; frames are not checked."""
    headers = arena.view(record.HEADER)
    for start, stop in written:
        for unit in range(start // record.UNIT, stop // record.UNIT, CHUNK):
            chunk = headers[unit : min(unit + CHUNK, stop // record.UNIT)]
            for found in np.flatnonzero((chunk["magic"] == record.MAGIC) & (chunk["log_id"] == log_id)).tolist():
                offset = (unit + found) * record.UNIT
                stored = record.at(arena, offset)
                if stored is not None:
                    header = record.header_of(stored)
                    first_key, tombstone = int(header["first_key"]), not header["frames"]
                    next_key = first_key + int(header["transitions"])
                    yield Span(first_key, next_key, offset, offset + len(stored), tombstone)


def _frames_valid(arena: UInt8s, span: Span) -> bool:
    return record.frames_valid(arena[span.start : span.stop])


def _transitions(spans: Iterable[Span]) -> int:
    return sum(span.next_key - span.first_key for span in spans)
