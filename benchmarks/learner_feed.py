"""Measure updates per second of a real run; peer: the same run with a learner that never waits for a batch.

Mario at 84x84, the small network on the CPU, batch 64, one actor, one replay shard, no samples-per-insert governor.
The peer trains on its last batch again until a new one has arrived, so the ratio shows the cost of waiting.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from apex_zmq.config.settings import Config
from apex_zmq.roles.learner.feeder import DecodedBatch, Feeder
from apex_zmq.roles.learner.loop import Learner
from benchmarks import synthetic
from benchmarks.rows import ROOT, Row, main, versus

ROUNDS = 5
WARM_UP_S = 5.0
SECONDS = 20.0
SETTINGS: dict[str, Any] = {
    "agent.network": "small",
    "learner.batch_size": 64,
    "learner.device": "cpu",
    "learner.sync_every": 50,
    "replay.capacity": 200_000,
    "replay.min_size": 5_000,
    "run.episodes": None,
}


def measure() -> list[Row]:
    ours: list[float] = []
    reusing: list[float] = []
    for _ in range(ROUNDS):
        ours.append(updates_per_s(reuse=False))
        reusing.append(updates_per_s(reuse=True))
    what = "updates/s of a real run, small network on the CPU, batch 64; peer: the learner never waits"
    return [versus("learner_feed", what, ours, reusing, 0.95, "updates/s")]


class ReusingFeeder:
    """A feeder that returns the newest batch again until there is a newer one."""

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._last: DecodedBatch | None = None

    def get(self, timeout_s: float) -> DecodedBatch | None:
        """Like `Feeder.get`, but wait for the first batch only."""
        newer = self._feeder.get(timeout_s if self._last is None else 0.0)
        if newer is not None:
            if self._last is not None:
                self._feeder.recycle(self._last)
            self._last = newer
        return self._last

    def recycle(self, decoded: DecodedBatch) -> None:
        """Do nothing, since the batch may be returned again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feeder, name)


class MeasuredLearner(Learner):
    """A learner that measures its updates per second."""

    updates_per_s = 0.0

    def reuse(self) -> None:
        """Never wait for a batch."""
        self._feeder = ReusingFeeder(self._feeder)  # type: ignore[assignment]

    def measure(self, stop: threading.Event) -> None:
        """Count updates for SECONDS after the warm-up, then stop the run."""
        while self._trainer.updates == 0:
            time.sleep(0.05)
        time.sleep(WARM_UP_S)
        first, begin = self._trainer.updates, time.monotonic()
        time.sleep(SECONDS)
        self.updates_per_s = (self._trainer.updates - first) / (time.monotonic() - begin)
        stop.set()


def updates_per_s(reuse: bool) -> float:
    with synthetic.replay(SETTINGS) as running, tempfile.TemporaryDirectory(prefix="apex-bench-") as directory:
        running.release_status()
        config: Config = running.config
        actor = subprocess.Popen(
            [ROOT / "bin/apex-actor", "--config", running.path], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        learner, stop = MeasuredLearner(config, Path(directory) / "run"), threading.Event()
        if reuse:
            learner.reuse()
        measuring = threading.Thread(target=learner.measure, args=(stop,))
        measuring.start()
        learner.run(stop)
        measuring.join()
        actor.send_signal(signal.SIGINT)
        actor.wait()
    return learner.updates_per_s


if __name__ == "__main__":
    main(measure)
