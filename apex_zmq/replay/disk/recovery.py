"""Finds a shard's records again in an arena of which any byte may be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from apex_zmq.replay import record
from apex_zmq.types import UInt8s

CHUNK = 1 << 16  # units looked at together


class Span(NamedTuple):
    """A record: transitions first_key .. next_key - 1 at arena offsets [start, stop)."""

    first_key: int
    next_key: int
    start: int
    stop: int
    tombstone: bool


class Recovery(NamedTuple):
    """What is left of a log.

    spans: of its records, oldest first, without a gap between their keys: tombstones, which the caller is to write,
        stand for what does not verify.
    recovered: transitions that verify.
    dropped: transitions that were stored, as far as what is left tells, and do not verify or stood beyond a gap.
    """

    spans: list[Span]
    recovered: int
    dropped: int


def recover(
    arena: UInt8s, written: Iterable[tuple[int, int]], log_id: int, stored_then: range, capacity: int
) -> Recovery:
    """Verify the records of one log, and find room for tombstones of what is missing between them.

    The newest record that verifies tells which key was the oldest when it was written, so no index is needed that could
    be older than the records are. Lost are a record that was being written and those that made room for it.

    arena: uint8 [size]; headers of records whose frames do not verify are wiped out where nothing newer does.
    written: ranges of the arena outside of which there is nothing.
    stored_then: keys that were stored at some time, to tell how much is missing.
    capacity: transitions kept at most, the newest.
    """
    found = sorted(_spans(arena, written, log_id), reverse=True)
    newest = next((place for place, span in enumerate(found) if _frames_valid(arena, span)), len(found))
    for span in found[:newest]:  # nothing to be found, and counted, once more
        arena[span.start : span.start + record.UNIT] = 0
    end = max([stored_then.stop, *(span.next_key for span in found)])
    if newest == len(found):
        return Recovery([], 0, end - stored_then.start)
    oldest_key = int(record.header_of(arena[found[newest].start :])["oldest_key"])
    spans = [found[newest]]
    buried = 0
    wrapped = False
    for span in found[newest + 1 :]:
        later = spans[-1]
        if span.first_key < oldest_key or span.next_key > later.first_key or not _frames_valid(arena, span):
            continue
        if span.stop <= later.start and not (wrapped and span.start < spans[0].stop):
            rooms = [(span.stop, later.start)]
        elif not wrapped and span.start >= spans[0].stop:
            wrapped, rooms = True, [(span.stop, len(arena)), (0, later.start)]
        else:
            continue
        missing = later.first_key - span.next_key
        if missing:
            size = record.size_of(missing, 0, 0, 0)
            start = next((start for start, stop in rooms if stop - start >= size), None)
            if start is None:
                break  # a log has no gaps, so what is older goes too
            spans.append(Span(span.next_key, later.first_key, start, start + size, tombstone=True))
            buried += missing
        spans.append(span)
    next_key = spans[0].next_key
    dropped = end - oldest_key - _transitions(spans) + buried
    while spans and next_key - spans[-1].first_key > capacity:
        del spans[-1]
    spans.reverse()
    return Recovery(spans, _transitions(span for span in spans if not span.tombstone), dropped)


def _spans(arena: UInt8s, written: Iterable[tuple[int, int]], log_id: int) -> Iterator[Span]:
    """All records of a log whose CRC verifies."""
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
