"""Status reports of a role, sent by a separate thread, so that a stuck main loop is visible."""

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
from apex_zmq.wire.messages import Episode, Refusal, Role, StageArchive, Status

log = logging.getLogger(__name__)

MAX_PENDING_EPISODES = 4096


def process_metrics() -> dict[str, float]:
    """Metrics of every process: memory, CPU time, CPU share of the host, refused connections."""
    return {
        "rss_bytes": float(psutil.Process().memory_info().rss),
        "cpu_s": time.process_time(),
        "host_cpu": psutil.cpu_percent() / 100,
        **counts,
    }


class StatusReporter(threading.Thread):
    """Sends the role's metrics to the learner at an interval.

    The main loop replaces `metrics`, `refusals` and `archive`, and calls `progress` and `episode`. Each value of
    `archive` is sent once. While the learner is down, the newest episodes are kept. If `telemetry.metrics_port` is set,
    Prometheus can read the metrics too.
    """

    def __init__(self, role: Role, name: str, incarnation: int, config: Config, links: Links) -> None:
        super().__init__(name="status", daemon=True)
        self.metrics: dict[str, float] = {}
        self.refusals: tuple[Refusal, ...] = ()
        self.archive: tuple[StageArchive, ...] = ()
        self._sent_archive: tuple[StageArchive, ...] = ()
        self._role: Role = role
        self._name = name
        self._incarnation = incarnation
        self._telemetry = config.telemetry
        self._outbox: Outbox = links.connect("status")
        self._endpoint: prometheus.Endpoint | None = None
        self._episodes: list[Episode] = []
        self._lock = threading.Lock()
        self._start_time = self._progress_time = time.time()
        self._last = self._status((), ())
        self._closing = threading.Event()

    def progress(self) -> None:
        """Record progress of the main loop."""
        self._progress_time = time.time()

    def episode(self, episode: Episode) -> None:
        """Queue a finished episode."""
        with self._lock:
            self._episodes.append(episode)
            del self._episodes[:-MAX_PENDING_EPISODES]

    def start(self) -> None:
        """Start the thread and the Prometheus endpoint.

        Raises:
            ConfigError: as `prometheus.serve`.
        """
        self._endpoint = prometheus.serve(self._telemetry, lambda: self._last)
        super().start()

    def run(self) -> None:
        """Send a status at each interval until closed, then a last one."""
        while not self._closing.wait(self._telemetry.status_interval_s):
            self._send()
        self._send()
        self._outbox.close()

    def _status(self, episodes: tuple[Episode, ...], archive: tuple[StageArchive, ...]) -> Status:
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
            refusals=self.refusals,
            archive=archive,
        )

    def _send(self) -> None:
        with self._lock:
            episodes = tuple(self._episodes)
        archive = self.archive
        self._last = self._status(episodes, () if archive is self._sent_archive else archive)
        if self._outbox.send(encode(Kind.STATUS, self._last)):
            self._sent_archive = archive
            with self._lock:
                del self._episodes[: len(episodes)]

    def close(self) -> None:
        """Send the last status and stop the thread."""
        self._closing.set()
        self.join()
        if self._endpoint is not None:
            self._endpoint.close()
