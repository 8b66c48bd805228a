"""What travels on the data path: segments of experience, batches and priorities; a struct and its bytes for each.

Every `decode_*` raises `WireError` with the reason for whatever breaks the
protocol, and returns data that is consistent in itself: no index out of
bounds, no value that is not finite, no size that was not checked.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from apex_zmq.types import Batch, Buffer, FrameSpec, PriorityUpdate, Sample, Segment
from apex_zmq.wire.body import Body, Name, Parts, UInt, decode_body, encode, require, require_finite
from apex_zmq.wire.checksums import frame_crc
from apex_zmq.wire.codec import LIMITS, Kind, WireError, from_bytes, to_bytes, unpack

MAX_TRANSITIONS = 1024  # per segment
MAX_FRAMES = 1 << 16  # per segment: a u16 index reaches no further
MAX_BATCH = 1 << 16


class FrameBody(Body, frozen=True):
    """Declares the frames of a buffer part."""

    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 16)], ...], Meta(min_length=1, max_length=3)]
    dtype: Literal["uint8", "float32"]
    stack: Annotated[int, Meta(ge=1, le=64)]
    codec: Literal["lz4", "raw"]


class SegmentBody(Body, frozen=True):
    """Kind SEGMENT, actor to replay. Part 2: F encoded frames. Columns are little-endian bytes."""

    signature: Name
    actor: Name
    incarnation: UInt
    sequence: UInt
    transitions: Annotated[int, Meta(ge=1, le=MAX_TRANSITIONS)]
    frame: FrameBody
    frame_sizes: bytes  # u32[F]
    frame_crcs: bytes  # u32[F]
    first: bytes  # u16[T]
    steps: bytes  # u8[T]
    action: bytes  # u16[T]
    reward: bytes  # f32[T]
    discount: bytes  # f32[T]
    td_error: bytes  # f32[T]
    window_crcs: bytes  # u32[T]


class BatchBody(Body, frozen=True):
    """Kind BATCH, replay to learner. Part 2: the windows' encoded frames."""

    learner_incarnation: UInt
    rank: UInt
    shard: UInt
    shard_incarnation: UInt
    number: UInt
    rows: Annotated[int, Meta(ge=1, le=MAX_BATCH)]
    window: Annotated[int, Meta(ge=2, le=128)]
    num_transitions: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    mass: Annotated[float, Meta(gt=0)]
    frame: FrameBody
    keys: bytes  # u64[B]
    priority: bytes  # f64[B]
    action: bytes  # u16[B]
    reward: bytes  # f32[B]
    discount: bytes  # f32[B]
    steps: bytes  # u8[B]
    window_crcs: bytes  # u32[B]
    frame_sizes: bytes  # u32[B, W]


class PrioritiesBody(Body, frozen=True):
    """Kind PRIORITIES, learner to replay."""

    learner_incarnation: UInt
    rank: UInt
    shard_incarnation: UInt
    number: UInt
    rows: Annotated[int, Meta(ge=0, le=MAX_BATCH)]
    keys: bytes  # u64[B]
    td_error: bytes  # f32[B]


def _frame_body(frame: FrameSpec) -> FrameBody:
    return FrameBody(
        shape=frame.shape,
        dtype="uint8" if frame.dtype == "uint8" else "float32",
        stack=frame.stack,
        codec="lz4" if frame.codec == "lz4" else "raw",
    )


def _frame_spec(body: FrameBody) -> FrameSpec:
    frame = FrameSpec(body.shape, body.dtype, body.stack)
    require(frame.codec == body.codec, f"{body.dtype} frames travel as {frame.codec}, not {body.codec}")
    require(frame.nbytes <= LIMITS[Kind.SEGMENT][0], f"frame of {frame.nbytes} bytes is too large")
    return frame


def _check_frame_sizes(sizes: npt.NDArray[np.uint32], frame: FrameSpec, frames: Buffer) -> None:
    require(int(sizes.sum(dtype=np.uint64)) == len(frames), "frame sizes do not add up to the buffer")
    if frame.codec == "raw":
        require(np.isin(sizes, (0, frame.nbytes)).all(), "raw frame of a wrong size")
    else:
        require((sizes <= frame.nbytes + frame.nbytes // 255 + 16).all(), "an lz4 block larger than lz4 makes any")


def encode_segment(segment: Segment, signature: str) -> list[Buffer]:
    """A segment under the sender's experience signature."""
    body = SegmentBody(
        signature=signature,
        actor=segment.actor,
        incarnation=segment.incarnation,
        sequence=segment.sequence,
        transitions=segment.num_transitions,
        frame=_frame_body(segment.frame),
        frame_sizes=to_bytes(segment.frame_sizes, "<u4"),
        frame_crcs=to_bytes(segment.frame_crcs, "<u4"),
        first=to_bytes(segment.first, "<u2"),
        steps=to_bytes(segment.steps, "u1"),
        action=to_bytes(segment.action, "<u2"),
        reward=to_bytes(segment.reward, "<f4"),
        discount=to_bytes(segment.discount, "<f4"),
        td_error=to_bytes(segment.td_error, "<f4"),
        window_crcs=to_bytes(segment.window_crcs, "<u4"),
    )
    return encode(Kind.SEGMENT, body, segment.frames)


class _Named(Struct):
    """The field of a SEGMENT that names its sender, whatever else it holds."""

    actor: Name


def actor_of(parts: Parts) -> str | None:
    """The actor that a SEGMENT refused by `decode_segment` names; None where it names none."""
    try:
        return msgspec.msgpack.decode(unpack(parts[0])[1], type=_Named).actor
    except (WireError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def decode_segment(parts: Parts, signature: str, n_step: int) -> Segment:
    """A segment that a store can trust.

    Raises:
        WireError: another experience signature; sizes, indices, checksums or values that do not fit.
    """
    body = decode_body(parts, Kind.SEGMENT, SegmentBody, buffers=1)
    require(
        body.signature == signature,
        f"experience signature {body.signature[:16]!r} of actor {body.actor} differs from ours, {signature}: "
        "start it with this run's config",
    )
    count = body.transitions
    num_frames = len(body.frame_sizes) // 4
    require(1 <= num_frames <= MAX_FRAMES, f"segment of {num_frames} frames")
    segment = Segment(
        actor=body.actor,
        incarnation=body.incarnation,
        sequence=body.sequence,
        frame=_frame_spec(body.frame),
        frames=parts[1],
        frame_sizes=from_bytes(body.frame_sizes, "<u4", (num_frames,), "frame_sizes"),
        frame_crcs=from_bytes(body.frame_crcs, "<u4", (num_frames,), "frame_crcs"),
        first=from_bytes(body.first, "<u2", (count,), "first"),
        steps=from_bytes(body.steps, "u1", (count,), "steps"),
        action=from_bytes(body.action, "<u2", (count,), "action"),
        reward=from_bytes(body.reward, "<f4", (count,), "reward"),
        discount=from_bytes(body.discount, "<f4", (count,), "discount"),
        td_error=from_bytes(body.td_error, "<f4", (count,), "td_error"),
        window_crcs=from_bytes(body.window_crcs, "<u4", (count,), "window_crcs"),
    )
    require(segment.frame_sizes.all(), "empty frame")
    _check_frame_sizes(segment.frame_sizes, segment.frame, segment.frames)
    steps = segment.steps
    require(((steps >= 1) & (steps <= n_step)).all(), f"steps outside 1 to {n_step}")
    ends = segment.first.astype(np.int64) + steps + segment.frame.stack
    require(ends.max() <= num_frames, "observation beyond the segment's frames")
    require_finite(segment.reward, "reward")
    require(((segment.discount >= 0) & (segment.discount <= 1)).all(), "discount outside 0 to 1")
    require_finite(segment.td_error, "td_error")
    require((segment.td_error >= 0).all(), "negative td_error")
    if segment.frame.codec == "raw":
        require_finite(np.frombuffer(segment.frames, "<f4"), "observation")
    view = memoryview(segment.frames)
    borders = itertools.pairwise(itertools.accumulate(segment.frame_sizes.tolist(), initial=0))
    found = [frame_crc(view[start:stop]) for start, stop in borders]
    require(found == segment.frame_crcs.tolist(), "frame damaged on the way")
    return segment


def encode_batch(batch: Batch) -> list[Buffer]:
    """A batch as a replay shard deals it."""
    sample = batch.sample
    rows, window = sample.frame_sizes.shape
    body = BatchBody(
        learner_incarnation=batch.learner_incarnation,
        rank=batch.rank,
        shard=batch.shard,
        shard_incarnation=batch.shard_incarnation,
        number=batch.number,
        rows=rows,
        window=window,
        num_transitions=sample.num_transitions,
        mass=sample.mass,
        frame=_frame_body(sample.frame),
        keys=to_bytes(sample.keys, "<u8"),
        priority=to_bytes(sample.priority, "<f8"),
        action=to_bytes(sample.action, "<u2"),
        reward=to_bytes(sample.reward, "<f4"),
        discount=to_bytes(sample.discount, "<f4"),
        steps=to_bytes(sample.steps, "u1"),
        window_crcs=to_bytes(sample.window_crcs, "<u4"),
        frame_sizes=to_bytes(sample.frame_sizes, "<u4"),
    )
    return encode(Kind.BATCH, body, sample.frames)


def decode_batch(parts: Parts, frame: FrameSpec, n_step: int) -> Batch:
    """A batch whose every field a learner can use without looking again, but for the actions, of any number.

    Raises:
        WireError: another frame or window than the learner's; values that do not fit.
    """
    body = decode_body(parts, Kind.BATCH, BatchBody, buffers=1)
    found = _frame_spec(body.frame)
    require(found == frame, f"batch of {found}, this learner expects {frame}")
    require(body.window == frame.stack + n_step, f"window of {body.window} frames, {frame.stack + n_step} expected")
    rows = body.rows
    sample = Sample(
        num_transitions=body.num_transitions,
        mass=body.mass,
        frame=frame,
        keys=from_bytes(body.keys, "<u8", (rows,), "keys"),
        priority=from_bytes(body.priority, "<f8", (rows,), "priority"),
        action=from_bytes(body.action, "<u2", (rows,), "action"),
        reward=from_bytes(body.reward, "<f4", (rows,), "reward"),
        discount=from_bytes(body.discount, "<f4", (rows,), "discount"),
        steps=from_bytes(body.steps, "u1", (rows,), "steps"),
        window_crcs=from_bytes(body.window_crcs, "<u4", (rows,), "window_crcs"),
        frame_sizes=from_bytes(body.frame_sizes, "<u4", (rows, body.window), "frame_sizes"),
        frames=parts[1],
    )
    _check_frame_sizes(sample.frame_sizes, frame, sample.frames)
    require(np.isfinite(sample.mass), "mass is not finite")
    require_finite(sample.priority, "priority")
    require((sample.priority > 0).all(), "priority not positive")
    require_finite(sample.reward, "reward")
    require(((sample.discount >= 0) & (sample.discount <= 1)).all(), "discount outside 0 to 1")
    require(((sample.steps >= 1) & (sample.steps <= n_step)).all(), f"steps outside 1 to {n_step}")
    filled = np.arange(body.window) < (sample.steps[:, None].astype(np.int64) + frame.stack)
    require(((sample.frame_sizes > 0) == filled).all(), "a window has not exactly stack + steps frames")
    return Batch(body.learner_incarnation, body.rank, body.shard, body.shard_incarnation, body.number, sample)


def encode_priorities(update: PriorityUpdate) -> list[Buffer]:
    """New |TD errors|, or an empty acknowledgement."""
    body = PrioritiesBody(
        learner_incarnation=update.learner_incarnation,
        rank=update.rank,
        shard_incarnation=update.shard_incarnation,
        number=update.number,
        rows=len(update.keys),
        keys=to_bytes(update.keys, "<u8"),
        td_error=to_bytes(update.td_error, "<f4"),
    )
    return encode(Kind.PRIORITIES, body)


def decode_priorities(parts: Parts) -> PriorityUpdate:
    """Raises: WireError: sizes that disagree, values that are not finite."""
    body = decode_body(parts, Kind.PRIORITIES, PrioritiesBody)
    keys = from_bytes(body.keys, "<u8", (body.rows,), "keys")
    td_error = from_bytes(body.td_error, "<f4", (body.rows,), "td_error")
    require_finite(td_error, "td_error")
    return PriorityUpdate(body.learner_incarnation, body.rank, body.shard_incarnation, body.number, keys, td_error)
