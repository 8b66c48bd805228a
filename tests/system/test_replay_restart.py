"""A replay shard that is killed, or told to stop, and started again over the same directory and sockets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apex_zmq.config import loading

from ..roles.test_replay import LENGTH, Peers


class Shard(Peers):
    """Its peers stay; the first shard is a process, that can be killed, the others are threads."""

    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None:
            super().start()
            return
        path = Path(str(self.config.replay.snapshot_dir)) / "config.yaml"
        path.write_text(loading.to_yaml(self.config))
        command = [sys.executable, "-m", "apex_zmq", "replay", "--config", str(path), "--shard", "0"]
        self.process = subprocess.Popen(command)

    def stop(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.kill()
        else:
            super().stop()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        while self.statuses.receive(0.0) is not None:
            pass  # of the dead


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    changes = {
        "samples_per_insert": 2,
        "tolerance": 40,
        "credits": 1,
        "credit_timeout_s": 1e6,
        "snapshot_dir": str(tmp_path),
        "snapshot_interval_s": 0.05,
    }
    made = Shard(tmp_path, 2, {f"replay.{name}": value for name, value in changes.items()})
    yield made
    made.close()


def settled(shard: Shard, met: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The status after two snapshots more than when this was so, one of which began later."""
    taken = shard.status_when(met)["snapshots"]
    return shard.status_when(lambda metrics: metrics["snapshots"] >= taken + 2)


def test_restarted_shard_keeps_priorities_keys_and_surplus(shard: Shard) -> None:
    alpha, epsilon = shard.config.replay.alpha, shard.config.replay.epsilon
    shard.send(4)
    shard.greet()
    batch = shard.batch()
    first = {key: float(key) for key in range(4 * LENGTH)}
    shard.acknowledge(batch, first, retired=[5])
    mass = sum((td_error + epsilon) ** alpha for key, td_error in first.items() if key != 5)
    before = settled(shard, lambda metrics: metrics["mass"] == pytest.approx(mass))
    assert (before["recovered"], before["dropped"]) == (0, 0)
    assert before["snapshot_age_s"] < 30
    shard.kill()

    shard.start()
    shard.greet(incarnation=2)
    while (again := shard.batch()).shard_incarnation == batch.shard_incarnation:
        pass  # dealt by the dead
    assert again.sample.mass == pytest.approx(mass)
    assert again.sample.priority.tolist() == pytest.approx([(key + epsilon) ** alpha for key in again.sample.keys])
    assert 5 not in again.sample.keys
    metrics = shard.status()
    assert (metrics.metrics["recovered"], metrics.metrics["dropped"]) == (4 * LENGTH, 0)
    assert metrics.metrics["size"] == 4 * LENGTH
    assert metrics.metrics["inserts"] == 0, "counters count since the start"
    dealt = metrics.metrics["samples"]
    assert metrics.metrics["surplus"] == before["surplus"] + dealt

    shard.acknowledge(again, {7: 100.0})
    mass += (100 + epsilon) ** alpha - (7 + epsilon) ** alpha
    told = shard.status_when(lambda metrics: metrics["mass"] == pytest.approx(mass))
    shard.stop()  # with a last snapshot
    while shard.statuses.receive(0.0) is not None:
        pass
    shard.start()
    last = shard.status_when(lambda metrics: metrics["recovered"] > 0)
    assert last["mass"] == pytest.approx(mass)
    assert last["surplus"] >= told["surplus"]
    shard.send(1)
    assert shard.status_when(lambda metrics: metrics["inserts"] == LENGTH)["size"] == 5 * LENGTH
