"""The learner role: takes gradient steps, returns priorities, publishes, saves."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from pathlib import Path

import numpy as np
import torch

from apex_zmq.checkpoint import Checkpoint, CheckpointError, CheckpointStore, load
from apex_zmq.config import Config, to_tree
from apex_zmq.envs.make import env_spec
from apex_zmq.errors import UserError
from apex_zmq.importance import ImportanceWeights
from apex_zmq.keys import client_keys, server_keys
from apex_zmq.roles import bad_batches
from apex_zmq.roles.broadcaster import Broadcaster
from apex_zmq.roles.feeder import DecodedBatch, Feeder
from apex_zmq.rundir import RunDirectory
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.telemetry import RunStats
from apex_zmq.training import Trainer
from apex_zmq.transport import Outbox
from apex_zmq.types import Float32s, PriorityUpdate
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Hello, Parameters, encode, encode_priorities, make_tensors

log = logging.getLogger(__name__)

PRIORITY_HWM = 64
HELLO_S = 1.0
IDLE_S = 0.1


class DivergenceError(UserError):
    """Training has come to nothing; starting again where it was saved would lead there again."""


class Learner:
    """One learner process.

    resume: go on from the latest checkpoint of the run directory.
    init_from: start from the online parameters of this checkpoint.

    Raises:
        ConfigError: a directory or address in use, a device that is not there.
        EnvError: an environment that is unknown.
        CheckpointError: a checkpoint that is missing, damaged or of another network or experience.
    """

    def __init__(self, config: Config, directory: Path, *, resume: bool = False, init_from: Path | None = None) -> None:
        torch.set_num_threads(config.learner.threads)
        spec = env_spec(config.env)
        self._config = config
        self._trainer = Trainer(config, spec)
        self._experience_signature = experience_signature(config)
        self._network_signature = network_signature(self._trainer.parameters())
        if init_from is not None:
            self._trainer.initialize(self._load(init_from).tensors["online"])
        keys = client_keys(config.addresses, "priorities")
        # Addresses before the directory, so that a run that cannot begin leaves none behind.
        self._broadcaster = Broadcaster(config, directory)
        self._feeder = Feeder(
            config.addresses.batches,
            insecure=config.addresses.insecure,
            keys=server_keys(config.addresses, "batches"),
            frame=spec.frame,
            n_step=config.agent.n_step,
            num_actions=spec.num_actions,
            pin_memory=self._trainer.device.type == "cuda",
        )
        self._directory = RunDirectory(directory)
        self._checkpoints = CheckpointStore(directory, config.learner.keep_checkpoints)
        self._run_id = secrets.token_hex(8)
        self._epoch = time.time_ns()
        self._elapsed_s = 0.0
        self._best_score: float | None = None
        self._version = 0
        self._bad_steps = self._bad_steps_in_a_row = 0
        if resume:
            self._restore(directory)
        self._feeder.epoch = self._epoch
        self._shards = [Outbox(address, hwm=PRIORITY_HWM, keys=keys) for address in config.addresses.priorities]
        self._weights = ImportanceWeights()
        log.info(
            "run %s in %s on %s; experience signature %s, network signature %s",
            self._run_id,
            directory,
            self._trainer.device,
            self._experience_signature,
            self._network_signature,
        )

    def run(self, stop: threading.Event) -> None:
        """Train until told to stop or a budget of the run is spent, then save.

        Raises:
            DivergenceError: too many steps in a row were skipped; the checkpoints are those from before.
            RuntimeError: one of the learner's threads has died.
        """
        try:
            self._train(stop)
            self._save()
        finally:
            self._close()

    def _train(self, stop: threading.Event) -> None:
        config = self._config.learner
        self._started = time.monotonic()
        self._feeder.start()
        self._broadcaster.start()
        self._publish()
        if not self._trainer.updates:
            self._save()  # so that a learner that dies early can be started again with --resume
        next_hello = 0.0
        while not stop.is_set() and not self._budget_spent():
            now = time.monotonic()
            if now >= next_hello:
                self._greet_shards()
                next_hello = now + HELLO_S
            decoded = self._feeder.get(IDLE_S)
            self._broadcaster.waited_s += time.monotonic() - now
            self._check_threads()
            if decoded is None:
                continue
            before = self._trainer.updates
            self._learn(decoded)
            updates = self._trainer.updates
            if updates == before:
                continue
            self._broadcaster.update, self._broadcaster.progress_time = updates, time.time()
            if updates % config.sync_every == 0:
                self._publish()
            if updates % config.save_every == 0:
                self._save()

    def _check_threads(self) -> None:
        for thread in (self._feeder, self._broadcaster):
            if not thread.is_alive():
                raise RuntimeError(f"the learner's {thread.name} has died")

    def _learn(self, decoded: DecodedBatch) -> None:
        batch, sample = decoded.batch, decoded.batch.sample
        weights = self._weights.weigh(
            batch.shard,
            batch.generation,
            sample.priority,
            sample.mass,
            sample.num_transitions,
            self._trainer.beta,
            time.monotonic(),
        )
        weights[decoded.broken] = 0.0
        result = self._trainer.step(decoded.windows, sample, weights)
        if result.td_error is not None:
            self._bad_steps_in_a_row = 0
            self._broadcaster.meter.add(result.metrics)
            self._broadcaster.newest = {"train/td_error": result.td_error, "replay/priority": sample.priority}
            keys, td_error = sample.keys, np.where(decoded.broken, np.float32(-1), result.td_error)
        else:
            keys = sample.keys[decoded.broken | result.hopeless]
            td_error = np.full(len(keys), -1, np.float32)
        update = PriorityUpdate(batch.epoch, batch.rank, batch.generation, batch.number, keys, td_error)
        if batch.shard < len(self._shards):
            self._shards[batch.shard].send(encode_priorities(update))
        if result.td_error is None:
            self._skip(decoded, weights, result.reason)
        self._broadcaster.faults = {"bad_steps": self._bad_steps, "corrupted_windows": self._feeder.corrupted}
        self._broadcaster.feed = {
            "decoded": self._feeder.decoded,
            "decode_s": self._feeder.decode_s,
            "refused_batches": self._feeder.refused,
        }
        self._feeder.recycle(decoded)

    def _skip(self, decoded: DecodedBatch, weights: Float32s, reason: str) -> None:
        """Keep what a step failed on; end when nothing else happens any more.

        Raises:
            DivergenceError: so many in a row that no later batch will do.
        """
        self._bad_steps += 1
        self._bad_steps_in_a_row += 1
        log.error("step after update %d skipped: %s", self._trainer.updates, reason)
        bad_batches.save(self._directory.path, self._trainer.updates, decoded, weights)
        if self._bad_steps_in_a_row >= self._config.learner.max_bad_steps:
            raise DivergenceError(
                f"{self._bad_steps_in_a_row} steps in a row were skipped, the last one for {reason}; look at "
                f"{self._directory.path / bad_batches.DIRECTORY}, lower learner.learning_rate, and --resume"
            )

    def _greet_shards(self) -> None:
        hello = Hello(run=self._run_id, epoch=self._epoch, rank=0, signature=self._experience_signature)
        for shard in self._shards:
            shard.send(encode(Kind.HELLO, hello))

    def _publish(self) -> None:
        if not self._trainer.finite():
            log.error("parameters not published, they are not finite")
            return
        self._version += 1
        self._broadcaster.publish(
            Parameters(
                run=self._run_id,
                epoch=self._epoch,
                version=self._version,
                update=self._trainer.updates,
                network_signature=self._network_signature,
                experience_signature=self._experience_signature,
                tensors=make_tensors(self._trainer.parameters()),
            )
        )

    def _run_seconds(self) -> float:
        return self._elapsed_s + time.monotonic() - self._started

    def _budget_spent(self) -> bool:
        run, stats = self._config.run, self._broadcaster.stats
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

    def _load(self, path: Path) -> Checkpoint:
        """A checkpoint that fits this run's network.

        Raises:
            CheckpointError: it does not, or cannot be read.
        """
        checkpoint = load(path)
        if checkpoint.network != self._network_signature:
            raise CheckpointError(
                f"{path} holds network {checkpoint.network}, this config makes {self._network_signature}; "
                "use the config it was trained with"
            )
        return checkpoint

    def _restore(self, directory: Path) -> None:
        checkpoint = self._load(directory)
        if checkpoint.experience != self._experience_signature:
            raise CheckpointError(
                f"{directory} was trained on experience {checkpoint.experience}, "
                f"this config makes {self._experience_signature}; resume with its own config, or use --init-from"
            )
        counters = checkpoint.counters
        self._trainer.restore(checkpoint.tensors, int(counters["updates"]))
        self._run_id = checkpoint.run_id
        self._epoch = max(self._epoch, checkpoint.epoch + 1)
        self._elapsed_s = counters["elapsed_s"]
        self._best_score = checkpoint.best_score
        log.info("resuming %s at update %d", directory, self._trainer.updates)
        self._broadcaster.update = self._broadcaster.first_update = self._trainer.updates
        self._broadcaster.stats = RunStats(
            since=self._broadcaster.stats.since,
            episodes=int(counters["episodes"]),
            decisions=int(counters["decisions"]),
            clears=int(counters["clears"]),
            best_x=int(counters["best_x"]),
        )

    def _save(self) -> None:
        if not self._trainer.finite():
            log.error("checkpoint not saved, parameters are not finite; the one before stays")
            return
        stats = self._broadcaster.stats
        score = stats.low_epsilon_return
        best = score is not None and (self._best_score is None or score > self._best_score)
        if best:
            self._best_score = score
        checkpoint = Checkpoint(
            tensors=self._trainer.state(),
            counters={
                "updates": self._trainer.updates,
                "decisions": stats.decisions,
                "episodes": stats.episodes,
                "clears": stats.clears,
                "best_x": stats.best_x,
                "beta": self._trainer.beta,
                "elapsed_s": self._run_seconds(),
            },
            config=to_tree(self._config),
            run_id=self._run_id,
            epoch=self._epoch,
            best_score=self._best_score,
            experience=self._experience_signature,
            network=self._network_signature,
        )
        try:
            path = self._checkpoints.save(checkpoint, best)
        except CheckpointError as error:
            log.error("checkpoint not saved, training goes on: %s", error)
        else:
            log.info("saved %s%s", path, ", the best so far" if best else "")

    def _close(self) -> None:
        self._feeder.close()
        self._broadcaster.close()
        for shard in self._shards:
            shard.close()
        self._directory.release()
