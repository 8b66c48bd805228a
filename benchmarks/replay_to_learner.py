"""Measure batches of 512 per second from a replay process to decoded buffers in the learner's; peer: Reverb.

Frame set mario-84, stack 4, n 3, 50,000 transitions stored; priorities are returned for every batch, on both sides.
Reverb serves the same windows of 7 frames to its own TensorFlow client; its best of chunk lengths 1, 8 and 40 counts.
"""

from __future__ import annotations

import statistics

from benchmarks import mario_frames, synthetic
from benchmarks.rows import Row, main, peer, versus

STORED = 50_000
ROUNDS = 3
WARM_UP_S = 2.0
SECONDS = 8.0
CHUNK_LENGTHS = (1, 8, 40)


def measure() -> list[Row]:
    ours: list[float] = []
    reverb: dict[int, list[float]] = {}
    for _ in range(ROUNDS):
        ours.append(our_batches_per_s())
        for chunk_length in CHUNK_LENGTHS:
            served = peer("reverb_sample", mario_frames.cached(), chunk_length, STORED, WARM_UP_S, SECONDS)
            if served is not None:
                reverb.setdefault(chunk_length, []).append(served["batches_per_s"])
    best = max(reverb, key=lambda length: statistics.median(reverb[length]), default=0)
    what = "batches of 512, replay to learner, decoded, priorities returned"
    if reverb:
        what += f"; peer: Reverb, chunks of {best}"
    return [versus("replay_to_learner", what, ours, reverb.get(best, []), 4.0, "batches/s")]


def our_batches_per_s() -> float:
    with synthetic.replay({"replay.min_size": STORED}) as running:
        sent = synthetic.messages(mario_frames.segments(mario_frames.play()), running.config)
        synthetic.fill(running, sent, STORED)
        learner = synthetic.SyntheticLearner(running.config)
        rate = learner.batches_per_s(WARM_UP_S, SECONDS)
        learner.close()
    return rate


if __name__ == "__main__":
    main(measure)
