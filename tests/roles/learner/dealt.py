"""Batches as a shard deals them, of made-up rows of vectors."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

from apex_zmq.types import TRANSITION, Batch, FrameSpec, Sample
from apex_zmq.wire.checksums import window_crcs

N_STEP, WIDTH = 3, 4
FRAME = FrameSpec((WIDTH,), "float32", 1)


def dealt(
    rows: int,
    *,
    incarnation: int,
    number: int = 0,
    nan: Iterable[int] = (),
    corrupted: Iterable[int] = (),
    action: Iterable[int] = (),
) -> Batch:
    """A batch of one shard to rank 0 whose frames depend on its number.

    nan: rows with a frame that is not finite. corrupted: rows whose checksums are not those of their frames.
    action: of each row; none: 0.
    """
    frames = np.random.default_rng(number).normal(size=(rows, 1 + N_STEP, WIDTH)).astype("<f4")
    frames[list(nan), 1, 2] = np.nan
    frame_crcs = np.array([zlib.crc32(frame.tobytes()) for frame in frames.reshape(-1, WIDTH)], np.uint32)
    steps = np.full(rows, N_STEP, np.uint8)
    crcs = window_crcs(frame_crcs, np.arange(rows) * (1 + N_STEP), steps, FRAME.stack)
    crcs[list(corrupted)] += 1
    transitions = np.zeros(rows, TRANSITION)
    transitions["reward"], transitions["steps"], transitions["window_crc"] = 1.0, steps, crcs
    for row, value in enumerate(action):
        transitions["action"][row] = value
    sample = Sample(
        num_transitions=100,
        mass=100.0,
        frame=FRAME,
        keys=np.arange(rows, dtype=np.uint64),
        priority=np.ones(rows),
        transitions=transitions,
        frame_sizes=np.full((rows, 1 + N_STEP), FRAME.nbytes, np.uint32),
        frames=frames.tobytes(),
    )
    return Batch(incarnation, rank=0, shard=0, shard_incarnation=1, number=number, sample=sample)
