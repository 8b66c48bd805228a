"""Messages of the data path: segments, batches and priorities, encoded and decoded.

Columns and tables are little-endian bytes. Every `decode_*` raises `WireError`,
with the reason, if a message breaks the protocol. The data it returns are
consistent: indices are in bounds, values finite, and sizes checked.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from apex_zmq.types import (
    COLUMNS,
    TRANSITION,
    Batch,
    Buffer,
    FrameSpec,
    PriorityUpdate,
    Sample,
    Segment,
    Shipment,
    Transitions,
)
from apex_zmq.wire.body import Body, Name, Parts, UInt, decode_body, encode, require, require_finite
from apex_zmq.wire.checksums import frame_crcs, window_crcs
from apex_zmq.wire.codec import LIMITS, Kind, WireError, from_bytes, to_bytes, unpack

MAX_TRANSITIONS = 1024  # per segment
MAX_FRAMES = 1 << 16  # per segment, the range of a u16 index
MAX_BATCH = 1 << 16
_COLUMNS = [(name, TRANSITION[name]) for name in COLUMNS]


class FrameBody(Body, frozen=True):
    """Shape and encoding of the frames in a buffer part."""

    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 16)], ...], Meta(min_length=1, max_length=3)]
    dtype: Literal["uint8", "float32"]
    stack: Annotated[int, Meta(ge=1, le=64)]
    codec: Literal["lz4", "raw"]


class SegmentBody(Body, frozen=True):
    """Kind SEGMENT, actor to replay. Part 2: F encoded frames."""

    signature: Name
    actor: Name
    incarnation: UInt
    sequence: UInt
    frame: FrameBody
    frame_sizes: bytes  # u32[F]
    frame_crcs: bytes  # u32[F]
    transitions: bytes  # TRANSITION[T]


class BatchBody(Body, frozen=True):
    """Kind BATCH, replay to learner. Part 2: the windows' encoded frames."""

    learner_incarnation: UInt
    rank: UInt
    shard: UInt
    shard_incarnation: UInt
    number: UInt
    window: Annotated[int, Meta(ge=2, le=128)]
    num_transitions: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    mass: Annotated[float, Meta(gt=0)]
    frame: FrameBody
    keys: bytes  # u64[B]
    priority: bytes  # f64[B]
    transitions: bytes  # TRANSITION[B]
    frame_sizes: bytes  # u32[B, W]


class PrioritiesBody(Body, frozen=True):
    """Kind PRIORITIES, learner to replay."""

    learner_incarnation: UInt
    rank: UInt
    shard_incarnation: UInt
    acknowledged: UInt
    keys: bytes  # u64[B]
    td_error: bytes  # f32[B]
    retired: bytes  # u8[B]


def _frame_body(frame: FrameSpec) -> FrameBody:
    return FrameBody(
        shape=frame.shape,
        dtype="uint8" if frame.dtype == "uint8" else "float32",
        stack=frame.stack,
        codec="lz4" if frame.codec == "lz4" else "raw",
    )


def _frame_spec(body: FrameBody) -> FrameSpec:
    frame = FrameSpec(body.shape, body.dtype, body.stack)
    require(frame.codec == body.codec, f"{body.dtype} frames must be encoded as {frame.codec}, not {body.codec}")
    require(frame.nbytes <= LIMITS[Kind.SEGMENT][0], f"frame of {frame.nbytes} bytes is too large")
    return frame


def _check_frame_sizes(sizes: npt.NDArray[np.uint32], frame: FrameSpec, frames: Buffer) -> None:
    require(int(sizes.sum(dtype=np.uint64)) == len(frames), "frame sizes do not add up to the buffer")
    if frame.codec == "raw":
        require(np.isin(sizes, (0, frame.nbytes)).all(), "raw frame of wrong size")
    else:
        require((sizes <= frame.nbytes + frame.nbytes // 255 + 16).all(), "lz4 block above the maximum size of lz4")


def _to_columns(table: Transitions) -> bytes:
    """Encode a structured array by columns, which compress better than rows."""
    return b"".join(table[name].tobytes() for name in COLUMNS)


def _from_columns(data: bytes) -> Transitions:
    """Decode `_to_columns`; the number of rows follows from the number of bytes.

    Raises:
        WireError: not a whole number of rows.
    """
    rows, rest = divmod(len(data), TRANSITION.itemsize)
    require(not rest, f"transitions of {len(data)} bytes, not a multiple of {TRANSITION.itemsize}")
    table = np.empty(rows, TRANSITION)
    offset = 0
    for name, dtype in _COLUMNS:
        table[name] = np.frombuffer(data, dtype, rows, offset)
        offset += rows * dtype.itemsize
    return table


def _check_transitions(transitions: Transitions, n_step: int) -> None:
    """Raise WireError if a value is invalid. Actions are not checked: only the learner knows their number."""
    steps, discount, td_error = transitions["steps"], transitions["discount"], transitions["td_error"]
    require_finite(transitions["reward"], "reward")
    require(((discount >= 0) & (discount <= 1)).all(), "discount outside 0 to 1")
    require_finite(td_error, "td_error")
    require((td_error >= 0).all(), "negative td_error")
    require(((steps >= 1) & (steps <= n_step)).all(), f"steps outside 1 to {n_step}")


def encode_segment(shipment: Shipment, signature: str) -> list[Buffer]:
    """Encode a segment. signature: experience signature of the sender."""
    segment = shipment.segment
    body = SegmentBody(
        signature=signature,
        actor=shipment.actor,
        incarnation=shipment.incarnation,
        sequence=shipment.sequence,
        frame=_frame_body(segment.frame),
        frame_sizes=to_bytes(segment.frame_sizes, "<u4"),
        frame_crcs=to_bytes(segment.frame_crcs, "<u4"),
        transitions=_to_columns(segment.transitions),
    )
    return encode(Kind.SEGMENT, body, segment.frames)


class _ActorField(Struct):
    """Decodes the actor of a SEGMENT and ignores all other fields."""

    actor: Name


def actor_of(parts: Parts) -> str | None:
    """Return the actor of a SEGMENT that `decode_segment` has refused; None if it cannot be decoded."""
    try:
        return msgspec.msgpack.decode(unpack(parts[0])[1], type=_ActorField).actor
    except (WireError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def decode_segment(parts: Parts, signature: str, n_step: int) -> Shipment:
    """Decode a segment, and verify its checksums.

    Raises:
        WireError: another experience signature; invalid sizes, indices, checksums or values.
    """
    body = decode_body(parts, Kind.SEGMENT, SegmentBody, buffers=1)
    require(
        body.signature == signature,
        f"experience signature {body.signature[:16]!r} of actor {body.actor} differs from ours, {signature}; "
        "start it with this run's config",
    )
    num_frames = len(body.frame_sizes) // 4
    require(1 <= num_frames <= MAX_FRAMES, f"segment of {num_frames} frames, 1 to {MAX_FRAMES} allowed")
    transitions = _from_columns(body.transitions)
    count = len(transitions)
    require(1 <= count <= MAX_TRANSITIONS, f"segment of {count} transitions, 1 to {MAX_TRANSITIONS} allowed")
    segment = Segment(
        frame=_frame_spec(body.frame),
        frames=parts[1],
        frame_sizes=from_bytes(body.frame_sizes, "<u4", (num_frames,), "frame_sizes"),
        frame_crcs=from_bytes(body.frame_crcs, "<u4", (num_frames,), "frame_crcs"),
        transitions=transitions,
    )
    require(segment.frame_sizes.all(), "empty frame")
    _check_frame_sizes(segment.frame_sizes, segment.frame, segment.frames)
    _check_transitions(transitions, n_step)
    ends = transitions["first"].astype(np.int64) + transitions["steps"] + segment.frame.stack
    require(ends.max() <= num_frames, "window ends beyond the segment's frames")
    if segment.frame.codec == "raw":
        require_finite(np.frombuffer(segment.frames, "<f4"), "observation")
    _check_checksums(segment)
    return Shipment(body.actor, body.incarnation, body.sequence, segment)


def _check_checksums(segment: Segment) -> None:
    """Raise WireError if the CRC-32 of a frame or a window differs."""
    found = frame_crcs(segment.frames, segment.frame_sizes)
    require((found == segment.frame_crcs).all(), "frame_crcs differ from the frames: damaged in transit")
    first, steps = segment.transitions["first"], segment.transitions["steps"]
    expected = window_crcs(segment.frame_crcs, first, steps, segment.frame.stack)
    wrong = np.flatnonzero(segment.transitions["window_crc"] != expected)
    require(not len(wrong), f"window_crc of transition {wrong[:1]} differs from its frame_crcs")


def encode_batch(batch: Batch) -> list[Buffer]:
    """Encode a batch."""
    sample = batch.sample
    body = BatchBody(
        learner_incarnation=batch.learner_incarnation,
        rank=batch.rank,
        shard=batch.shard,
        shard_incarnation=batch.shard_incarnation,
        number=batch.number,
        window=sample.frame_sizes.shape[1],
        num_transitions=sample.num_transitions,
        mass=sample.mass,
        frame=_frame_body(sample.frame),
        keys=to_bytes(sample.keys, "<u8"),
        priority=to_bytes(sample.priority, "<f8"),
        transitions=_to_columns(sample.transitions),
        frame_sizes=to_bytes(sample.frame_sizes, "<u4"),
    )
    return encode(Kind.BATCH, body, sample.frames)


def decode_batch(parts: Parts, frame: FrameSpec, n_step: int) -> Batch:
    """Decode a batch. All fields are checked, except actions and window checksums.

    Raises:
        WireError: another frame or window than the learner's; invalid values.
    """
    body = decode_body(parts, Kind.BATCH, BatchBody, buffers=1)
    found = _frame_spec(body.frame)
    require(found == frame, f"batch of {found}, this learner expects {frame}")
    require(body.window == frame.stack + n_step, f"window of {body.window} frames, {frame.stack + n_step} expected")
    transitions = _from_columns(body.transitions)
    rows = len(transitions)
    require(1 <= rows <= MAX_BATCH, f"batch of {rows} rows, 1 to {MAX_BATCH} allowed")
    sample = Sample(
        num_transitions=body.num_transitions,
        mass=body.mass,
        frame=frame,
        keys=from_bytes(body.keys, "<u8", (rows,), "keys"),
        priority=from_bytes(body.priority, "<f8", (rows,), "priority"),
        transitions=transitions,
        frame_sizes=from_bytes(body.frame_sizes, "<u4", (rows, body.window), "frame_sizes"),
        frames=parts[1],
    )
    _check_frame_sizes(sample.frame_sizes, frame, sample.frames)
    _check_transitions(transitions, n_step)
    require(np.isfinite(sample.mass), "mass is not finite")
    require_finite(sample.priority, "priority")
    require((sample.priority > 0).all(), "priority not positive")
    filled = np.arange(body.window) < (transitions["steps"][:, None].astype(np.int64) + frame.stack)
    require(((sample.frame_sizes > 0) == filled).all(), "window without exactly stack + steps frames")
    return Batch(body.learner_incarnation, body.rank, body.shard, body.shard_incarnation, body.number, sample)


def encode_priorities(update: PriorityUpdate) -> list[Buffer]:
    """Encode an acknowledgement and new |TD errors|."""
    body = PrioritiesBody(
        learner_incarnation=update.learner_incarnation,
        rank=update.rank,
        shard_incarnation=update.shard_incarnation,
        acknowledged=update.acknowledged,
        keys=to_bytes(update.keys, "<u8"),
        td_error=to_bytes(update.td_error, "<f4"),
        retired=to_bytes(update.retired, "u1"),
    )
    return encode(Kind.PRIORITIES, body)


def decode_priorities(parts: Parts) -> PriorityUpdate:
    """Decode an acknowledgement and new |TD errors|.

    Raises:
        WireError: inconsistent sizes, values out of range.
    """
    body = decode_body(parts, Kind.PRIORITIES, PrioritiesBody)
    rows = len(body.keys) // 8
    require(rows <= MAX_BATCH, f"priorities of {rows} rows, at most {MAX_BATCH} allowed")
    keys = from_bytes(body.keys, "<u8", (rows,), "keys")
    td_error = from_bytes(body.td_error, "<f4", (rows,), "td_error")
    retired = from_bytes(body.retired, "u1", (rows,), "retired")
    require_finite(td_error, "td_error")
    require((td_error >= 0).all(), "negative td_error")
    require((retired <= 1).all(), "retired is neither 0 nor 1")
    return PriorityUpdate(
        learner_incarnation=body.learner_incarnation,
        rank=body.rank,
        shard_incarnation=body.shard_incarnation,
        acknowledged=body.acknowledged,
        keys=keys,
        td_error=td_error,
        retired=retired.view(np.bool_),
    )
