"""Every role reports its state from a thread of its own, so that a stuck main loop shows."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time

import psutil

from apex_zmq.config.settings import Config
from apex_zmq.net.access import counts
from apex_zmq.net.sockets import Links, Outbox
from apex_zmq.watch import prometheus
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Episode, Role, Status

log = logging.getLogger(__name__)

MAX_PENDING_EPISODES = 4096


def process_metrics() -> dict[str, float]:
    """What every role says of its process: memory, CPU time, share of all the host's cores in use, who was refused."""
    return {
        "rss_bytes": float(psutil.Process().memory_info().rss),
        "cpu_s": time.process_time(),
        "host_cpu": psutil.cpu_percent() / 100,
        **counts,
    }


class StatusReporter(threading.Thread):
    """Sends the role's numbers to the learner at an interval.

    The main loop writes into `metrics` and calls `progress` and `episode`; while the learner is away, the newest
    episodes wait. The same numbers are served to Prometheus where that is asked for.
    """

    def __init__(self, role: Role, name: str, incarnation: int, config: Config, links: Links) -> None:
        super().__init__(name="status", daemon=True)
        self.metrics: dict[str, float] = {}
        self._role: Role = role
        self._name = name
        self._incarnation = incarnation
        self._telemetry = config.telemetry
        self._outbox: Outbox = links.connect("status")
        self._endpoint: prometheus.Endpoint | None = None
        self._episodes: list[Episode] = []
        self._lock = threading.Lock()
        self._start_time = self._progress_time = time.time()
        self._last = self._status(())
        self._closing = threading.Event()

    def progress(self) -> None:
        """The main loop got something done."""
        self._progress_time = time.time()

    def episode(self, episode: Episode) -> None:
        """An episode has ended."""
        with self._lock:
            self._episodes.append(episode)
            del self._episodes[:-MAX_PENDING_EPISODES]

    def start(self) -> None:
        """Begin.

        Raises:
            ConfigError: as `prometheus.serve`.
        """
        self._endpoint = prometheus.serve(self._telemetry, lambda: self._last)
        super().start()

    def run(self) -> None:
        """Report until closed, and once more then."""
        while not self._closing.wait(self._telemetry.status_interval_s):
            self._send()
        self._send()
        self._outbox.close()

    def _status(self, episodes: tuple[Episode, ...]) -> Status:
        return Status(
            role=self._role,
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            incarnation=self._incarnation,
            start_time=self._start_time,
            time=time.time(),
            progress_time=self._progress_time,
            metrics=self.metrics | process_metrics(),
            episodes=episodes,
        )

    def _send(self) -> None:
        with self._lock:
            episodes = tuple(self._episodes)
        self._last = self._status(episodes)
        if self._outbox.send(encode(Kind.STATUS, self._last)):
            with self._lock:
                del self._episodes[: len(episodes)]

    def close(self) -> None:
        """Send the last numbers and end the thread."""
        self._closing.set()
        self.join()
        if self._endpoint is not None:
            self._endpoint.close()
