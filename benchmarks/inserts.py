"""Measure inserts per second by synthetic actors over loopback TCP into one replay process; peer: Reverb.

Segments of 32 from the frame set mario-84 are checked and stored with priorities. Reverb's trajectory writer inserts
the same windows; its best of chunk lengths 1, 8 and 40 with one and two writers counts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks import mario_frames, synthetic
from benchmarks.rows import Row, main, peer, versus

ROUNDS = 3
CONNECTIONS = 8
SECONDS = 8.0
CHUNK_LENGTHS = (1, 8, 40)
WRITERS = (1, 2)


def measure() -> list[Row]:
    ours: list[float] = []
    reverb: dict[tuple[int, int], list[float]] = {}
    for _ in range(ROUNDS):
        ours.append(our_inserts_per_s())
        for chunk_length in CHUNK_LENGTHS:
            for writers in WRITERS:
                inserted = peer("reverb_insert", mario_frames.cached(), chunk_length, writers, SECONDS)
                if inserted is not None:
                    reverb.setdefault((chunk_length, writers), []).append(inserted["inserts_per_s"])
    best = max(reverb, key=lambda kind: statistics.median(reverb[kind]), default=(0, 0))
    what = "transitions inserted over loopback TCP into one replay process"
    if reverb:
        what += f"; peer: Reverb, chunks of {best[0]}, writers: {best[1]}"
    return [versus("inserts", what, ours, reverb.get(best, []), 10.0, "transitions/s")]


def our_inserts_per_s() -> float:
    with synthetic.replay({}) as running:
        addresses = running.config.addresses.experience
        senders = subprocess.Popen([sys.executable, "-m", "benchmarks.senders", str(CONNECTIONS), "0", *addresses])
        running.await_total("inserts", 20_000)
        rate = running.rate("inserts", SECONDS)
        senders.terminate()
        senders.wait()
    return rate


if __name__ == "__main__":
    main(measure)
