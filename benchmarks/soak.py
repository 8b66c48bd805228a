"""Check that memory, descriptors and threads of a run do not grow: python -m benchmarks.soak [--minutes 60].

A real run of World 1-1 has two shards, two actors, a learner and an evaluator. After a warm-up of a third of the time,
and at least until the replay is full, memory, file descriptors and threads of every process are read once a second.
The exit code is 0 only if the median of the last third of the readings is at most 5% above that of the first third
(memory), or no larger (threads, and file descriptors, of which a reading may include a short-lived one).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.cluster import Cluster, cluster

SETTINGS = {"replay.capacity": 4_000, "replay.min_size": 1_000, "learner.save_every": 200}
WARM_UP = 1 / 3
READING_S = 1.0
FLAT = 1.05
FULL = 0.95
PATIENCE_S = 300.0


class Reading(NamedTuple):
    """One reading of a process."""

    resident_bytes: int
    descriptors: int
    threads: int


def soak(running: Cluster, minutes: float) -> dict[str, list[Reading]]:
    """Readings by process name.

    Raises: SystemExit when the replay is not full in time.
    """
    begin = time.monotonic()
    capacity = running.config.replay.capacity
    while not running.all_work or sum(m.now.get("size", 0.0) for m in running.members.values()) < FULL * capacity:
        running.tick()
        if time.monotonic() > begin + PATIENCE_S:
            sys.exit(f"the replay was not full after {PATIENCE_S:.0f} s; read the logs with --keep DIR")
    readings: defaultdict[str, list[Reading]] = defaultdict(list)
    next_reading = max(begin + 60 * minutes * WARM_UP, time.monotonic())
    until = next_reading + 60 * minutes * (1 - WARM_UP)
    while (now := time.monotonic()) < until:
        running.tick()
        if now < next_reading:
            continue
        next_reading = now + READING_S
        for name, process in running.processes().items():
            readings[name].append(Reading(process.memory_info().rss, process.num_fds(), process.num_threads()))
    return readings


def report(running: Cluster, readings: dict[str, list[Reading]]) -> bool:
    """Print the table; return whether nothing has grown."""
    flat = not running.died and readings.keys() == running.members.keys()
    print(
        "| process | readings | MB | MB, last third | ratio | descriptors | last third | threads | last third | flat |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, own in readings.items():
        third_of = max(1, len(own) // 3)
        thirds = own[:third_of], own[-third_of:]
        before, after = (Reading(*map(statistics.median, zip(*third, strict=True))) for third in thirds)
        ratio = after.resident_bytes / before.resident_bytes
        well = ratio <= FLAT and after.descriptors <= before.descriptors and after.threads <= before.threads
        flat &= well
        print(
            f"| {name} | {len(own)} | {before.resident_bytes / 1e6:.1f} | {after.resident_bytes / 1e6:.1f} "
            f"| {ratio:.3f} | {before.descriptors:g} | {after.descriptors:g} | {before.threads:g} | {after.threads:g} "
            f"| {'yes' if well else '**no**'} |"
        )
    for name, code in running.died:
        print(f"{name} ended by itself with code {code}")
    print("flat" if flat else "NOT FLAT")
    return flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="duration, including the warm-up (default: 60)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="directory that keeps logs and run (default: none)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apex-soak-") as temporary:
        with cluster(arguments.keep or Path(temporary), SETTINGS) as running:
            readings = soak(running, arguments.minutes)
        return 0 if report(running, readings) else 1


if __name__ == "__main__":
    sys.exit(main())
