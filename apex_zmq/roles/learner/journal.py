"""The record of a run, kept on rank 0: statistics of all roles, TensorBoard, episodes.csv, checkpoints, budgets."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_zmq.agent.trainer import Trainer
from apex_zmq.config.loading import to_yaml
from apex_zmq.config.settings import Config, Run, to_tree
from apex_zmq.envs.info import columns_of
from apex_zmq.errors import CheckpointError
from apex_zmq.roles.learner.publisher import MAX_QUEUED_STATUSES, Publisher
from apex_zmq.roles.status import process_metrics
from apex_zmq.rundir.checkpoint import Checkpoint, CheckpointStore
from apex_zmq.rundir.directory import keep_settings
from apex_zmq.rundir.episodes import EpisodeLog
from apex_zmq.types import Float64s
from apex_zmq.watch import archive, prometheus
from apex_zmq.watch.metrics import ROLES
from apex_zmq.watch.stats import PROGRESS_LOG, TOTALS, Meter, RunStats, progress_line
from apex_zmq.watch.tensorboard import Board, Histogram
from apex_zmq.wire.messages import StageArchive, Status

log = logging.getLogger(__name__)

FIRST_SUMMARY_S = 1.0
IDLE_S = 0.1


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the whole run, resumed parts included, according to the statuses received."""

    episodes: int = 0
    decisions: int = 0
    info: Mapping[str, float] = field(default_factory=dict)  # totals of `envs.info`, by name
    low_epsilon_return: float | None = None  # mean of the last episodes; None: too few so far

    @classmethod
    def of(cls, stats: RunStats) -> Totals:
        """The current totals of the statistics."""
        return cls(stats.episodes, stats.decisions, dict(stats.info), stats.low_epsilon_return)


@dataclass(frozen=True, slots=True)
class Origin:
    """State of a run at the start of this learner process.

    learner_incarnation: of this process; it increases with every start.
    """

    run_id: str
    learner_incarnation: int
    totals: Totals = field(default_factory=Totals)
    elapsed_s: float = 0.0  # training time of earlier processes
    best_score: float | None = None  # of the best checkpoint; None: none so far

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> Origin:
        """The origin of a new run (None), or of the run of a checkpoint."""
        now = time.time_ns()
        if checkpoint is None:
            return cls(secrets.token_hex(8), now)
        counters = checkpoint.counters
        info = {name: counters[name] for name in TOTALS if counters.get(name)}
        totals = Totals(int(counters["episodes"]), int(counters["decisions"]), info)
        return cls(
            checkpoint.run_id,
            max(now, checkpoint.learner_incarnation + 1),
            totals,
            counters["elapsed_s"],
            checkpoint.best_score,
        )


@dataclass(frozen=True, slots=True)
class StepReport:
    """Report of one pass of the learner's loop: a wait for batches, and a step if every rank had one.

    Seconds and counters are sums since the start of the process.
    """

    update: int  # gradient steps of the run
    progress_time: float  # unix seconds of the last step
    rank_waited_s: Float64s  # [R] time that each rank waited for its own batches
    waited_s: float = 0.0  # time until all ranks had a batch
    counters: Mapping[str, float] = field(default_factory=dict)  # faults and decoding, by name of a status metric
    metrics: Mapping[str, float] = field(default_factory=dict)  # of this pass's step, by TensorBoard tag; empty: none
    histograms: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # of the last step's batch, by tag

    @property
    def stepped(self) -> bool:
        """Whether this pass changed the parameters."""
        return bool(self.metrics)


class Journal(threading.Thread):
    """Keeps statistics, TensorBoard and episodes.csv, and reports the learner's own status, in a thread of its own.

    Input: step reports from the training thread, received statuses from the publisher's thread. Only this thread
    uses the other attributes.

    totals: immutable and replaced by this thread; any thread may read it.
    """

    def __init__(
        self, config: Config, directory: Path, origin: Origin, begin: StepReport, publisher: Publisher
    ) -> None:
        super().__init__(name="journal", daemon=True)
        self.totals = origin.totals
        self._config = config
        self._directory = directory
        self._publisher = publisher
        self._first_update = begin.update
        self._meter = Meter()
        self._report = begin
        totals = origin.totals
        self._stats = RunStats(
            since=time.monotonic(),
            episodes=totals.episodes,
            decisions=totals.decisions,
            info=dict(totals.info),
        )
        self._start_time = time.time()
        self._incarnation = secrets.randbits(63)
        self._at_summary = time.monotonic(), begin.rank_waited_s
        self._summary: dict[str, float] = {}
        self._archive: tuple[StageArchive, ...] = ()  # as last written
        self._process = process_metrics()
        self._last = self._status({})
        self._endpoint: prometheus.Endpoint | None = None
        self._closing = threading.Event()

    def record(self, report: StepReport) -> None:
        """Queue a report (training thread). Metrics are averaged; otherwise the newest report replaces earlier ones."""
        self._meter.add(report.metrics)
        self._report = report

    def start(self) -> None:
        """Start the thread and the Prometheus endpoint.

        Raises:
            ConfigError: as `prometheus.serve`.
        """
        self._endpoint = prometheus.serve(self._config.telemetry, lambda: self._last)
        super().start()

    def run(self) -> None:
        """Receive statuses, write and report at their intervals until closed, then once more."""
        keep_settings(self._directory, to_yaml(self._config))
        board = Board(self._directory, self._config, self.totals.decisions)
        episodes = EpisodeLog(self._directory, columns_of(self._config.env))
        telemetry = self._config.telemetry
        next_status = time.monotonic()
        next_summary = next_status + min(telemetry.log_interval_s, FIRST_SUMMARY_S)
        while not self._closing.is_set():
            self._receive_status(episodes, min(next_summary, next_status) - time.monotonic())
            now = time.monotonic()
            if now >= next_summary:
                self._summarize(board, now)
                next_summary = now + telemetry.log_interval_s
            if now >= next_status:
                self._report_status(now)
                next_status = now + telemetry.status_interval_s
        for _ in range(MAX_QUEUED_STATUSES):
            self._receive_status(episodes, 0.0)
        now = time.monotonic()
        self._summarize(board, now)
        self._report_status(now)
        board.close()
        episodes.close()

    def _receive_status(self, episodes: EpisodeLog, timeout_s: float) -> None:
        """Add one status to the statistics and episodes.csv, if one arrives in time."""
        try:
            status = self._publisher.statuses.get(timeout=max(0.0, min(timeout_s, IDLE_S)))
        except queue.Empty:
            return
        self._stats.add(status, time.monotonic())
        self.totals = Totals.of(self._stats)
        episodes.write(time.time(), self.totals.decisions, status.episodes)

    def _summarize(self, board: Board, now: float) -> None:
        report = self._report
        self._stats.add(self._status(self._own(report)), now)
        numbers = self._stats.summary(now, report.update) | self._meter.take() | self._rank_waits(report, now)
        self._archive = self._stats.archive(now)
        histograms: dict[str, Histogram] = {**report.histograms, **self._stats.ends()}
        histograms.update(archive.curves(self._archive))
        board.write(numbers, histograms, self.totals.decisions)
        self._summary = numbers | {"decisions": self.totals.decisions}
        logging.getLogger(PROGRESS_LOG).info("progress  %s", progress_line(numbers))

    def _report_status(self, now: float) -> None:
        """Relay the learner's own status: process, newest summary, live roles, settings shown by apex-top."""
        config, report = self._config, self._report
        self._process = process_metrics()  # only here: host_cpu is measured since the previous call
        self._last = self._status(
            self._summary
            | self._own(report)
            | {"train/updates": report.update}
            | {f"live_{role}": len(self._stats.live(role, now)) for role in ROLES if role != "learner"}
            | {
                "shards": config.replay.shards,
                "batch_size": config.learner.batch_size,
                "sync_every": config.learner.sync_every,
            }
        )
        self._publisher.relay(self._last)

    def _own(self, report: StepReport) -> dict[str, float]:
        """Metrics of the learner's process."""
        return {
            "updates": report.update - self._first_update,
            "waited_s": report.waited_s,
            "refused_statuses": self._publisher.refused,
            **report.counters,
            **self._process,
        }

    def _rank_waits(self, report: StepReport, now: float) -> dict[str, float]:
        """Share of time that each rank waited for batches since the previous summary, by tag; empty for one rank."""
        (before, waited_before_s), waited_s = self._at_summary, report.rank_waited_s
        self._at_summary = now, waited_s
        if len(waited_s) == 1:
            return {}
        shares = (waited_s - waited_before_s) / max(now - before, 1e-9)
        return {f"wait/rank_{rank}": float(share) for rank, share in enumerate(np.minimum(shares, 1.0))}

    def _status(self, metrics: dict[str, float]) -> Status:
        return Status(
            role="learner",
            name="learner",
            host=socket.gethostname(),
            pid=os.getpid(),
            incarnation=self._incarnation,
            start_time=self._start_time,
            time=time.time(),
            progress_time=self._report.progress_time,
            metrics=metrics,
            archive=self._archive,
        )

    def close(self) -> None:
        """Process queued statuses, write the last point, relay the last status, stop the thread."""
        self._closing.set()
        if self._endpoint is not None:
            self._endpoint.close()
        if self.is_alive():
            self.join()


class Saver:
    """Writes the checkpoints of a run; used only by the training thread.

    experience, network: signatures.

    Raises:
        CheckpointError: the directory cannot be created.
    """

    def __init__(self, config: Config, directory: Path, origin: Origin, experience: str, network: str) -> None:
        self._config = config
        self._origin = origin
        self._experience, self._network = experience, network
        self._store = CheckpointStore(directory, config.learner.keep_checkpoints)
        self._best_score = origin.best_score

    def save(self, trainer: Trainer, totals: Totals, elapsed_s: float) -> None:
        """Write a checkpoint. If that fails, log an error and keep the previous one.

        elapsed_s: training time of the run in seconds, resumed parts included.
        """
        if not trainer.finite():
            log.error("checkpoint not saved because parameters are not finite; the previous one is kept")
            return
        score = totals.low_epsilon_return
        best = score is not None and (self._best_score is None or score > self._best_score)
        best_score = score if best else self._best_score
        checkpoint = Checkpoint(
            tensors=trainer.state(),
            counters={
                "updates": trainer.updates,
                "decisions": totals.decisions,
                "episodes": totals.episodes,
                "elapsed_s": elapsed_s,
                **totals.info,
            },
            config=to_tree(self._config),
            run_id=self._origin.run_id,
            learner_incarnation=self._origin.learner_incarnation,
            best_score=best_score,
            experience=self._experience,
            network=self._network,
        )
        try:
            path = self._store.save(checkpoint, best)
        except CheckpointError as error:
            log.error("checkpoint not saved, training continues: %s", error)
        else:
            self._best_score = best_score
            log.info("saved %s%s", path, ", the best so far" if best else "")


def spent_budget(run: Run, updates: int, totals: Totals, elapsed_s: float) -> str | None:
    """The first budget of the run that is spent, as "<count> of <budget> <unit>"; None: none is spent."""
    budgets = (
        ("episodes", totals.episodes, run.episodes),
        ("decisions", totals.decisions, run.max_decisions),
        ("updates", updates, run.max_updates),
        ("minutes", elapsed_s / 60, run.max_minutes),
    )
    for unit, count, budget in budgets:
        if budget is not None and count >= budget:
            return f"{count:g} of {budget:g} {unit}"
    return None
