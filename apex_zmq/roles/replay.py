"""The replay role: stores segments, sends batches to the learner, applies its priorities."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import asdict

import psutil

from apex_zmq.config import settings
from apex_zmq.config.settings import Config
from apex_zmq.errors import MismatchError
from apex_zmq.net.links import LINKS
from apex_zmq.net.rate_limited_log import RateLimitedLog
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.replay.accounts import Accounts
from apex_zmq.replay.credits import Credits, Dealing
from apex_zmq.replay.disk.budget import check_memory
from apex_zmq.replay.disk.keeper import keeper_of
from apex_zmq.replay.governor import Governor
from apex_zmq.replay.store import Store
from apex_zmq.roles.status import StatusReporter
from apex_zmq.signature import experience_signature
from apex_zmq.types import Batch, PriorityUpdate, Shipment
from apex_zmq.wire.body import Parts
from apex_zmq.wire.codec import Kind, WireError, pack
from apex_zmq.wire.experience import actor_of, decode_priorities, decode_segment, encode_batch
from apex_zmq.wire.messages import REASON_LENGTH, Bye, Hello, Refusal, decode_bye, decode_hello

log = logging.getLogger(__name__)

SILENT_S = 10.0  # time without HELLO after which any other learner replaces the current one
SEGMENTS_PER_TURN = 8  # stored before the other sockets are polled again
IDLE_S = 0.1


class ReplayServer:
    """One shard. The constructor binds addresses and allocates memory; `run` serves.

    Raises:
        ConfigError: an address cannot be bound, memory is too small, or the directory is in use or holds experience of
            another signature.
    """

    def __init__(self, config: Config, shard: int) -> None:
        replay, links = config.replay, Links(config)
        self._shard = shard
        self._batch_size = config.learner.batch_size
        self._signature = experience_signature(config)
        self._credit_limit, self._credit_timeout_s = replay.credits, replay.credit_timeout_s
        needed = check_memory(config, shards=1)
        self._experience: Inbox[Shipment | Bye] = links.bind(
            "experience",
            {
                Kind.SEGMENT: lambda parts: self._decode_segment(parts, config.agent.n_step),
                Kind.BYE: decode_bye,
            },
            shard,
        )
        self._priorities: Inbox[PriorityUpdate | Hello] = links.bind(
            "priorities", {Kind.PRIORITIES: decode_priorities, Kind.HELLO: self._decode_hello}, shard
        )
        ranks = len(settings.addresses_of(config.addresses, "batches"))
        self._batches = [links.connect("batches", rank) for rank in range(ranks)]
        self._keeper = keeper_of(config, shard, self._signature)
        self._store = Store(
            capacity=replay.capacity // replay.shards,
            arena_bytes=replay.arena_bytes // replay.shards,
            frame_window=config.env.frame_stack + config.agent.n_step,
            alpha=replay.alpha,
            epsilon=replay.epsilon,
            seed=config.run.seed + shard,
            arena_path=self._keeper.arena_path if self._keeper is not None else None,
        )
        self._governor = Governor(
            min_size=settings.min_size_per_shard(config),
            samples_per_insert=replay.samples_per_insert,
            tolerance=settings.tolerance(config),
            batch_size=config.learner.batch_size,
            max_segment=config.actor.segment_length,
        )
        if self._keeper is not None:
            self._keeper.recover(self._store, self._governor)
        self._recovered_counts = self._governor.inserts, self._governor.samples
        self._dealing: Dealing | None = None
        self._reporter = StatusReporter("replay", f"replay-{shard}", secrets.randbits(63), config, links)
        self._accounts = Accounts()
        self._refused = RateLimitedLog("refused a segment of")
        self._retired = RateLimitedLog("retired transitions of")
        self._counts = {"stale_updates": 0, "retired": 0, "evicted_updates": 0}
        self._wait_s = {"idle_s": 0.0, "insert_blocked_s": 0.0, "sample_blocked_s": 0.0, "link_blocked_s": 0.0}
        self._sample_age = 0.0
        self._version_shown = 0.0  # monotonic seconds of the newest answered message of another version
        if needed > psutil.virtual_memory().available:
            log.warning("available memory may not suffice; stop other programs, or lower replay.arena_bytes")
        log.info(
            "shard %d holds up to %d transitions in %.2f GB; signature %s",
            shard,
            replay.capacity // replay.shards,
            needed / 1e9,
            self._signature,
        )

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            MismatchError: the learner speaks another major version of the protocol.
        """
        self._reporter.start()
        try:
            self._serve(stop)
        except MismatchError:
            self._close()
            raise
        self._close()

    def _serve(self, stop: threading.Event) -> None:
        while not stop.is_set():
            may_insert = self._may_insert()
            started = time.monotonic()
            wait(
                [self._priorities, self._experience] if may_insert else [self._priorities],
                [self._batches[rank] for rank in self._ranks_to_deal_to()],
                IDLE_S,
            )
            self._account_waiting(time.monotonic() - started, may_insert)
            for _ in range(LINKS["priorities"].bound_queue):
                if (message := self._priorities.receive()) is None:
                    break
                self._handle_learner(message)
            self._check_version()
            if may_insert:
                self._insert_waiting()
            for rank in self._ranks_to_deal_to():
                if self._batches[rank].ready:
                    self._deal(rank)
                    break
            if self._keeper is not None:
                self._keeper.maybe_snapshot(self._store, self._governor)
            self._report()

    def _close(self) -> None:
        self._reporter.close()
        if self._keeper is not None:
            self._keeper.close(self._store, self._governor)
        self._experience.close()
        self._priorities.close()
        for outbox in self._batches:
            outbox.close()

    def _check_version(self) -> None:
        """Answer a learner of another major version with this shard's, unless another learner is being served.

        Raises:
            MismatchError: no learner of this version has been accepted.
        """
        foreign = self._priorities.foreign
        if foreign is None or foreign.until <= self._version_shown:
            return
        self._version_shown = foreign.until
        if self._dealing is None or foreign.until - self._dealing.last_hello > SILENT_S:
            for outbox in self._batches:
                outbox.send([pack(Kind.BATCH, b"")])
        self._priorities.check_version("learner")

    def _decode_hello(self, parts: Parts) -> Hello:
        hello = decode_hello(parts)
        if hello.signature != self._signature:
            raise WireError(
                f"learner of run {hello.run} has experience signature {hello.signature}, ours is {self._signature}: "
                "start it with this run's config"
            )
        if hello.rank >= len(self._batches):
            raise WireError(
                f"rank {hello.rank} of run {hello.run}, but addresses.batches lists {len(self._batches)}; "
                "list one per rank"
            )
        return hello

    def _decode_segment(self, parts: Parts, n_step: int) -> Shipment:
        try:
            return decode_segment(parts, self._signature, n_step)
        except WireError as error:
            actor = actor_of(parts)
            if actor is not None:
                self._accounts.refusals.add(actor, str(error))
            raise

    def _handle_learner(self, message: PriorityUpdate | Hello) -> None:
        if isinstance(message, Hello):
            self._handle_hello(message, time.monotonic())
            return
        update = message
        if update.shard_incarnation != self._store.incarnation:
            self._counts["stale_updates"] += 1
            return
        if (
            self._dealing is not None
            and update.learner_incarnation == self._dealing.learner_incarnation
            and update.rank in self._dealing.credits
        ):
            self._dealing.credits[update.rank].acknowledge(update.acknowledged)
        if update.retired.any():
            broken = update.keys[update.retired]
            for actor in self._store.actors_of(broken):
                self._retired.add(repr(actor), f"among {len(broken)} of batch {update.acknowledged}")
        counts = self._store.update(update.keys, update.td_error, update.retired)
        self._counts["evicted_updates"] += counts.evicted
        self._counts["retired"] += counts.retired

    def _handle_hello(self, hello: Hello, now: float) -> None:
        """Serve the highest live incarnation, and each of its ranks that has sent HELLO."""
        current = self._dealing
        if current is None or hello.learner_incarnation != current.learner_incarnation:
            if (
                current is not None
                and hello.learner_incarnation < current.learner_incarnation
                and now - current.last_hello <= SILENT_S
            ):
                return
            log.info("sending batches to learner of run %r, incarnation %d", hello.run, hello.learner_incarnation)
            current = self._dealing = Dealing(hello.learner_incarnation, now)
        current.last_hello = now
        if hello.rank not in current.credits:
            current.credits[hello.rank] = Credits(self._credit_limit, self._credit_timeout_s)

    def _may_insert(self) -> bool:
        """Whether an insert is allowed: by the governor, or because nothing can be sampled, which would deadlock."""
        return self._governor.may_insert() or self._store.mass <= 0

    def _insert_waiting(self) -> None:
        for _ in range(SEGMENTS_PER_TURN):
            if not self._may_insert() or (message := self._experience.receive()) is None:
                return
            if isinstance(message, Bye):
                self._handle_bye(message)
            else:
                self._insert(message)

    def _handle_bye(self, bye: Bye) -> None:
        counts = self._accounts.finish(bye.actor, bye.incarnation, bye.count)
        if counts is not None:
            log.info("%r has stopped after %d segments: %s", bye.actor, bye.count, counts)

    def _insert(self, shipment: Shipment) -> None:
        actor, incarnation, sequence = shipment.actor, shipment.incarnation, shipment.sequence
        if not self._accounts.admit(actor, incarnation, sequence):
            return
        try:
            self._store.append(shipment)
        except ValueError as error:
            self._accounts.refuse(actor, incarnation, str(error))
            self._refused.add(repr(actor), f"segment {sequence}: {error}")
            return
        self._governor.inserts += shipment.segment.num_transitions
        self._reporter.progress()

    def _ranks_to_deal_to(self) -> list[int]:
        """Ranks with a credit left, in order of their batches in flight."""
        if self._dealing is None or self._store.mass <= 0 or not self._governor.may_sample():
            return []
        credits, now = self._dealing.credits, time.monotonic()
        return sorted(
            (rank for rank in credits if credits[rank].available(now)), key=lambda rank: credits[rank].in_flight
        )

    def _deal(self, rank: int) -> None:
        assert self._dealing is not None
        sample = self._store.sample(self._batch_size)
        batch = Batch(
            learner_incarnation=self._dealing.learner_incarnation,
            rank=rank,
            shard=self._shard,
            shard_incarnation=self._store.incarnation,
            number=self._dealing.credits[rank].next_number,
            sample=sample,
        )
        if self._batches[rank].send(encode_batch(batch)):
            self._dealing.credits[rank].deal(time.monotonic())
            self._governor.samples += self._batch_size
            self._sample_age = self._store.next_key - float(sample.keys.mean())
            self._reporter.progress()

    def _account_waiting(self, elapsed_s: float, may_insert: bool) -> None:
        """Add the time waited to its causes: the governor, on either side, or a learner that takes no batch."""
        self._wait_s["idle_s"] += elapsed_s
        if not may_insert:
            self._wait_s["insert_blocked_s"] += elapsed_s
        if self._governor.inserts >= self._governor.min_size:
            cause = "link_blocked_s" if self._governor.may_sample() else "sample_blocked_s"
            self._wait_s[cause] += elapsed_s

    def _report(self) -> None:
        self._reporter.refusals = tuple(
            Refusal(actor=actor, segments=refused.segments, reason=refused.reason[:REASON_LENGTH])
            for actor, refused in self._accounts.refusals.by_actor.items()
        )
        store, governor = self._store, self._governor
        credits = self._dealing.credits.values() if self._dealing is not None else ()
        self._reporter.metrics = {
            "size": store.num_transitions,
            "bytes": store.num_bytes,
            "mass": store.mass,
            "inserts": governor.inserts - self._recovered_counts[0],
            "samples": governor.samples - self._recovered_counts[1],
            "surplus": governor.surplus,
            "samples_per_insert_target": governor.samples_per_insert or 0.0,
            "min_size_left": max(0, governor.min_size - governor.inserts),
            "sample_age": self._sample_age,
            "in_flight": sum(each.in_flight for each in credits),
            "lost_batches": sum(each.lost for each in credits),
            "refused_messages": self._experience.refused + self._priorities.refused,
            **{f"segments_{outcome}": count for outcome, count in asdict(self._accounts.totals).items()},
            **self._counts,
            **self._wait_s,
            **(self._keeper.metrics if self._keeper is not None else {}),
        }
