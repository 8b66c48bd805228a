"""Measure batches of 512 per second to the learner during snapshots of the replay; peer: the same replay without.

Frame set mario-84, one replay process whose log is a file, 12,500 inserts/s as in the paper. The process takes one
snapshot after the other while a switch file exists, and none otherwise: both rates are measured in one run, in turn.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.roles.replay import ReplayServer
from benchmarks import mario_frames, synthetic
from benchmarks.replay_to_learner_while_inserting import INSERTS_PER_S
from benchmarks.rows import Row, table, versus

STORED = 1_000_000
ROUNDS = 5
WARM_UP_S = 2.0
SECONDS = 6.0
BAR = 0.9
TAKING = "taking"  # name of the switch file, beside the config file


class SwitchedReplay(ReplayServer):
    """A replay server that takes one snapshot after another while the switch file exists, and none otherwise."""

    def __init__(self, config: Config, shard: int, switch: Path) -> None:
        super().__init__(config, shard)
        assert self._keeper is not None
        take = self._keeper.maybe_snapshot
        self._keeper.maybe_snapshot = lambda *arguments: take(*arguments) if switch.exists() else None  # type: ignore[method-assign]


def measure(stored: int, rounds: int, seconds: float) -> Row:
    while_taking: list[float] = []
    without: list[float] = []
    with tempfile.TemporaryDirectory(prefix="apex-bench-", dir=".") as directory:
        settings = {
            "replay.capacity": stored,
            "replay.min_size": stored // 2,
            "replay.snapshot_dir": directory,
            "replay.snapshot_interval_s": 1e-3,
        }
        with synthetic.replay(settings, module="benchmarks.snapshot") as running:
            switch = running.path.with_name(TAKING)
            sent = synthetic.messages(mario_frames.segments(mario_frames.play()), running.config)
            synthetic.fill(running, sent, stored)
            addresses = running.config.addresses.experience
            senders = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.senders", "4", str(INSERTS_PER_S), *addresses]
            )
            learner = synthetic.SyntheticLearner(running.config)
            running.await_total("inserts", stored + INSERTS_PER_S)  # the senders have begun
            taken = 0.0
            for _ in range(rounds):
                without.append(learner.batches_per_s(WARM_UP_S, seconds))
                before = running.total("snapshots")
                switch.touch()
                while_taking.append(learner.batches_per_s(WARM_UP_S, seconds))
                switch.unlink()
                taken += running.total("snapshots") - before
            learner.close()
            senders.terminate()
            senders.wait()
    assert taken >= rounds, "fewer snapshots than rounds were taken"
    what = (
        f"batches of 512 to the learner during snapshots of {stored:,} transitions, {taken:.0f} of them, while "
        f"{INSERTS_PER_S:,} transitions/s are sent; peer: ours between them"
    )
    return versus("snapshot", what, while_taking, without, BAR, "batches/s")


def serve(path: str, shard: int) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    SwitchedReplay(loading.load(path), shard, Path(path).with_name(TAKING)).run(stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", type=int, default=STORED, help=f"transitions stored (default: {STORED})")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"measurements with and without snapshots (default: {ROUNDS})"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"seconds per measurement (default: {SECONDS:g})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--config", help=argparse.SUPPRESS)
    parser.add_argument("--shard", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.config is not None:
        serve(arguments.config, arguments.shard)
        return
    row = measure(arguments.stored, arguments.rounds, arguments.seconds)
    print(json.dumps([row.as_json()], indent=1) if arguments.json else table([row]))


if __name__ == "__main__":
    main()
