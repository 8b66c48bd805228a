"""The format of records: one segment each in the arena, and the kernels that read them.

Records begin at multiples of `UNIT` = 64 bytes and are little-endian:

    header               64 bytes, `HEADER`
    frame ends           uint32[F + 1], offsets from the first frame's first byte; the first is 0
    frame CRCs           uint32[F]
    transitions          `TRANSITION`[T], as the actor sent them
    actor                the actor's name in UTF-8
    frames               the encoded frames, concatenated
    padding

A transition of key k is row k - first_key. A record without frames is a tombstone: it replaces lost
transitions by rows of zeros.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import NamedTuple, cast

import numba
import numpy as np
import numpy.typing as npt

from apex_zmq.replay.sum_tree import kernel
from apex_zmq.types import TRANSITION, Int64s, Shipment, Transitions, UInt8s, UInt32s

HEADER = np.dtype(
    [
        ("magic", "<u4"),
        ("log_id", "<u4"),  # log of the record; a file may hold records of earlier logs
        ("record_bytes", "<u8"),  # the whole record, header and padding included
        ("first_key", "<i8"),
        ("incarnation", "<u8"),  # of the actor
        ("sequence", "<u8"),
        ("oldest_key", "<i8"),  # oldest key stored at the time of writing
        ("transitions", "<u4"),
        ("frames", "<u4"),
        ("actor_bytes", "<u4"),
        ("crc", "<u4"),  # CRC-32 of header to actor without this field; each frame has its own
    ],
    align=True,
)
MAGIC = int.from_bytes(b"APX2", "little")  # the digit is the format's version; others are ignored
UNIT = HEADER.itemsize  # alignment of records, in bytes
# A literal, because Numba's cache of the kernels below depends on this file only: it must change with TRANSITION.
# A change of TRANSITION also changes the format of records, so raise MAGIC with it.
ROW_BYTES = 21
assert TRANSITION.itemsize == ROW_BYTES, "set ROW_BYTES to the size of TRANSITION, and raise MAGIC"


class Layout(NamedTuple):
    """Byte offsets of a record's parts from the record's start."""

    ends: int
    crcs: int
    transitions: int
    actor: int
    frames: int


def layout(transitions: int, frames: int, actor_bytes: int) -> Layout:
    """Return the offsets in a record of T transitions and F frames."""
    ends = UNIT
    crcs = ends + 4 * (frames + 1)
    rows = crcs + 4 * frames
    actor = rows + ROW_BYTES * transitions
    return Layout(ends, crcs, rows, actor, actor + actor_bytes)


def size_of(transitions: int, frames: int, actor_bytes: int, frame_bytes: int) -> int:
    """Return the size of a record, in bytes, including padding."""
    return -(-(layout(transitions, frames, actor_bytes).frames + frame_bytes) // UNIT) * UNIT


def write(
    record: UInt8s, shipment: Shipment, frame_ends: UInt32s, log_id: int, first_key: int, oldest_key: int
) -> None:
    """Fill `record`, uint8[size_of(...)] of the arena, with a checked segment."""
    segment, actor = shipment.segment, shipment.actor.encode()
    content = b"".join(
        [
            frame_ends.astype("<u4").tobytes(),
            segment.frame_crcs.astype("<u4").tobytes(),
            segment.transitions.tobytes(),
            actor,
            segment.frames,
        ]
    )
    record[UNIT : UNIT + len(content)] = np.frombuffer(content, np.uint8)
    header = record[:UNIT].view(HEADER)
    origin = (first_key, shipment.incarnation, shipment.sequence, oldest_key)
    shape = (segment.num_transitions, len(segment.frame_sizes), len(actor))
    header[0] = (MAGIC, log_id, len(record), *origin, *shape, 0)
    header["crc"] = _crc_of(record)


def write_tombstone(record: UInt8s, transitions: int, log_id: int, first_key: int, oldest_key: int) -> None:
    """Fill `record`, uint8[size_of(transitions, 0, 0, 0)] of the arena, with a tombstone for lost transitions."""
    record[:] = 0
    header = record[:UNIT].view(HEADER)
    header[0] = (MAGIC, log_id, len(record), first_key, 0, 0, oldest_key, transitions, 0, 0, 0)
    header["crc"] = _crc_of(record)


def at(arena: UInt8s, offset: int) -> UInt8s | None:
    """Return the record at an offset, a view of the arena; None if its CRC differs. Frames are not checked."""
    header = header_of(arena[offset:])
    record = arena[offset : offset + int(header["record_bytes"])]
    if header["magic"] != MAGIC or len(record) != header["record_bytes"] or len(record) < UNIT:
        return None
    place = layout_of(record)
    if place.frames > len(record) or header["crc"] != _crc_of(record):
        return None
    return record


def frames_valid(record: UInt8s) -> bool:
    """Return whether the CRCs of all frames of a record match."""
    at = layout_of(record)
    ends = record[at.ends : at.crcs].view("<u4").tolist()
    crcs: list[int] = record[at.crcs : at.transitions].view("<u4").tolist()
    frames = record[at.frames :].data
    return [zlib.crc32(frames[start:stop]) for start, stop in itertools.pairwise(ends)] == crcs


def actor_of(record: UInt8s) -> str:
    """Return the name of the actor that sent a record's segment."""
    at = layout_of(record)
    return record[at.actor : at.frames].tobytes().decode()


def header_of(record: UInt8s) -> np.void:
    """Return the header of a record."""
    return cast(np.void, record[:UNIT].view(HEADER)[0])


def transitions_of(record: UInt8s) -> Transitions:
    """Return the transitions of a record, as a view of it."""
    at = layout_of(record)
    return record[at.transitions : at.actor].view(TRANSITION)


def layout_of(record: UInt8s) -> Layout:
    """Return the offsets in a record, from the counts in its header."""
    header = header_of(record)
    return layout(int(header["transitions"]), int(header["frames"]), int(header["actor_bytes"]))


def _crc_of(record: UInt8s) -> int:
    """Return the CRC-32 of a record up to its frames, without the crc field."""
    return zlib.crc32(record[UNIT : layout_of(record).frames].data, zlib.crc32(record[: UNIT - 4].data))


_layout = cast("Callable[[int, int, int], Layout]", numba.njit(layout, nogil=True, cache=True))


@kernel(
    numba.void(
        numba.uint8[::1],
        numba.from_dtype(HEADER)[::1],
        numba.int64[::1],
        numba.int64[::1],
        numba.int64,
        numba.from_dtype(TRANSITION)[::1],
        numba.uint32[:, ::1],
        numba.int64[::1],
    )
)
def read_rows(
    arena: UInt8s,
    headers: npt.NDArray[np.void],
    records: Int64s,
    keys: Int64s,
    stack: int,
    transitions: Transitions,
    frame_sizes: UInt32s,
    begins: Int64s,
) -> None:
    """Read the transitions of keys[B] from the records at arena offsets records[B].

    Fills transitions[B], begins[B] (arena offset of each window's first byte) and
    frame_sizes[B, W], up to the length of each window: the rest must be 0 already.
    """
    uint32 = arena.view(np.uint32)
    for j in range(len(keys)):
        header = headers[records[j] // UNIT]
        at = _layout(header.transitions, header.frames, header.actor_bytes)
        row = records[j] + at.transitions + (keys[j] - header.first_key) * ROW_BYTES
        transitions[j] = arena[row : row + ROW_BYTES].view(TRANSITION)[0]
        first = (records[j] + at.ends) // 4 + np.int64(transitions[j].first)
        begins[j] = records[j] + at.frames + np.int64(uint32[first])
        for i in range(stack + np.int64(transitions[j].steps)):
            frame_sizes[j, i] = uint32[first + i + 1] - uint32[first + i]


@kernel(numba.void(numba.uint8[::1], numba.int64[::1], numba.int64[::1], numba.uint8[::1]))
def copy_windows(arena: UInt8s, begins: Int64s, window_bytes: Int64s, frames: UInt8s) -> None:
    """Concatenate windows in `frames`: window j is the window_bytes[j] bytes of the arena from begins[j] on."""
    position = 0
    for j in range(len(begins)):
        # Slices, so that the loop below indexes from 0 and is vectorized.
        source = arena[begins[j] : begins[j] + window_bytes[j]]
        target = frames[position : position + window_bytes[j]]
        for i in range(len(target)):
            target[i] = source[i]
        position += len(target)
