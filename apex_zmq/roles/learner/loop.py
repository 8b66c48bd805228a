"""The learner role: takes gradient steps and returns priorities; rank 0 publishes and saves besides."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from apex_zmq.agent.importance import Draw, ImportanceWeights
from apex_zmq.agent.ranks import ALONE, Ranks
from apex_zmq.agent.trainer import Trainer
from apex_zmq.config.settings import Config, batch_addresses
from apex_zmq.envs.make import env_spec
from apex_zmq.errors import CheckpointError, ConfigError, UserError
from apex_zmq.net.keys import client_keys, server_keys
from apex_zmq.net.sockets import Outbox
from apex_zmq.roles.learner import bad_batches
from apex_zmq.roles.learner.feeder import DecodedBatch, Feeder
from apex_zmq.roles.learner.lead import Lead
from apex_zmq.rundir.checkpoint import Checkpoint, load, to_play
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.types import Float32s, PriorityUpdate
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import encode_priorities
from apex_zmq.wire.messages import Hello

log = logging.getLogger(__name__)

PRIORITY_HWM = 64
HELLO_S = 1.0
IDLE_S = 0.1
# What each rank says to the others before a step.
SAID = np.dtype(
    [
        ("leave", "?"),  # told to stop, or a budget is spent
        ("ready", "?"),  # has a batch; what follows is of it, up to `least`
        ("shard", "i8"),
        ("shard_incarnation", "i8"),
        ("mass", "f8"),
        ("num_transitions", "i8"),
        ("least", "f8"),
        ("now", "f8"),  # monotonic seconds
        ("waited_s", "f8"),  # for a batch, since it last said something
        ("corrupted", "i8"),  # windows so far
    ]
)


class DivergenceError(UserError):
    """Training has come to nothing; starting again where it was saved would lead there again."""


class Learner:
    """One process of the learner: its only one, or one of several ranks that take every step together.

    Each rank takes batches of its own and returns their priorities; all have the same parameters at all times.

    resume: go on from the latest checkpoint of the run directory, which all ranks must see.
    init_from: start from the parameters that an evaluation of this checkpoint, or of this directory, plays.

    Raises:
        ConfigError: a directory or address in use, a device that is not there, ranks that were not given the same.
        EnvError: an environment that is unknown.
        CheckpointError: a checkpoint that is missing, damaged or of another network or experience.
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
        addresses = batch_addresses(config.addresses)
        if len(addresses) != ranks.size:
            raise ConfigError(
                f"addresses.batches lists {len(addresses)} for {ranks.size} ranks of the learner; list one for each "
                "that torchrun starts"
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
        keys = client_keys(config.addresses, "priorities")
        self._feeder = Feeder(
            addresses[ranks.rank],
            insecure=config.addresses.insecure,
            keys=server_keys(config.addresses, "batches"),
            frame=spec.frame,
            n_step=config.agent.n_step,
            num_actions=spec.num_actions,
            pin_memory=self._trainer.device.type == "cuda",
        )
        self._lead: Lead | None = None
        if ranks.rank == 0:
            self._lead = Lead(config, directory, self._trainer, self._experience_signature, self._network_signature)
        if resume:
            self._restore()
        self._hello = self._agree()
        self._feeder.learner_incarnation = self._hello.learner_incarnation
        self._shards = [Outbox(address, hwm=PRIORITY_HWM, keys=keys) for address in config.addresses.priorities]
        self._weights = ImportanceWeights()
        self._bad_steps = self._bad_steps_in_a_row = 0
        log.info(
            "run %s in %s on %s; experience signature %s, network signature %s",
            self._hello.run,
            directory,
            self._trainer.device,
            self._experience_signature,
            self._network_signature,
        )

    def _agree(self) -> Hello:
        """How this rank greets the shards: in rank 0's incarnation.

        Raises:
            ConfigError: rank 0 has other settings, or begins elsewhere.
        """
        said: Any = None
        here = [self._experience_signature, self._network_signature, self._trainer.updates]
        if self._lead is not None:
            said = [self._lead.run_id, self._lead.learner_incarnation, *here]
        run_id, incarnation, *there = self._ranks.share(said)
        if here != there:
            raise ConfigError(
                f"rank {self._ranks.rank} has signatures and updates {here}, rank 0 {there}; give all ranks the same "
                "config, and a run directory that all see"
            )
        return Hello(
            run=run_id, learner_incarnation=incarnation, rank=self._ranks.rank, signature=self._experience_signature
        )

    def run(self, stop: threading.Event) -> None:
        """Train until a rank is told to stop or a budget of the run is spent, then save.

        Raises:
            DivergenceError: too many steps in a row were skipped; the checkpoints are those from before.
            RankLostError: another rank has ended.
            RuntimeError: one of the learner's threads has died.
        """
        try:
            self._train(stop)
            if self._lead is not None:
                self._lead.save()
        finally:
            self._close()

    def _train(self, stop: threading.Event) -> None:
        lead = self._lead
        self._feeder.start()
        if lead is not None:
            lead.start()
        decoded: DecodedBatch | None = None
        next_hello = 0.0
        while True:
            begin = time.monotonic()
            if begin >= next_hello:
                self._greet_shards()
                next_hello = begin + HELLO_S
            leave = stop.is_set() or (lead is not None and lead.budget_spent())
            if decoded is None and not leave:
                decoded = self._feeder.get(IDLE_S)
            # Nobody waits long in here: who has no batch says so.
            said = self._ranks.gather(self._say(leave, decoded, begin))
            if lead is not None:
                lead.waited(time.monotonic() - begin, said["waited_s"])
            self._check_threads()
            if said["leave"].any():
                return
            if decoded is not None and said["ready"].all():
                self._learn(decoded, said)
                decoded = None

    def _say(self, leave: bool, decoded: DecodedBatch | None, begin: float) -> npt.NDArray[Any]:
        now = time.monotonic()
        said = np.zeros((), SAID)
        said["leave"], said["now"], said["waited_s"] = leave, now, now - begin
        said["corrupted"] = self._feeder.corrupted
        if decoded is not None:
            batch, sample = decoded.batch, decoded.batch.sample
            said["ready"] = True
            said["shard"], said["shard_incarnation"] = batch.shard, batch.shard_incarnation
            said["mass"], said["num_transitions"] = sample.mass, sample.num_transitions
            said["least"] = sample.priority.min()
        return said

    def _check_threads(self) -> None:
        for thread in (self._feeder, *([self._lead.broadcaster] if self._lead is not None else [])):
            if not thread.is_alive():
                raise RuntimeError(f"the learner's {thread.name} has died")

    def _learn(self, decoded: DecodedBatch, said: npt.NDArray[Any]) -> None:
        batch, sample = decoded.batch, decoded.batch.sample
        draws = [Draw(*row) for row in said[[field.name for field in dataclasses.fields(Draw)]].tolist()]
        weights = self._weights.weigh(
            draws, self._ranks.rank, sample.priority, self._trainer.beta, said[0]["now"].item()
        )
        weights[decoded.broken] = 0.0
        result = self._trainer.step(decoded.windows, sample, weights)
        if result.td_error is not None:
            self._bad_steps_in_a_row = 0
            keys, td_error, retired = sample.keys, result.td_error, decoded.broken
        else:  # only what is retired has news
            keys = sample.keys[decoded.broken | result.hopeless]
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
        if batch.shard < len(self._shards):
            self._shards[batch.shard].send(encode_priorities(update))
        if result.td_error is None:
            self._skip(decoded, weights, result.reason)
        if self._lead is not None:
            self._lead.stepped(result, sample, self._counters(said["corrupted"].sum().item()))
        self._feeder.recycle(decoded)

    def _counters(self, corrupted: int) -> dict[str, float]:
        """By metric. corrupted: windows of all ranks; decoding is this rank's."""
        return {
            "bad_steps": self._bad_steps,
            "corrupted_windows": corrupted,
            "decoded": self._feeder.decoded,
            "decode_s": self._feeder.decode_s,
            "refused_batches": self._feeder.refused,
        }

    def _skip(self, decoded: DecodedBatch, weights: Float32s, reason: str) -> None:
        """Keep what a step failed on; end when nothing else happens any more.

        Raises:
            DivergenceError: so many in a row that no later batch will do.
        """
        self._bad_steps += 1
        self._bad_steps_in_a_row += 1
        log.error("step after update %d skipped: %s", self._trainer.updates, reason)
        bad_batches.save(self._directory, self._trainer.updates, decoded, weights)
        if self._bad_steps_in_a_row >= self._config.learner.max_bad_steps:
            raise DivergenceError(
                f"{self._bad_steps_in_a_row} steps in a row were skipped, the last one for {reason}; look at "
                f"{self._directory / bad_batches.DIRECTORY}, lower learner.learning_rate, and --resume"
            )

    def _greet_shards(self) -> None:
        for shard in self._shards:
            shard.send(encode(Kind.HELLO, self._hello))

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

    def _restore(self) -> None:
        checkpoint = self._load(self._directory)
        if checkpoint.experience != self._experience_signature:
            raise CheckpointError(
                f"{self._directory} was trained on experience {checkpoint.experience}, "
                f"this config makes {self._experience_signature}; resume with its own config, or use --init-from"
            )
        self._trainer.restore(checkpoint.tensors, int(checkpoint.counters["updates"]))
        log.info("resuming %s at update %d", self._directory, self._trainer.updates)
        if self._lead is not None:
            self._lead.restore(checkpoint)

    def _close(self) -> None:
        self._feeder.close()
        if self._lead is not None:
            self._lead.close()
        for shard in self._shards:
            shard.close()
        self._ranks.leave()
