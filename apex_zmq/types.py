"""Data exchanged between roles, with shapes and dtypes.

Notation: T transitions and F frames in a segment, B rows in a batch, n the
n-step horizon, s the frames stacked in one observation, W = s + n the frames
of a window. All multi-byte values are little-endian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Buffer = bytes | bytearray | memoryview
UInt8s = npt.NDArray[np.uint8]
UInt16s = npt.NDArray[np.uint16]
UInt32s = npt.NDArray[np.uint32]
UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Transitions = npt.NDArray[np.void]  # of TRANSITION

# One n-step transition; segments, stored records and batches contain arrays of it.
# The order of the fields is part of the wire and disk formats: docs/PROTOCOL.md, section 6.
TRANSITION = np.dtype(
    [
        ("reward", "<f4"),  # n-step return: sum of gamma^i r_(t+i), i < k
        ("discount", "<f4"),  # gamma^k, or 0 if the episode terminated within k steps
        ("td_error", "<f4"),  # initial |TD error|, >= 0
        ("window_crc", "<u4"),  # CRC-32 over the CRC-32s, u32 each, of the s + k frames of the window, in order
        ("first", "<u2"),  # index of the observation's first frame in its segment
        ("action", "<u2"),
        ("steps", "u1"),  # k, frames from observation to next observation, 1..n
    ]
)
COLUMNS: tuple[str, ...] = TRANSITION.names or ()  # of TRANSITION, in order


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """Shape and dtype of one stored frame; an observation is `stack` consecutive frames.

    shape: (H, W) or (C, H, W) for images, (D,) for vectors.
    dtype: "uint8" for images, "float32" for vectors.
    stack: frames per observation, >= 1.
    """

    shape: tuple[int, ...]
    dtype: str
    stack: int

    @property
    def nbytes(self) -> int:
        """Bytes of one decoded frame."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def codec(self) -> str:
        """Encoding of a frame on the wire: "lz4" (one lz4 block) for images, "raw" for vectors."""
        return "lz4" if self.dtype == "uint8" else "raw"

    def observation_of(self, frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[s, *shape] the observation at the start of an episode: its first frame, repeated."""
        return np.repeat(frame[None], self.stack, axis=0)


@dataclass(frozen=True, slots=True)
class Segment:
    """Transitions of consecutive steps of one lane, and their frames.

    Each frame is stored once, in order of time: the reset frame `stack` times, then
    one frame per step, including the final observation. The observation of
    transition t is frames[first[t] : first[t] + stack]; its next observation starts
    `steps[t]` frames later. A segment may cross episode ends.
    """

    frame: FrameSpec
    frames: Buffer  # F encoded frames, concatenated
    frame_sizes: UInt32s  # [F] bytes of each encoded frame
    frame_crcs: UInt32s  # [F] CRC-32 (zlib's polynomial) of each encoded frame
    transitions: Transitions  # [T] of TRANSITION

    @property
    def num_transitions(self) -> int:
        """T."""
        return len(self.transitions)


@dataclass(frozen=True, slots=True)
class Shipment:
    """A segment, and the actor process that sent it."""

    actor: str
    incarnation: int  # random, new at every start of the actor process
    sequence: int  # counts this incarnation's segments to this shard, from 0
    segment: Segment


@dataclass(frozen=True, slots=True)
class Sample:
    """B transitions drawn in proportion to priority, frames still encoded."""

    num_transitions: int  # N_s, live transitions in the shard
    mass: float  # M_s, sum of all stored priorities in the shard
    frame: FrameSpec
    keys: UInt64s  # [B]
    priority: Float64s  # [B] p_i = (|TD| + eps)^alpha as stored
    transitions: Transitions  # [B] of TRANSITION as sent by the actor; `first` is an index in the former segment
    frame_sizes: UInt32s  # [B, W] bytes of each encoded frame; 0 where a short window is padded
    frames: Buffer  # all windows' encoded frames, concatenated row by row


@dataclass(frozen=True, slots=True)
class Batch:
    """A sample, and the learner process that receives it from a replay shard."""

    learner_incarnation: int
    rank: int  # of the learner process
    shard: int
    shard_incarnation: int  # random, new at every start of the shard
    number: int  # counts batches per (shard, rank) within a learner_incarnation, from 0
    sample: Sample


@dataclass(frozen=True, slots=True)
class PriorityUpdate:
    """Acknowledgement of batches, and new priorities of B transitions; B may be 0."""

    learner_incarnation: int
    rank: int
    shard_incarnation: int
    acknowledged: int  # number of a batch: the rank has received it and all before it
    keys: UInt64s  # [B]
    td_error: Float32s  # [B] new |TD error|, >= 0; ignored where retired
    retired: Bools  # [B] True: the transition must never be sampled again
