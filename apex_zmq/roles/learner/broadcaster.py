"""The learner's voice and ear: publishes parameters, hears every role's status, feeds TensorBoard."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_zmq.config.loading import to_yaml
from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.net.keys import server_keys
from apex_zmq.net.parameters import ParameterPublisher
from apex_zmq.net.sockets import Inbox, wait
from apex_zmq.roles.status import process_metrics
from apex_zmq.rundir.directory import keep_settings
from apex_zmq.rundir.episodes import EpisodeLog
from apex_zmq.types import Float64s
from apex_zmq.watch import prometheus
from apex_zmq.watch.stats import PROGRESS_LOG, ROLES, Meter, RunStats, progress_line
from apex_zmq.watch.tensorboard import Board
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Parameters, Status, decode_status

log = logging.getLogger(__name__)

SERVE_S = 0.05  # a welcome leaves only while subscriptions are being read: at least every 0.1 s
FIRST_SUMMARY_S = 1.0
STATUS_HWM = 1000


class Broadcaster(threading.Thread):
    """One thread that owns the parameter and status sockets and the run's statistics.

    stats, first_update: of a resumed run, set before it starts. Read the counts of stats from any thread.
    meter: the training thread's numbers go in here.
    update, waited_s, progress_time: set by the training thread: gradient steps of the
    run, seconds spent waiting for batches, unix seconds of its last progress.
    rank_waited_s: set likewise: [R] seconds that each rank spent waiting for its own batches.
    counters: set by the training thread: of what went wrong and of the batches decoded, by metric.
    newest: set by the training thread: arrays of the newest batch, by tag, whose
    histograms are taken at the log interval.

    Raises:
        ConfigError: an address that cannot be bound.
    """

    def __init__(self, config: Config, directory: Path) -> None:
        super().__init__(name="broadcaster", daemon=True)
        addresses = config.addresses
        self._publisher = ParameterPublisher(
            addresses.parameters, insecure=addresses.insecure, keys=server_keys(addresses, "parameters")
        )
        try:
            self._statuses: Inbox[Status] = Inbox.bind(
                addresses.status,
                {Kind.STATUS: decode_status},
                hwm=STATUS_HWM,
                insecure=addresses.insecure,
                keys=server_keys(addresses, "status"),
            )
        except ConfigError:
            self._publisher.close()
            raise
        self.stats = RunStats(since=time.monotonic())
        self.meter = Meter()
        self.update = self.first_update = 0
        self.waited_s = 0.0
        self.rank_waited_s: Float64s = np.zeros(1)
        self.counters: Mapping[str, float] = {}
        self.newest: Mapping[str, npt.NDArray[Any]] = {}
        self._start_time = self.progress_time = time.time()
        self._config = config
        self._directory = directory
        self._at_summary: tuple[float, Float64s] = time.monotonic(), np.zeros(1)
        self._boot = secrets.randbits(63)
        self._lock = threading.Lock()
        self._pending: Parameters | None = None
        self._summary: dict[str, float] = {}
        self._process = process_metrics()
        self._last = self._status({})
        self._endpoint: prometheus.Endpoint | None = None
        self._closing = threading.Event()

    def publish(self, parameters: Parameters) -> None:
        """Hand over parameters; of several that wait the newest is sent."""
        with self._lock:
            self._pending = parameters

    def start(self) -> None:
        """Begin.

        Raises:
            ConfigError: as `prometheus.serve`.
        """
        self._endpoint = prometheus.serve(self._config.telemetry, lambda: self._last)
        super().start()

    def run(self) -> None:
        """Serve until closed."""
        keep_settings(self._directory, to_yaml(self._config))
        board = Board(self._directory, self._config, self.stats.decisions)
        episodes = EpisodeLog(self._directory)
        telemetry = self._config.telemetry
        next_status = time.monotonic()
        next_summary = next_status + min(telemetry.log_interval_s, FIRST_SUMMARY_S)
        while not self._closing.is_set():
            wait([self._statuses], [], SERVE_S)
            self._publisher.serve()
            self._send_parameters()
            now = time.monotonic()
            for _ in range(STATUS_HWM):  # at most, so that a flood of them cannot hold up parameters
                if (status := self._statuses.receive()) is None:
                    break
                self.stats.hear(status, now)
                episodes.write(time.time(), self.stats.decisions, status.episodes)
                self._publisher.send(encode(Kind.RELAYED_STATUS, status))
            if now >= next_summary:
                self._summarize(board, now)
                next_summary = now + telemetry.log_interval_s
            if now >= next_status:
                self._tell(now)
                next_status = now + telemetry.status_interval_s
        now = time.monotonic()
        self._summarize(board, now)
        self._tell(now)
        board.close()
        episodes.close()
        self._publisher.close()
        self._statuses.close()

    def _send_parameters(self) -> None:
        with self._lock:
            parameters, self._pending = self._pending, None
        if parameters is not None:
            self._publisher.publish(parameters)

    def _summarize(self, board: Board, now: float) -> None:
        self.stats.hear(self._status(self._own()), now)
        numbers = self.stats.summary(now, self.update) | self.meter.take() | self._rank_waits(now)
        board.write(numbers, {**self.newest, **self.stats.ends()}, self.stats.decisions)
        self._summary = numbers | {"decisions": self.stats.decisions}
        logging.getLogger(PROGRESS_LOG).info("progress  %s", progress_line(numbers))

    def _tell(self, now: float) -> None:
        """Relay a status of its own: the process, the newest summary, who is there, what the run is set to."""
        config = self._config
        self._process = process_metrics()  # here alone: the host's CPU is what was used since it was asked for last
        self._last = self._status(
            self._summary
            | self._own()
            | {"train/updates": self.update}
            | {f"live_{role}": len(self.stats.live(role, now)) for role in ROLES if role != "learner"}
            | {
                "shards": config.replay.shards,
                "batch_size": config.learner.batch_size,
                "sync_every": config.learner.sync_every,
            }
        )
        self._publisher.send(encode(Kind.RELAYED_STATUS, self._last))

    def _own(self) -> dict[str, float]:
        """Metrics of the learner's process."""
        return {
            "updates": self.update - self.first_update,
            "waited_s": self.waited_s,
            "refused_statuses": self._statuses.refused,
            **self.counters,
            **self._process,
        }

    def _rank_waits(self, now: float) -> dict[str, float]:
        """Where there are several ranks, the share of time that each has waited for batches since the last summary."""
        (before, waited_before_s), waited_s = self._at_summary, self.rank_waited_s
        self._at_summary = now, waited_s
        if len(waited_s) == 1:
            return {}
        shares = (waited_s - waited_before_s) / max(now - before, 1e-9)
        return {f"wait/rank_{rank}": float(share) for rank, share in enumerate(shares.clip(max=1.0))}

    def _status(self, numbers: dict[str, float]) -> Status:
        return Status(
            role="learner",
            name="learner",
            host=socket.gethostname(),
            pid=os.getpid(),
            boot=self._boot,
            start_time=self._start_time,
            time=time.time(),
            progress_time=self.progress_time,
            metrics=numbers,
        )

    def close(self) -> None:
        """Write the last point and end the thread."""
        self._closing.set()
        if self._endpoint is not None:
            self._endpoint.close()
        if self.is_alive():
            self.join()
        else:
            self._publisher.close()
            self._statuses.close()
