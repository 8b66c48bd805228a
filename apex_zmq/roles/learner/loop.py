"""The learner role: takes gradient steps and returns priorities; rank 0 also publishes, records and saves."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from apex_zmq.agent.importance import ImportanceWeights
from apex_zmq.agent.ranks import ALONE, Ranks
from apex_zmq.agent.trainer import StepResult, Trainer
from apex_zmq.config.settings import Config, addresses_of
from apex_zmq.envs.make import env_spec
from apex_zmq.errors import CheckpointError, ConfigError, UserError
from apex_zmq.net.sockets import Links
from apex_zmq.roles.learner import bad_batches, consensus
from apex_zmq.roles.learner.consensus import Exchange
from apex_zmq.roles.learner.feeder import DecodedBatch, Feeder, bind_batches
from apex_zmq.roles.learner.journal import Journal, Origin, Saver, StepReport, spent_budget
from apex_zmq.roles.learner.publisher import Publisher
from apex_zmq.rundir.checkpoint import Checkpoint, load, to_play
from apex_zmq.rundir.directory import RunDirectory
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import Float32s, PriorityUpdate
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import encode_priorities
from apex_zmq.wire.messages import Hello, Parameters, make_tensors

log = logging.getLogger(__name__)

HELLO_S = 1.0
IDLE_S = 0.1


class DivergenceError(UserError):
    """Too many gradient steps in a row were skipped; resuming from the newest checkpoint may fail the same way."""


class Learner:
    """One process of the learner: the only one, or one of several ranks that take every step together.

    Each rank receives its own batches and returns their priorities; all ranks always have the same parameters.

    resume: continue from the latest checkpoint of the run directory, which all ranks must be able to read.
    init_from: checkpoint or run directory whose evaluation parameters training starts from; None: none.

    Raises:
        ConfigError: a directory or address is in use, the device is missing, or ranks have different settings.
        EnvError: the environment is unknown.
        CheckpointError: a checkpoint is missing, damaged or of another network or experience.
        RankLostError: another rank has ended.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        *,
        resume: bool = False,
        init_from: Path | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        torch.set_num_threads(config.learner.threads)
        if (listed := len(addresses_of(config.addresses, "batches"))) != ranks.size:
            raise ConfigError(
                f"addresses.batches lists {listed} addresses for {ranks.size} ranks of the learner; list one per rank"
            )
        spec = env_spec(config.env)
        self._config = config
        self._directory = directory
        self._ranks = ranks
        self._trainer = Trainer(config, spec, ranks)
        self._experience_signature = experience_signature(config)
        self._network_signature = network_signature(self._trainer.parameters())
        if init_from is not None:
            self._trainer.initialize(self._load(to_play(init_from)).played)
        self._open = ExitStack()  # closed in reverse order
        self._open.callback(ranks.leave)
        links = Links(config)
        batches = bind_batches(links, config, ranks.rank, spec.frame)
        # Only rank 0 has a publisher, and with it a journal (see `run`).
        self._publisher: Publisher | None = None
        if ranks.rank == 0:
            # Bind addresses before creating the directory, so that a failed start leaves no directory behind.
            self._publisher = Publisher(links)
            self._open.callback(RunDirectory(directory).release)
            self._open.callback(self._publisher.close)
        self._origin = self._agree(self._restore() if resume else None)
        self._feeder = Feeder(
            batches,
            learner_incarnation=self._origin.learner_incarnation,
            num_actions=spec.num_actions,
            pin_memory=self._trainer.device.type == "cuda",
        )
        self._open.callback(self._feeder.close)
        self._shards = [links.connect("priorities", shard) for shard in range(len(config.addresses.priorities))]
        for shard in self._shards:
            self._open.callback(shard.close)
        self._threads: list[threading.Thread] = []
        self._weights = ImportanceWeights()
        self._bad_steps = self._bad_steps_in_a_row = 0
        self._version = 0
        log.info(
            "run %s in %s on %s; experience signature %s, network signature %s",
            self._origin.run_id,
            directory,
            self._trainer.device,
            self._experience_signature,
            self._network_signature,
        )

    def run(self, stop: threading.Event) -> None:
        """Train until `stop` is set on any rank or a budget of the run is spent, then save.

        Raises:
            DivergenceError: too many steps in a row were skipped; no checkpoint is written.
            RankLostError: another rank has ended.
            MismatchError: the shards speak another major version of the protocol.
            RuntimeError: one of the learner's threads has died.
        """
        with self._open:
            if self._publisher is not None:
                self._run_rank_0(stop, self._publisher)
            else:
                for _ in self._passes(stop.is_set):
                    pass

    def _run_rank_0(self, stop: threading.Event, publisher: Publisher) -> None:
        """Run rank 0: take steps, send a report of each to the journal, publish and save at their intervals."""
        trainer, settings = self._trainer, self._config.learner
        saver = Saver(self._config, self._directory, self._origin, self._experience_signature, self._network_signature)
        journal = Journal(self._config, self._directory, self._origin, self._first_report(), publisher)
        self._open.callback(journal.close)
        begin = time.monotonic()

        def elapsed_s() -> float:
            return self._origin.elapsed_s + time.monotonic() - begin

        def is_over() -> bool:
            if stop.is_set():
                return True
            spent = spent_budget(self._config.run, trainer.updates, journal.totals, elapsed_s())
            if spent is not None:
                log.info("budget spent: %s", spent)
            return spent is not None

        self._start(publisher)
        self._start(journal)
        self._publish(publisher)
        if trainer.updates == 0:
            # Lets a learner that dies early be restarted with --resume.
            saver.save(trainer, journal.totals, elapsed_s())
        for report in self._passes(is_over):
            journal.record(report)
            if report.stepped and report.update % settings.sync_every == 0:
                self._publish(publisher)
            if report.stepped and report.update % settings.save_every == 0:
                saver.save(trainer, journal.totals, elapsed_s())
        saver.save(trainer, journal.totals, elapsed_s())

    def _passes(self, is_over: Callable[[], bool]) -> Iterator[StepReport]:
        """Loop until a rank leaves: send HELLO, wait for a batch, take a step, return priorities.

        Yields a report after each pass. A pass takes a step only if every rank has a batch.
        """
        self._start(self._feeder)
        report = self._first_report()
        decoded: DecodedBatch | None = None
        next_hello = 0.0
        while True:
            begin = time.monotonic()
            if begin >= next_hello:
                self._send_hello()
                next_hello = begin + HELLO_S
            leave = is_over()
            if decoded is None and not leave:
                decoded = self._feeder.get(IDLE_S)
            # The wait above is short: a rank without a batch reports that here.
            now = time.monotonic()
            joint = consensus.exchange(
                self._ranks,
                leave=leave,
                decoded=decoded,
                now=now,
                waited_s=now - begin,
                corrupted=self._feeder.corrupted,
            )
            report = dataclasses.replace(
                report,
                waited_s=report.waited_s + time.monotonic() - begin,
                rank_waited_s=report.rank_waited_s + joint.waited_s,
                metrics={},
            )
            self._check_threads()
            if joint.leave:
                return
            if decoded is not None and joint.draws:
                report = self._learn(decoded, joint, report)
                self._feeder.recycle(decoded)
                decoded = None
            yield report

    def _learn(self, decoded: DecodedBatch, joint: Exchange, report: StepReport) -> StepReport:
        """Take a step, return its priorities to the shard, and return the updated report.

        Raises:
            DivergenceError: too many steps in a row were skipped.
        """
        sample = decoded.batch.sample
        weights = self._weights.weigh(joint.draws, self._ranks.rank, sample.priority, self._trainer.beta, joint.now)
        weights[decoded.broken] = 0.0
        result = self._trainer.step(decoded.windows, sample, weights)
        self._return_priorities(decoded, result)
        if result.td_error is None:
            self._record_bad_step(decoded, weights, result.reason)
        else:
            self._bad_steps_in_a_row = 0
            report = dataclasses.replace(
                report,
                update=self._trainer.updates,
                progress_time=time.time(),
                metrics=result.metrics,
                histograms={"train/td_error": result.td_error, "replay/priority": sample.priority},
            )
        counters = {
            "bad_steps": self._bad_steps,
            "corrupted_windows": joint.corrupted,
            "decoded": self._feeder.decoded,
            "decode_s": self._feeder.decode_s,
            "refused_batches": self._feeder.refused,
        }
        return dataclasses.replace(report, counters=counters)

    def _return_priorities(self, decoded: DecodedBatch, result: StepResult) -> None:
        """Send |TD| of all rows and retire broken ones; after a skipped step only retire rows that no step can use."""
        batch, keys = decoded.batch, decoded.batch.sample.keys
        if result.td_error is not None:
            td_error, retired = result.td_error, decoded.broken
        else:
            keys = keys[decoded.broken | result.hopeless]
            td_error, retired = np.zeros(len(keys), np.float32), np.ones(len(keys), np.bool_)
        update = PriorityUpdate(
            learner_incarnation=batch.learner_incarnation,
            rank=batch.rank,
            shard_incarnation=batch.shard_incarnation,
            acknowledged=batch.number,
            keys=keys,
            td_error=td_error,
            retired=retired,
        )
        self._shards[batch.shard].send(encode_priorities(update))

    def _record_bad_step(self, decoded: DecodedBatch, weights: Float32s, reason: str) -> None:
        """Count a failed step and save its batch.

        Raises:
            DivergenceError: `learner.max_bad_steps` steps in a row failed.
        """
        self._bad_steps += 1
        self._bad_steps_in_a_row += 1
        log.error("step after update %d skipped: %s", self._trainer.updates, reason)
        bad_batches.save(self._directory, self._trainer.updates, decoded, weights)
        if self._bad_steps_in_a_row >= self._config.learner.max_bad_steps:
            raise DivergenceError(
                f"{self._bad_steps_in_a_row} steps in a row were skipped, the last one because of {reason}; inspect "
                f"{self._directory / bad_batches.DIRECTORY}, lower learner.learning_rate, and restart with --resume"
            )

    def _send_hello(self) -> None:
        hello = Hello(
            run=self._origin.run_id,
            learner_incarnation=self._origin.learner_incarnation,
            rank=self._ranks.rank,
            signature=self._experience_signature,
        )
        for shard in self._shards:
            shard.send(encode(Kind.HELLO, hello))

    def _publish(self, publisher: Publisher) -> None:
        if not self._trainer.finite():
            log.error("parameters not published because they are not finite")
            return
        self._version += 1
        publisher.publish(
            Parameters(
                run=self._origin.run_id,
                learner_incarnation=self._origin.learner_incarnation,
                version=self._version,
                update=self._trainer.updates,
                network_signature=self._network_signature,
                experience_signature=self._experience_signature,
                tensors=make_tensors(self._trainer.parameters()),
            )
        )

    def _first_report(self) -> StepReport:
        return StepReport(self._trainer.updates, progress_time=time.time(), rank_waited_s=np.zeros(self._ranks.size))

    def _start(self, thread: threading.Thread) -> None:
        thread.start()
        self._threads.append(thread)

    def _check_threads(self) -> None:
        self._feeder.check_version()
        for thread in self._threads:
            if not thread.is_alive():
                raise RuntimeError(f"the learner's {thread.name} has died")

    def _load(self, path: Path) -> Checkpoint:
        """Load a checkpoint of this run's network.

        Raises:
            CheckpointError: it cannot be read, or is of another network.
        """
        checkpoint = load(path)
        if checkpoint.network != self._network_signature:
            raise CheckpointError(
                f"{path} has network signature {checkpoint.network}, this config {self._network_signature}; "
                "use the config it was trained with"
            )
        return checkpoint

    def _restore(self) -> Checkpoint:
        """Restore the trainer from the latest checkpoint of the run directory.

        Raises:
            CheckpointError: it cannot be read, or is of another network or experience.
        """
        checkpoint = self._load(self._directory)
        if checkpoint.experience != self._experience_signature:
            raise CheckpointError(
                f"{self._directory} has experience signature {checkpoint.experience}, "
                f"this config {self._experience_signature}; resume with its own config, or use --init-from"
            )
        self._trainer.restore(checkpoint.tensors, int(checkpoint.counters["updates"]))
        log.info("resuming %s at update %d", self._directory, self._trainer.updates)
        return checkpoint

    def _agree(self, checkpoint: Checkpoint | None) -> Origin:
        """Return the origin of the run, with the identity that rank 0 gives all ranks.

        Raises:
            ConfigError: rank 0 has different settings, or another number of updates.
        """
        origin = Origin.of(checkpoint)
        run_id, incarnation = consensus.agree(
            self._ranks,
            origin.run_id,
            origin.learner_incarnation,
            self._experience_signature,
            self._network_signature,
            self._trainer.updates,
        )
        return dataclasses.replace(origin, run_id=run_id, learner_incarnation=incarnation)
