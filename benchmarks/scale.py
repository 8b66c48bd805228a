"""Measure accepted rate and latency of 1 to 512 connections that offer 12,500 transitions/s to one and two shards.

Time from sending to storing is measured by the monotonic clock, which all processes of a machine share: the sender
writes it into the segment's `incarnation` field, and the replay server of `timed_replay` records the difference.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import mario_frames, synthetic
from benchmarks.replay_to_learner import STORED
from benchmarks.replay_to_learner_while_inserting import INSERTS_PER_S
from benchmarks.rows import Row, main, versus

CONNECTIONS = (1, 16, 64, 256, 512)
SHARDS = (1, 2)
WARM_UP_S = 2.0
SECONDS = 8.0


def measure() -> list[Row]:
    return [one(connections, shards) for shards in SHARDS for connections in CONNECTIONS]


def one(connections: int, shards: int) -> Row:
    settings = {"replay.shards": shards, "replay.min_size": STORED}
    with synthetic.replay(settings, module="benchmarks.timed_replay") as running:
        sent = synthetic.messages(mario_frames.segments(mario_frames.play()), running.config)
        synthetic.fill(running, sent, STORED)
        addresses = running.config.addresses.experience
        senders = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.senders", str(connections), str(INSERTS_PER_S), *addresses]
        )
        learner = synthetic.SyntheticLearner(running.config)
        running.await_total("inserts", STORED + INSERTS_PER_S)  # the senders have begun
        learner.batches_per_s(WARM_UP_S, 0.0)
        before, since = running.total("inserts"), time.monotonic()
        batches = learner.batches_per_s(0.0, SECONDS)
        accepted = (running.total("inserts") - before) / (time.monotonic() - since)
        resident = running.total("rss_bytes")
        learner.close()
        senders.terminate()
        senders.wait()
        paths = [Path(f"{running.path}.{shard}.npy") for shard in range(shards)]
        running.stop()
        latency_ms = np.concatenate([np.load(path) for path in paths]) / 1e6
    middle, late = np.percentile(latency_ms, [50, 99])
    row = versus(
        "scale",
        f"transitions/s accepted from {connections} connection{'s' * (connections > 1)} "
        f"by {shards} shard{'s' * (shards > 1)}; peer: the offered rate",
        [accepted],
        [float(INSERTS_PER_S)],
        None,
        "transitions/s",
    )
    details = {
        "connections": connections,
        "shards": shards,
        "median_ms": float(middle),
        "late_ms": float(late),
        "resident_mb": resident / 1e6,
        "batches_per_s": batches,
    }
    spread = (
        f"send to stored {middle:.1f} ms (50%), {late:.1f} ms (99%); "
        f"{resident / 1e6:.0f} MB resident; {batches:.1f} batches/s meanwhile"
    )
    return replace(row, spread=spread, details=details)


if __name__ == "__main__":
    main(measure)
