"""Measure the growth of a replay's memory as its ring turns over: python -m benchmarks.turnover [--minutes 60].

Synthetic actors send the frame set mario-84 as fast as one replay process accepts it, into a ring of 200,000
transitions, while a synthetic learner takes batches of 512. The ring is full before the first reading.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from benchmarks import synthetic
from benchmarks.rows import Row, table, versus

CAPACITY = 200_000
CONNECTIONS = 8
MIN_SIZE = 50_000
READINGS = 12
FLAT = 0.95


def measure(minutes: float) -> Row:
    with synthetic.replay({"replay.capacity": CAPACITY, "replay.min_size": MIN_SIZE}) as running:
        addresses = running.config.addresses.experience
        senders = subprocess.Popen([sys.executable, "-m", "benchmarks.senders", str(CONNECTIONS), "0", *addresses])
        learner = synthetic.SyntheticLearner(running.config)
        while running.total("inserts") < 2 * CAPACITY:
            learner.next()
        first, readings = running.total("inserts"), [running.total("rss_bytes") / 1e6]
        begin = time.monotonic()
        for reading in range(1, READINGS + 1):
            while time.monotonic() < begin + 60 * minutes * reading / READINGS:
                learner.next()
            running.total("rss_bytes")
            readings.append(running.total("rss_bytes") / 1e6)
        turns = (running.total("inserts") - first) / CAPACITY
        learner.close()
        senders.terminate()
        senders.wait()
    what = (
        f"resident memory after {minutes:g} minutes and {turns:.0f} turns of the ring; peer: ours when it was just full"
    )
    return versus("turnover", what, readings[-1:], readings[:1], FLAT, "MB", less_is_better=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="duration (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    row = measure(arguments.minutes)
    print(json.dumps([row.as_json()], indent=1) if arguments.json else table([row]))


if __name__ == "__main__":
    main()
