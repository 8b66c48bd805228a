"""A segment as one self-describing record of the arena, and the kernels that read records.

Records begin at multiples of `UNIT` = 64 bytes and are little-endian:

    header               64 bytes, `HEADER`
    reward, discount, td_error   float32[T] each; td_error is the initial one
    window CRCs          uint32[T]
    frame ends           uint32[F + 1], from 0, counted from the first frame's first byte
    frame CRCs           uint32[F]
    first, action        uint16[T] each
    steps                uint8[T]
    actor                the actor's name in UTF-8
    frames               the encoded frames, concatenated
    padding

A transition of key k is row k - first_key. A record without frames is a tombstone: it stands for transitions that
were lost, with columns of zeros.
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
from apex_zmq.types import Float32s, Int64s, Segment, UInt8s, UInt16s, UInt32s

HEADER = np.dtype(
    [
        ("magic", "<u4"),
        ("log", "<u4"),  # which log it belongs to: what another one left in a file is not this one's
        ("record_bytes", "<u8"),  # the whole record, header and padding included
        ("first_key", "<i8"),
        ("incarnation", "<u8"),
        ("sequence", "<u8"),
        ("oldest_key", "<i8"),  # of all that was stored when it was written
        ("transitions", "<u4"),
        ("frames", "<u4"),
        ("actor_bytes", "<u4"),
        ("crc", "<u4"),  # CRC-32 of header and columns without this field; each frame has its own
    ],
    align=True,
)
MAGIC = int.from_bytes(b"APX1", "little")
UNIT = HEADER.itemsize  # records begin at multiples of it


class Columns(NamedTuple):
    """Byte offsets of a record's columns from the record's start."""

    reward: int
    discount: int
    td_error: int
    window_crcs: int
    ends: int
    crcs: int
    first: int
    action: int
    steps: int
    actor: int
    frames: int


def columns(transitions: int, frames: int, actor_bytes: int) -> Columns:
    """Where the columns of a record of T transitions and F frames lie."""
    reward = UNIT
    discount = reward + 4 * transitions
    td_error = discount + 4 * transitions
    window_crcs = td_error + 4 * transitions
    ends = window_crcs + 4 * transitions
    crcs = ends + 4 * (frames + 1)
    first = crcs + 4 * frames
    action = first + 2 * transitions
    steps = action + 2 * transitions
    actor = steps + transitions
    return Columns(
        reward, discount, td_error, window_crcs, ends, crcs, first, action, steps, actor, actor + actor_bytes
    )


def size_of(transitions: int, frames: int, actor_bytes: int, frame_bytes: int) -> int:
    """Bytes of a record, padding included."""
    return -(-(columns(transitions, frames, actor_bytes).frames + frame_bytes) // UNIT) * UNIT


def write(
    record: UInt8s, segment: Segment, frame_ends: UInt32s, actor: bytes, log: int, first_key: int, oldest_key: int
) -> None:
    """Fill `record`, uint8[size_of(...)] of the arena, from a checked segment."""
    parts = (
        (segment.reward, "<f4"),
        (segment.discount, "<f4"),
        (segment.td_error, "<f4"),
        (segment.window_crcs, "<u4"),
        (frame_ends, "<u4"),
        (segment.frame_crcs, "<u4"),
        (segment.first, "<u2"),
        (segment.action, "<u2"),
        (segment.steps, "u1"),
    )
    content = b"".join([*(np.asarray(column, dtype).tobytes() for column, dtype in parts), actor, segment.frames])
    record[UNIT : UNIT + len(content)] = np.frombuffer(content, np.uint8)
    header = record[:UNIT].view(HEADER)
    origin = (first_key, segment.incarnation, segment.sequence, oldest_key)
    shape = (segment.num_transitions, len(segment.frame_sizes), len(actor))
    header[0] = (MAGIC, log, len(record), *origin, *shape, 0)
    header["crc"] = _crc_of(record)


def write_tombstone(record: UInt8s, transitions: int, log: int, first_key: int, oldest_key: int) -> None:
    """Fill `record`, uint8[size_of(transitions, 0, 0, 0)] of the arena, in place of transitions that were lost."""
    record[:] = 0
    header = record[:UNIT].view(HEADER)
    header[0] = (MAGIC, log, len(record), first_key, 0, 0, oldest_key, transitions, 0, 0, 0)
    header["crc"] = _crc_of(record)


def at(arena: UInt8s, offset: int) -> UInt8s | None:
    """The record that begins at an offset, or None where none does whose header and columns verify; views the arena."""
    header = header_of(arena[offset:])
    record = arena[offset : offset + int(header["record_bytes"])]
    if header["magic"] != MAGIC or len(record) != header["record_bytes"] or len(record) < UNIT:
        return None
    place = columns_of(record)
    if place.frames > len(record) or header["crc"] != _crc_of(record):
        return None
    return record


def frames_valid(record: UInt8s) -> bool:
    """Whether every frame of a record has its CRC."""
    at = columns_of(record)
    ends = record[at.ends : at.crcs].view("<u4").tolist()
    crcs: list[int] = record[at.crcs : at.first].view("<u4").tolist()
    frames = record[at.frames :].data
    return [zlib.crc32(frames[start:stop]) for start, stop in itertools.pairwise(ends)] == crcs


def actor_of(record: UInt8s) -> str:
    """Name of the actor that sent a record's segment."""
    at = columns_of(record)
    return record[at.actor : at.frames].tobytes().decode()


def header_of(record: UInt8s) -> np.void:
    """A record's header."""
    return cast(np.void, record[:UNIT].view(HEADER)[0])


def columns_of(record: UInt8s) -> Columns:
    """Where the columns of a record lie in it."""
    header = header_of(record)
    return columns(int(header["transitions"]), int(header["frames"]), int(header["actor_bytes"]))


def _crc_of(record: UInt8s) -> int:
    """CRC-32 of header and columns, the crc field left out."""
    return zlib.crc32(record[UNIT : columns_of(record).frames].data, zlib.crc32(record[: UNIT - 4].data))


_columns = cast("Callable[[int, int, int], Columns]", numba.njit(columns, nogil=True, cache=True))


@kernel(
    numba.void(
        numba.uint8[::1],
        numba.from_dtype(HEADER)[::1],
        numba.int64[::1],
        numba.int64[::1],
        numba.int64,
        numba.uint16[::1],
        numba.float32[::1],
        numba.float32[::1],
        numba.uint8[::1],
        numba.uint32[::1],
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
    action: UInt16s,
    reward: Float32s,
    discount: Float32s,
    steps: UInt8s,
    window_crcs: UInt32s,
    frame_sizes: UInt32s,
    begins: Int64s,
) -> None:
    """Read the columns of keys[B] from the records at arena offsets records[B].

    Fills action .. window_crcs [B], begins[B] (arena offset of each window's first byte) and,
    as far as each window goes, frame_sizes[B, W]: the rest must be 0.
    """
    uint16, uint32, float32 = arena.view(np.uint16), arena.view(np.uint32), arena.view(np.float32)
    for j in range(len(keys)):
        header = headers[records[j] // UNIT]
        row = keys[j] - header.first_key
        at = _columns(header.transitions, header.frames, header.actor_bytes)
        steps[j] = arena[records[j] + at.steps + row]
        action[j] = uint16[(records[j] + at.action) // 2 + row]
        reward[j] = float32[(records[j] + at.reward) // 4 + row]
        discount[j] = float32[(records[j] + at.discount) // 4 + row]
        window_crcs[j] = uint32[(records[j] + at.window_crcs) // 4 + row]
        first = (records[j] + at.ends) // 4 + np.int64(uint16[(records[j] + at.first) // 2 + row])
        begins[j] = records[j] + at.frames + np.int64(uint32[first])
        for i in range(stack + np.int64(steps[j])):
            frame_sizes[j, i] = uint32[first + i + 1] - uint32[first + i]


@kernel(numba.void(numba.uint8[::1], numba.int64[::1], numba.int64[::1], numba.uint8[::1]))
def copy_windows(arena: UInt8s, begins: Int64s, window_bytes: Int64s, frames: UInt8s) -> None:
    """Copy window j, window_bytes[j] bytes from arena[begins[j]] on, behind window j - 1."""
    position = 0
    for j in range(len(begins)):
        # Slices, so that the loop below indexes from 0 and becomes a vector copy.
        source = arena[begins[j] : begins[j] + window_bytes[j]]
        target = frames[position : position + window_bytes[j]]
        for i in range(len(target)):
            target[i] = source[i]
        position += len(target)
