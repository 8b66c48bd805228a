"""Messages that are one struct each: HELLO, PARAMETERS, HEARTBEAT, STATUS, BYE.

Every `decode_*` raises `WireError`, with the reason, if a message breaks the protocol.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, field

from apex_zmq.wire.body import Body, Name, OpenBody, Parts, UInt, decode_body, require, require_finite
from apex_zmq.wire.codec import Kind, from_bytes, to_bytes

Role = Literal["actor", "replay", "learner", "forwarder"]
InfoName = Annotated[str, Meta(min_length=1, max_length=32)]
REASON_LENGTH = 200  # characters of `Refusal.reason`
MAX_STAGES = 64  # of `Status.archive`
MAX_COUNT = 1 << 30  # of a bucket of a histogram
Counts = Annotated[tuple[Annotated[int, Meta(ge=0, le=MAX_COUNT)], ...], Meta(min_length=1, max_length=64)]
Dimension = Annotated[int, Meta(ge=1, le=1 << 30)]


class Hello(Body, frozen=True):
    """Kind HELLO, learner to replay, repeated: requests batches for a rank. The highest incarnation gets them."""

    run: Name
    learner_incarnation: UInt
    rank: UInt
    signature: Name


class Tensor(Body, frozen=True):
    """One named parameter."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    dtype: Literal["float32"]
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=8)]
    data: bytes


class Parameters(Body, frozen=True):
    """Kind PARAMETERS, learner to all, one part."""

    run: Name
    learner_incarnation: UInt
    version: UInt  # counts publications within an incarnation
    update: UInt  # the learner's gradient steps so far
    network_signature: Name
    experience_signature: Name
    tensors: Annotated[tuple[Tensor, ...], Meta(max_length=4096)]


class Heartbeat(OpenBody, frozen=True):
    """Kind HEARTBEAT, learner to all: the version of the newest parameters."""

    run: Name
    learner_incarnation: UInt
    version: UInt
    update: UInt


class Episode(OpenBody, frozen=True):
    """One finished episode.

    stage: label of the part of the environment in which it ended; empty: the environment has no parts.
    info: numbers that the environment reports about the episode, by name.
    """

    episode_return: float
    length: UInt  # decisions
    epsilon: Annotated[float, Meta(ge=0, le=1)]
    stage: Annotated[str, Meta(max_length=32)] = ""
    info: Annotated[dict[InfoName, float], Meta(max_length=16)] = field(default_factory=dict)


class Refusal(Body, frozen=True):
    """Number of segments of one actor that a shard has refused since its start."""

    actor: Name
    segments: UInt
    reason: Annotated[str, Meta(max_length=REASON_LENGTH)]  # of the last one


class StageArchive(Body, frozen=True):
    """Histograms over progress in one stage: bucket i covers progress from `i * width` up to `(i + 1) * width`.

    stage: label; empty: the environment has no parts. width: in the environment's unit of progress. frontier: cells of
    the archive of saved states. ends: recent ends of low-epsilon episodes from the real start; as many buckets.
    """

    stage: Annotated[str, Meta(max_length=32)]
    width: Annotated[float, Meta(gt=0)]
    frontier: Counts
    ends: Counts


class Status(OpenBody, frozen=True, omit_defaults=True):
    """Kinds STATUS (role to learner) and RELAYED_STATUS (learner to all)."""

    role: Role
    name: Name
    host: Annotated[str, Meta(max_length=256)]
    pid: UInt
    incarnation: UInt
    start_time: float  # unix seconds at the start of the process
    time: float  # unix seconds at sending
    progress_time: float  # unix seconds of the main loop's last progress
    metrics: Annotated[dict[Name, float], Meta(max_length=256)]
    episodes: Annotated[tuple[Episode, ...], Meta(max_length=4096)] = ()
    refusals: Annotated[tuple[Refusal, ...], Meta(max_length=16)] = ()  # of a shard
    archive: Annotated[tuple[StageArchive, ...], Meta(max_length=MAX_STAGES)] = ()  # of an actor, or summed over actors


class Bye(Body, frozen=True):
    """Kind BYE, actor to replay, its last message: the number of segments sent to this shard."""

    actor: Name
    incarnation: UInt
    count: UInt


def decode_hello(parts: Parts) -> Hello:
    """Decode a HELLO."""
    return decode_body(parts, Kind.HELLO, Hello)


def make_tensors(arrays: dict[str, npt.NDArray[Any]]) -> tuple[Tensor, ...]:
    """Encode named float32 arrays."""
    return tuple(
        Tensor(name=name, dtype="float32", shape=array.shape, data=to_bytes(array, "<f4"))
        for name, array in arrays.items()
    )


def decode_parameters(parts: Parts) -> tuple[Parameters, dict[str, npt.NDArray[Any]]]:
    """Decode parameters, and their tensors as read-only arrays by name.

    Raises:
        WireError: inconsistent sizes, values that are not finite, a repeated name.
    """
    body = decode_body(parts, Kind.PARAMETERS, Parameters)
    arrays = {}
    for tensor in body.tensors:
        arrays[tensor.name] = from_bytes(tensor.data, "<f4", tensor.shape, tensor.name)
        require_finite(arrays[tensor.name], tensor.name)
    require(len(arrays) == len(body.tensors), "two tensors have the same name")
    return body, arrays


def decode_heartbeat(parts: Parts) -> Heartbeat:
    """Decode a HEARTBEAT."""
    return decode_body(parts, Kind.HEARTBEAT, Heartbeat)


def decode_bye(parts: Parts) -> Bye:
    """Decode a BYE."""
    return decode_body(parts, Kind.BYE, Bye)


def decode_status(parts: Parts) -> Status:
    """Decode a STATUS; all its numbers must be finite."""
    return _decode_status(parts, Kind.STATUS)


def decode_relayed_status(parts: Parts) -> Status:
    """Decode a RELAYED_STATUS; all its numbers must be finite."""
    return _decode_status(parts, Kind.RELAYED_STATUS)


def _decode_status(parts: Parts, kind: Kind) -> Status:
    status = decode_body(parts, kind, Status)
    numbers = [status.start_time, status.time, status.progress_time, *status.metrics.values()]
    for episode in status.episodes:
        numbers += [episode.episode_return, *episode.info.values()]
    numbers += [each.width for each in status.archive]
    require(np.isfinite(numbers).all(), f"status of {status.name} is not finite")
    for each in status.archive:
        require(len(each.frontier) == len(each.ends), f"histograms of {each.stage!r} differ in length")
    return status
