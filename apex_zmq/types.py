"""The plain data that travels between roles: shapes and dtypes, stated once.

Notation: T transitions and F frames in a segment, B rows in a batch, n the
n-step horizon, s the frames stacked in one observation, W = s + n the frames
of a window. All multi-byte values are little-endian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """What one stored frame is; an observation is `stack` consecutive frames.

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
        """How a frame travels: "lz4" (one lz4 block) for images, "raw" for vectors."""
        return "lz4" if self.dtype == "uint8" else "raw"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of consecutive steps of one lane, as an actor ships it.

    Frames are stored once each, in the order the lane saw them: the reset frame
    `stack` times, then one frame per step, the final observation included. The
    observation of transition t is frames[first[t] : first[t] + stack]; its next
    observation is the same run `steps[t]` frames later. A segment may cross
    episode ends.
    """

    actor: str
    incarnation: int  # random, new at every start of the actor process
    sequence: int  # counts this actor's segments to this shard, from 0
    frame: FrameSpec
    frames: Buffer  # F encoded frames, concatenated
    frame_sizes: UInt32s  # [F] bytes of each encoded frame
    frame_crcs: UInt32s  # [F] CRC-32 (zlib's polynomial) of each encoded frame
    first: UInt16s  # [T] index of the first frame of the observation
    steps: npt.NDArray[np.uint8]  # [T] k, frames from observation to next observation, 1..n
    action: UInt16s  # [T]
    reward: Float32s  # [T] n-step return: sum of gamma^i r_(t+i), i < k
    discount: Float32s  # [T] gamma^k, or 0 where the episode terminated within k steps
    td_error: Float32s  # [T] initial |TD error|, >= 0
    window_crcs: UInt32s  # [T] CRC-32 over the CRC-32s, u32 each, of the s + k frames of the window, in order

    @property
    def num_transitions(self) -> int:
        """T."""
        return len(self.action)


@dataclass(frozen=True, slots=True)
class Sample:
    """B transitions drawn in proportion to priority, frames still encoded."""

    num_transitions: int  # N_s, live transitions in the shard
    mass: float  # M_s, sum of all stored priorities in the shard
    frame: FrameSpec
    keys: UInt64s  # [B]
    priority: Float64s  # [B] p_i = (|TD| + eps)^alpha as stored
    action: UInt16s  # [B]
    reward: Float32s  # [B]
    discount: Float32s  # [B]
    steps: npt.NDArray[np.uint8]  # [B]
    window_crcs: UInt32s  # [B] as the actor made them
    frame_sizes: UInt32s  # [B, W] bytes of each encoded frame; 0 where a short window is padded
    frames: Buffer  # all windows' encoded frames, concatenated row by row


@dataclass(frozen=True, slots=True)
class Batch:
    """A sample, and to whom a replay shard deals it."""

    learner_incarnation: int  # of the learner
    rank: int  # of the learner process
    shard: int
    shard_incarnation: int  # random, new at every start of the shard
    number: int  # counts batches per (shard, rank) within an incarnation, from 0
    sample: Sample


@dataclass(frozen=True, slots=True)
class PriorityUpdate:
    """New |TD errors| for the rows of one batch; acknowledges all batches up to `number`.

    Empty arrays acknowledge a skipped batch. A negative td_error retires its
    transition: it is never sampled again.
    """

    learner_incarnation: int
    rank: int
    shard_incarnation: int
    number: int
    keys: UInt64s  # [B]
    td_error: Float32s  # [B]
