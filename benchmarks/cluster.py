"""A real run whose processes a benchmark starts, kills and observes, as a service manager would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.rundir import directory as rundir
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Status, decode_relayed_status, decode_status
from benchmarks.rows import ROOT
from benchmarks.synthetic import free_addresses

# World 1-1 on two cores, with short intervals so that each event happens often.
SETTINGS: dict[str, Any] = {
    "run.num_actors": 2,
    "actor.lanes": 4,
    "replay.shards": 2,
    "replay.capacity": 20_000,
    "replay.arena_bytes": 60_000_000,
    "replay.min_size": 1_000,
    "replay.credit_timeout_s": 5,
    "replay.snapshot_interval_s": 10,
    "learner.sync_every": 20,
    "learner.save_every": 100,
    "learner.keep_checkpoints": 3,
    "telemetry.status_interval_s": 0.2,
    "telemetry.log_interval_s": 1,
}
RESTART_S = 1.0
TICK_S = 0.1


@dataclass
class Member:
    """One process of the run; incarnations: all that it has told of itself, by incarnation: the newest metrics of each.

    works: whether the process that runs now has got something done.
    """

    name: str
    process: subprocess.Popen[bytes] | None = None
    start_at: float = 0.0
    works: bool = False
    incarnations: dict[int, Mapping[str, float]] = field(default_factory=dict)
    newest: int | None = None
    first_update: float | None = None
    lines: int = 0

    def total(self, metric: str) -> float:
        """Sum of a metric over all processes that had this name."""
        return sum(metrics.get(metric, 0.0) for metrics in self.incarnations.values())

    @property
    def now(self) -> Mapping[str, float]:
        """Newest metrics of the running process."""
        return {} if self.newest is None else self.incarnations[self.newest]


class Cluster:
    """Two shards, two actors, a learner and an evaluator that follows it, over loopback TCP.

    updates: gradient steps taken, including those that a killed learner lost.
    died: names and exit codes of processes that ended by themselves.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any] | None = None) -> None:
        addresses = free_addresses(8)
        self.directory = directory
        self.run = directory / "run"
        self.config: Config = loading.replace(
            loading.load(ROOT / "configs/mario-cpu.yaml"),
            {
                **SETTINGS,
                "replay.snapshot_dir": str(directory / "snapshots"),
                "addresses.experience": addresses[:2],
                "addresses.priorities": addresses[2:4],
                "addresses.batches": addresses[4],
                "addresses.parameters": addresses[5],
                "addresses.status": addresses[6],
                **(settings or {}),
            },
        )
        self._path = directory / "config.yaml"
        self._path.write_text(loading.to_yaml(self.config))
        # Statuses are relayed by this process, so that it receives them while the learner is dead.
        self._learner_status = addresses[7]
        links = Links(self.config)
        self._statuses: Inbox[Status] = links.bind("status", {Kind.STATUS: decode_status})
        to_learner = loading.replace(self.config, {"addresses.status": self._learner_status})
        self._to_learner = Links(to_learner).connect("status")
        self._relayed: Inbox[Status] = links.subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})
        names = ("learner", "replay-0", "replay-1", "actor-0", "actor-1", "evaluator")
        self.members = {name: Member(name) for name in names}
        self.updates = 0.0
        self.died: list[tuple[str, int]] = []

    def _command(self, name: str) -> list[str]:
        role, _, number = name.partition("-")
        if role == "evaluator":
            options = ["--episodes", "1", "--follow", "--every", "1", "--json"]
            return ["eval", "--checkpoint", str(self.run), *options]
        command = [role, "--config", str(self._path), "--log-dir", str(self.directory / "logs")]
        if role == "learner":
            resume = ["--resume"] if rundir.holds_run(self.run) else []
            return [*command, "--run-dir", str(self.run), "--status", self._learner_status, *resume]
        if role == "replay":
            return [*command, "--shard", number]
        lanes = self.config.actor.lanes * self.config.run.num_actors
        return [*command, "--actor-index", number, "--num-lanes", str(lanes)]

    def _start(self, member: Member) -> None:
        command = [sys.executable, "-m", "apex_zmq", *self._command(member.name)]
        with (self.directory / f"{member.name}.out").open("ab") as output:
            member.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**os.environ}
            )
        member.works, member.newest, member.first_update = False, None, None
        member.lines = self._evaluations() if member.name == "evaluator" else 0

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL; `tick` starts it again after a second."""
        member = self.members[name]
        assert member.process is not None
        member.process.kill()
        member.process.wait()
        member.process, member.works = None, False
        member.start_at = time.monotonic() + RESTART_S

    def tick(self) -> None:
        """Receive and relay statuses for a moment; start processes that do not run."""
        wait([self._statuses, self._relayed], [], TICK_S)
        while (status := self._statuses.receive()) is not None:
            self._to_learner.send(encode(Kind.STATUS, status))
            self._record(status)
        while (status := self._relayed.receive()) is not None:
            if status.role == "learner":
                self._record(status)
        evaluator = self.members["evaluator"]
        evaluator.works = evaluator.process is not None and self._evaluations() > evaluator.lines
        for member in self.members.values():
            if member.process is not None and (code := member.process.poll()) is not None:
                self.died.append((member.name, code))
                member.process, member.works, member.start_at = None, False, time.monotonic() + RESTART_S
            ready = member.name != "evaluator" or rundir.holds_run(self.run)
            if member.process is None and ready and time.monotonic() >= member.start_at:
                self._start(member)

    def _record(self, status: Status) -> None:
        member = self.members[status.name]
        before = member.incarnations.get(status.incarnation, {})
        member.incarnations[status.incarnation] = {**before, **status.metrics}
        if member.process is None or status.pid != member.process.pid:
            return  # a status that a killed process sent
        member.newest = status.incarnation
        metrics = member.now
        if status.role == "learner":
            update = metrics.get("train/updates", 0.0)
            if member.first_update is None:
                member.first_update = update
            self.updates += max(0.0, update - before.get("train/updates", member.first_update))
            member.works = update > member.first_update
        elif status.role == "replay":
            member.works = metrics.get("samples", 0.0) > 0
        else:
            member.works = metrics.get("segments", 0.0) > 0

    def _evaluations(self) -> int:
        output = self.directory / "evaluator.out"
        if not output.exists():
            return 0
        return sum(_is_json(line) for line in output.read_bytes().splitlines())

    @property
    def all_work(self) -> bool:
        """Whether every process has done some work since its start."""
        return all(member.works for member in self.members.values())

    def processes(self) -> dict[str, psutil.Process]:
        """Running processes by name."""
        return {
            name: psutil.Process(member.process.pid)
            for name, member in self.members.items()
            if member.process is not None and member.process.poll() is None
        }

    def resident_bytes(self) -> dict[str, int]:
        """Resident memory by name."""
        return {name: process.memory_info().rss for name, process in self.processes().items()}

    def close(self) -> None:
        """End all processes, actors first."""
        for name in reversed(self.members):
            member = self.members[name]
            if member.process is None:
                continue
            member.process.terminate()
            try:
                member.process.wait(30)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
        for channel in (self._statuses, self._relayed, self._to_learner):
            channel.close()


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@contextmanager
def cluster(directory: Path, settings: Mapping[str, Any] | None = None) -> Iterator[Cluster]:
    """Start a run; its processes end with the block."""
    directory.mkdir(parents=True, exist_ok=True)
    running = Cluster(directory, settings)
    try:
        yield running
    finally:
        running.close()
