"""A real replay process between a synthetic actor and a synthetic learner, which only send and receive."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.envs.make import env_spec
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.roles.learner.feeder import DecodedBatch, Feeder, bind_batches
from apex_zmq.signature import experience_signature
from apex_zmq.types import PriorityUpdate, Segment, Shipment
from apex_zmq.wire.body import Parts, encode
from apex_zmq.wire.codec import Kind, pack, unpack
from apex_zmq.wire.experience import encode_priorities, encode_segment
from apex_zmq.wire.messages import Hello, Status, decode_status
from benchmarks.rows import ROOT

ARENA_BYTES = 6 * 10**9
STATUS_S = 0.2
FIRST_INCARNATION = 0x5EED_B007_5EED_B007  # eight bytes that occur nowhere else in a message, and so do its successors


def free_addresses(count: int) -> list[str]:
    """Unbound addresses of loopback TCP."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    return addresses


class Replay:
    """`replay.shards` processes of bin/apex-replay over loopback TCP, and their newest status."""

    def __init__(self, settings: Mapping[str, Any], directory: Path, module: str | None) -> None:
        shards = int(settings.get("replay.shards", 1))
        addresses = free_addresses(2 * shards + 3)
        self.config: Config = loading.replace(
            Config(),
            {
                "replay.arena_bytes": ARENA_BYTES,
                "telemetry.status_interval_s": STATUS_S,
                "telemetry.log_level": "warning",
                "addresses.experience": addresses[:shards],
                "addresses.priorities": addresses[shards : 2 * shards],
                "addresses.batches": addresses[-3],
                "addresses.parameters": addresses[-2],
                "addresses.status": addresses[-1],
                **settings,
            },
        )
        self.path = directory / "config.yaml"
        self.path.write_text(loading.to_yaml(self.config))
        self._statuses: Inbox[Status] = Links(self.config).bind("status", {Kind.STATUS: decode_status})
        self.status: dict[str, Status] = {}
        program = [ROOT / "bin/apex-replay"] if module is None else [sys.executable, "-m", module]
        self.processes = [
            subprocess.Popen([*program, "--config", self.path, "--shard", str(shard)]) for shard in range(shards)
        ]

    def total(self, metric: str) -> float:
        """Sum of a metric over the shards, by their newest statuses."""
        while (status := self._statuses.receive()) is not None:
            self.status[status.name] = status
        return sum(status.metrics.get(metric, 0.0) for status in self.status.values())

    def await_total(self, metric: str, at_least: float) -> float:
        """Wait until the sum of a metric reaches a value."""
        while (total := self.total(metric)) < at_least:
            wait([self._statuses], [], 1.0)
            assert all(process.poll() is None for process in self.processes), "the replay process has ended"
        return total

    def rate(self, metric: str, seconds: float) -> float:
        """Growth of a metric per second, between two statuses of each shard at least `seconds` apart."""
        begin = self._next_statuses()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            wait([self._statuses], [], 0.1)
            self.total(metric)
        end = self._next_statuses()
        return sum(
            (end[name].metrics[metric] - begin[name].metrics[metric]) / (end[name].time - begin[name].time)
            for name in begin
        )

    def _next_statuses(self) -> dict[str, Status]:
        known = dict(self.status)
        while len(self.status) < len(self.processes) or any(
            self.status[name] is known.get(name) for name in self.status
        ):
            wait([self._statuses], [], 1.0)
            self.total("size")
        return dict(self.status)

    def release_status(self) -> None:
        """Free the status address for a real learner; `total` receives no more statuses."""
        self._statuses.close()

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.send_signal(signal.SIGINT)
        for process in self.processes:
            process.wait()


@contextmanager
def replay(settings: Mapping[str, Any], module: str | None = None) -> Iterator[Replay]:
    """Running replay shards under these settings; module: a Python module to run in place of bin/apex-replay."""
    with tempfile.TemporaryDirectory(prefix="apex-bench-") as directory:
        running = Replay(settings, Path(directory), module)
        try:
            yield running
        finally:
            running.stop()
            running.release_status()


def messages(segments: Sequence[Segment], config: Config) -> Iterator[Parts]:
    """Endless messages of the segments; each repetition is sent as another process of the actor.

    Nothing is encoded again but the process's number, `FIRST_INCARNATION` or above.
    """
    signature = experience_signature(config)
    numbered = [Shipment("synthetic", FIRST_INCARNATION, number, segment) for number, segment in enumerate(segments)]
    encoded = [encode_segment(shipment, signature) for shipment in numbered]
    bodies = [(bytes(unpack(head)[1]), frames) for head, frames in encoded]
    assert all(body.count(FIRST_INCARNATION.to_bytes(8, "big")) == 1 for body, _ in bodies)
    while True:
        incarnation = (FIRST_INCARNATION + secrets.randbits(60)).to_bytes(8, "big")
        for body, frames in bodies:
            yield [pack(Kind.SEGMENT, body.replace(FIRST_INCARNATION.to_bytes(8, "big"), incarnation)), frames]


def fill(running: Replay, sent: Iterator[Parts], transitions: int) -> None:
    """Insert `transitions` transitions and wait until they are stored."""
    links = Links(running.config)
    outboxes = [links.connect("experience", shard) for shard in range(running.config.replay.shards)]
    length = running.config.actor.segment_length
    for index, parts in zip(range(-(-transitions // length)), sent, strict=False):
        outbox = outboxes[index % len(outboxes)]
        while not outbox.send(parts):
            wait([], [outbox], 1.0)
    running.await_total("inserts", transitions)
    for outbox in outboxes:
        outbox.close()


class SyntheticLearner:
    """A learner that receives and decodes batches and returns priorities for each, without training."""

    def __init__(self, config: Config) -> None:
        spec = env_spec(config.env)
        incarnation = time.time_ns()
        links = Links(config)
        self._feeder = Feeder(
            bind_batches(links, config, 0, spec.frame),
            learner_incarnation=incarnation,
            num_actions=spec.num_actions,
            pin_memory=False,
        )
        self._priorities = [links.connect("priorities", shard) for shard in range(config.replay.shards)]
        self._hello = Hello(
            run="bench",
            learner_incarnation=incarnation,
            rank=0,
            signature=experience_signature(config),
        )
        self._td_error = np.random.default_rng(2).random(config.learner.batch_size).astype(np.float32)
        self._feeder.start()
        self._greeted = 0.0

    def next(self) -> DecodedBatch:
        """Receive a batch and return new priorities for it."""
        while True:
            if time.monotonic() - self._greeted > 1.0:
                for outbox in self._priorities:
                    outbox.send(encode(Kind.HELLO, self._hello))
                self._greeted = time.monotonic()
            decoded = self._feeder.get(0.1)
            if decoded is not None:
                break
        assert not decoded.broken.any()
        batch = decoded.batch
        update = PriorityUpdate(
            learner_incarnation=batch.learner_incarnation,
            rank=batch.rank,
            shard_incarnation=batch.shard_incarnation,
            acknowledged=batch.number,
            keys=batch.sample.keys,
            td_error=self._td_error,
            retired=np.zeros(len(self._td_error), np.bool_),
        )
        while not self._priorities[batch.shard].send(encode_priorities(update)):
            wait([], [self._priorities[batch.shard]], 1.0)
        self._feeder.recycle(decoded)
        return decoded

    def batches_per_s(self, warm_up_s: float, seconds: float) -> float:
        """Batches received per second, after a warm-up."""
        until = time.monotonic() + warm_up_s
        while time.monotonic() < until:
            self.next()
        count, begin = 0, time.monotonic()
        while time.monotonic() < begin + seconds:
            self.next()
            count += 1
        return count / (time.monotonic() - begin)

    def close(self) -> None:
        """Stop receiving."""
        self._feeder.close()
        for outbox in self._priorities:
            outbox.close()
