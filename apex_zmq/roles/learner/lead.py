"""What rank 0 of the learner does for all ranks beside its share of the steps."""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path

from apex_zmq.agent.trainer import StepResult, Trainer
from apex_zmq.config.settings import Config, to_tree
from apex_zmq.errors import CheckpointError
from apex_zmq.roles.learner.broadcaster import Broadcaster
from apex_zmq.rundir.checkpoint import Checkpoint, CheckpointStore
from apex_zmq.rundir.directory import RunDirectory
from apex_zmq.types import Float64s, Sample
from apex_zmq.watch.stats import TOTALS, RunStats
from apex_zmq.wire.messages import Parameters, make_tensors

log = logging.getLogger(__name__)


class Lead:
    """Publishes parameters, hears statuses, saves checkpoints, watches the budgets.

    experience, network: signatures.
    run_id, learner_incarnation: of the run, and of this start of its learner.

    Raises:
        ConfigError: a directory or address in use.
        CheckpointError: a directory that cannot be made.
    """

    def __init__(self, config: Config, directory: Path, trainer: Trainer, experience: str, network: str) -> None:
        self._config = config
        self._trainer = trainer
        self._experience, self._network = experience, network
        # Addresses before the directory, so that a run that cannot begin leaves none behind.
        self.broadcaster = Broadcaster(config, directory)
        self._directory = RunDirectory(directory)
        self._checkpoints = CheckpointStore(directory, config.learner.keep_checkpoints)
        self.run_id = secrets.token_hex(8)
        self.learner_incarnation = time.time_ns()
        self._elapsed_s = 0.0
        self._best_score: float | None = None
        self._version = 0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on with the run of a checkpoint, whose tensors the trainer has already."""
        counters = checkpoint.counters
        self.run_id = checkpoint.run_id
        self.learner_incarnation = max(self.learner_incarnation, checkpoint.learner_incarnation + 1)
        self._elapsed_s = counters["elapsed_s"]
        self._best_score = checkpoint.best_score
        self.broadcaster.update = self.broadcaster.first_update = self._trainer.updates
        self.broadcaster.stats = RunStats(
            since=self.broadcaster.stats.since,
            episodes=int(counters["episodes"]),
            decisions=int(counters["decisions"]),
            totals={name: counters[name] for name in TOTALS if counters.get(name)},
        )

    def start(self) -> None:
        """Let actors begin."""
        self._started = time.monotonic()
        self.broadcaster.start()
        self._publish()
        if not self._trainer.updates:
            self.save()  # so that a learner that dies early can be started again with --resume

    def waited(self, seconds: float, by_rank: Float64s) -> None:
        """Time that went by until all ranks had a batch, and [R] what each spent waiting for its own."""
        self.broadcaster.waited_s += seconds
        self.broadcaster.rank_waited_s = self.broadcaster.rank_waited_s + by_rank

    def stepped(self, result: StepResult, sample: Sample, counters: dict[str, float]) -> None:
        """Tell of a step, and publish and save when it is time. counters: as `Broadcaster.counters`."""
        self.broadcaster.counters = counters
        if result.td_error is None:
            return
        updates = self._trainer.updates
        self.broadcaster.meter.add(result.metrics)
        self.broadcaster.newest = {"train/td_error": result.td_error, "replay/priority": sample.priority}
        self.broadcaster.update, self.broadcaster.progress_time = updates, time.time()
        if updates % self._config.learner.sync_every == 0:
            self._publish()
        if updates % self._config.learner.save_every == 0:
            self.save()

    def budget_spent(self) -> bool:
        """Whether the run is over."""
        run, stats = self._config.run, self.broadcaster.stats
        spent = (
            ("episodes", stats.episodes, run.episodes),
            ("decisions", stats.decisions, run.max_decisions),
            ("updates", self._trainer.updates, run.max_updates),
            ("minutes", self._run_seconds() / 60, run.max_minutes),
        )
        for what, count, budget in spent:
            if budget is not None and count >= budget:
                log.info("budget spent: %g of %g %s", count, budget, what)
                return True
        return False

    def _run_seconds(self) -> float:
        return self._elapsed_s + time.monotonic() - self._started

    def _publish(self) -> None:
        if not self._trainer.finite():
            log.error("parameters not published, they are not finite")
            return
        self._version += 1
        self.broadcaster.publish(
            Parameters(
                run=self.run_id,
                learner_incarnation=self.learner_incarnation,
                version=self._version,
                update=self._trainer.updates,
                network_signature=self._network,
                experience_signature=self._experience,
                tensors=make_tensors(self._trainer.parameters()),
            )
        )

    def save(self) -> None:
        """Write a checkpoint; what prevents it is logged, and the one before stays."""
        if not self._trainer.finite():
            log.error("checkpoint not saved, parameters are not finite; the one before stays")
            return
        stats = self.broadcaster.stats
        score = stats.low_epsilon_return
        best = score is not None and (self._best_score is None or score > self._best_score)
        best_score = score if best else self._best_score
        checkpoint = Checkpoint(
            tensors=self._trainer.state(),
            counters={
                "updates": self._trainer.updates,
                "decisions": stats.decisions,
                "episodes": stats.episodes,
                "elapsed_s": self._run_seconds(),
                **stats.totals,
            },
            config=to_tree(self._config),
            run_id=self.run_id,
            learner_incarnation=self.learner_incarnation,
            best_score=best_score,
            experience=self._experience,
            network=self._network,
        )
        try:
            path = self._checkpoints.save(checkpoint, best)
        except CheckpointError as error:
            log.error("checkpoint not saved, training goes on: %s", error)
        else:
            self._best_score = best_score
            log.info("saved %s%s", path, ", the best so far" if best else "")

    def close(self) -> None:
        """Write the last point of the curves, free addresses and directory."""
        self.broadcaster.close()
        self._directory.release()
