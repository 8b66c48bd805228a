"""Measure resident bytes of a replay process per stored transition, at 2 million of them; peer: Reverb's server.

The frame set mario-84 is inserted repeatedly; resident memory is the kernel's count for the process.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks import mario_frames, synthetic
from benchmarks.rows import Row, main, peer, versus

STORED = 2_000_000
REVERB_STORED = 200_000
TARGET_BYTES = 1600.0


def measure() -> list[Row]:
    our = our_bytes_per_transition()
    theirs = peer("reverb_memory", mario_frames.cached(), 40, REVERB_STORED)
    row = versus(
        "memory",
        f"resident bytes per transition at {STORED:,}; target in bytes; "
        f"peer: Reverb's at {REVERB_STORED:,}, chunks of 40",
        [our],
        [theirs["bytes_per_item"]] if theirs is not None else [],
        TARGET_BYTES,
        "B",
        less_is_better=True,
    )
    return [replace(row, met=our <= TARGET_BYTES)]


def our_bytes_per_transition() -> float:
    with synthetic.replay({"replay.capacity": STORED}) as running:
        sent = synthetic.messages(mario_frames.segments(mario_frames.play()), running.config)
        synthetic.fill(running, sent, STORED + 10 * running.config.actor.segment_length)
        return running.total("rss_bytes") / running.total("size")


if __name__ == "__main__":
    main(measure)
