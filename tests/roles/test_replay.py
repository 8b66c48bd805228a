"""A replay shard between an actor and a learner that the test plays: its settings do what they say."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apex_zmq.config import loading
from apex_zmq.config.settings import Config, addresses_of
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.roles import replay
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.roles.replay import ReplayServer
from apex_zmq.signature import experience_signature
from apex_zmq.types import Batch, FrameSpec, PriorityUpdate, Segment, Shipment
from apex_zmq.watch.metrics import unknown
from apex_zmq.wire.body import encode
from apex_zmq.wire.checksums import frame_crc, window_crcs
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import decode_batch, encode_priorities, encode_segment
from apex_zmq.wire.messages import Bye, Hello, Status, decode_status

from ..transitions import with_columns

LENGTH = 10  # transitions per segment
BATCH = 8
PATIENCE_S = 30.0


class Peers:
    """What a shard meets. Its statuses come often."""

    def __init__(self, directory: Path, values: int, changes: dict[str, Any]) -> None:
        paths = {name: f"ipc://{directory}/{name}" for name in ("experience", "priorities", "batches", "status")}
        many = {f"addresses.{name}": [paths[name]] for name in ("experience", "priorities")}
        self.config: Config = loading.replace(
            Config(),
            {
                "env.frame_stack": 1,
                "actor.segment_length": LENGTH,
                "learner.batch_size": BATCH,
                "replay.capacity": 10_000,
                "replay.arena_bytes": 1 << 24,
                "replay.min_size": 20,
                "telemetry.status_interval_s": 0.02,
                "addresses.batches": paths["batches"],
                "addresses.status": paths["status"],
            }
            | many
            | changes,
        )
        self.frame = FrameSpec((values,), "float32", 1)
        n_step = self.config.agent.n_step
        links = Links(self.config)
        self._batches: list[Inbox[Batch]] = [
            links.bind("batches", {Kind.BATCH: lambda parts: decode_batch(parts, self.frame, n_step)}, rank)
            for rank in range(len(addresses_of(self.config.addresses, "batches")))
        ]
        self.statuses: Inbox[Status] = links.bind("status", {Kind.STATUS: decode_status})
        self._actor, self._learner = links.connect("experience"), links.connect("priorities")
        self._builder = SegmentBuilder(self.frame, n_step, 0.9, LENGTH)
        self._builder.reset(np.zeros((1, values), np.float32))
        self._sent = 0
        self.start()

    def start(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=ReplayServer(self.config, 0).run, args=(self._stop,))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def send(self, segments: int) -> np.ndarray[Any, Any]:
        """Ship segments of random rewards; their initial |TD|."""
        rng = np.random.default_rng(self._sent)
        shipped: list[Segment] = []
        while len(shipped) < segments:
            observation = rng.normal(size=self.frame.shape).astype(np.float32)
            self._builder.step(0, 0.0, observation, float(rng.normal()), False, False)
            self._builder.bootstrap(0.0)
            if (segment := self._builder.take()) is not None:
                shipped.append(segment)
        for segment in shipped:
            parts = encode_segment(Shipment("actor", 1, self._sent, segment), experience_signature(self.config))
            while not self._actor.send(parts):
                wait([], [self._actor], 0.1)
            self._sent += 1
            self._last = segment
        return np.concatenate([segment.transitions["td_error"] for segment in shipped])

    def resend(self, sequence: int) -> None:
        """The last segment again, under another number."""
        parts = encode_segment(Shipment("actor", 1, sequence, self._last), experience_signature(self.config))
        wait([], [self._actor], PATIENCE_S)
        assert self._actor.send(parts)

    def say_bye(self, count: int) -> None:
        wait([], [self._actor], PATIENCE_S)
        assert self._actor.send(encode(Kind.BYE, Bye("actor", 1, count)))

    def greet(self, incarnation: int = 1, rank: int = 0) -> None:
        wait([], [self._learner], PATIENCE_S)
        hello = Hello(
            run="run", learner_incarnation=incarnation, rank=rank, signature=experience_signature(self.config)
        )
        assert self._learner.send(encode(Kind.HELLO, hello))

    def batch(self, rank: int = 0) -> Batch:
        batch = self._batches[rank].receive(PATIENCE_S)
        assert batch is not None
        return batch

    def acknowledge(self, batch: Batch, td_error: dict[int, float] | None = None, retired: Iterable[int] = ()) -> None:
        """td_error, retired: of keys, not of those in the batch only."""
        given = (td_error or {}) | dict.fromkeys(retired, 0.0)
        update = PriorityUpdate(
            learner_incarnation=batch.learner_incarnation,
            rank=batch.rank,
            shard_incarnation=batch.shard_incarnation,
            acknowledged=batch.number,
            keys=np.array([*given], np.uint64),
            td_error=np.array([*given.values()], np.float32),
            retired=np.isin([*given], [*retired]),
        )
        assert self._learner.send(encode_priorities(update))

    def status(self) -> Status:
        """The next, once the main loop has said something."""
        while (status := self.statuses.receive(PATIENCE_S)) is not None and "inserts" not in status.metrics:
            pass
        assert status is not None
        assert not unknown("replay", status.metrics)
        return status

    def status_when(self, met: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """The first status that fits; the test times out when none does."""
        while not met(metrics := self.status().metrics):
            pass
        return metrics

    def close(self) -> None:
        self.stop()
        sockets: list[Any] = [*self._batches, self.statuses, self._actor, self._learner]
        for socket in sockets:
            socket.close()


MakePeers = Callable[..., Peers]


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[MakePeers]:
    made: list[Peers] = []

    def make(values: int = 2, **changes: Any) -> Peers:
        changes = {name if "." in name else f"replay.{name}": value for name, value in changes.items()}
        made.append(Peers(tmp_path, values, changes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_pace_follows_samples_per_insert_and_tolerance(peers: MakePeers) -> None:
    """d = samples - 2 (inserts - 20); insert while d - 2 x 10 >= -40, sample while d + 8 <= 40."""
    shard = peers(samples_per_insert=2, tolerance=40, credits=64)
    shard.send(5)
    waiting = shard.status_when(lambda metrics: metrics["insert_blocked_s"] > 0)
    assert (waiting["inserts"], waiting["samples"], waiting["samples_per_insert_target"]) == (40, 0, 2)
    shard.greet()
    batches = [shard.batch() for _ in range(12)]
    assert {len(batch.sample.keys) for batch in batches} == {BATCH}
    waiting = shard.status_when(lambda metrics: metrics["sample_blocked_s"] > 0 and metrics["samples"] >= 12 * BATCH)
    assert (waiting["inserts"], waiting["samples"]) == (50, 12 * BATCH)


def test_inserts_continue_when_all_transitions_are_retired(peers: MakePeers) -> None:
    shard = peers(samples_per_insert=2, tolerance=40, credits=1)
    shard.send(8)
    shard.greet()
    batch = shard.batch()
    stored = 40  # the others wait for samples to be dealt
    shard.status_when(lambda metrics: metrics["samples"] == BATCH and metrics["inserts"] == stored)
    shard.acknowledge(batch, retired=range(stored))
    shard.status_when(lambda metrics: metrics["inserts"] > stored)


def test_refused_actor_cannot_flood_or_forge_the_log(peers: MakePeers, caplog: pytest.LogCaptureFixture) -> None:
    shard = peers()
    shard.send(1)
    other = dataclasses.replace(
        shard._last,
        frame=FrameSpec((1,), "float32", 1),
        frames=b"".join(bytes(shard._last.frames)[at : at + 4] for at in range(0, len(bytes(shard._last.frames)), 8)),
        frame_sizes=np.full(len(shard._last.frame_sizes), 4, np.uint32),
    )
    view = memoryview(other.frames)
    crcs = np.array([frame_crc(view[at : at + 4]) for at in range(0, len(view), 4)], np.uint32)
    rows = other.transitions
    windows = window_crcs(crcs, rows["first"], rows["steps"], other.frame.stack)
    other = dataclasses.replace(other, frame_crcs=crcs, transitions=with_columns(rows, window_crc=windows))
    for sequence in range(3):
        wait([], [shard._actor], PATIENCE_S)
        shipment = Shipment("a\nCRITICAL all is lost", 1, sequence, other)
        assert shard._actor.send(encode_segment(shipment, experience_signature(shard.config)))
    shard.status_when(lambda metrics: metrics["segments_refused"] == 3)
    (line,) = (each.getMessage() for each in caplog.records if "refused a segment" in each.getMessage())
    assert "\n" not in line
    assert "but this store holds" in line
    status = shard.status()
    (refusal,) = status.refusals
    assert (refusal.actor, refusal.segments) == ("a\nCRITICAL all is lost", 3)
    assert "but this store holds" in refusal.reason


def test_status_reports_why_segments_are_refused(peers: MakePeers) -> None:
    shard = peers()
    shard.send(1)
    rows = shard._last.transitions
    wrong = dataclasses.replace(shard._last, transitions=with_columns(rows, td_error=-np.ones(len(rows))))
    for parts in (
        encode_segment(Shipment("actor", 1, 1, shard._last), "signature-of-another"),
        encode_segment(Shipment("mine", 1, 0, wrong), experience_signature(shard.config)),
    ):
        wait([], [shard._actor], PATIENCE_S)
        assert shard._actor.send(parts)
    while len((status := shard.status()).refusals) < 2:
        pass
    assert [(each.actor, each.segments) for each in status.refusals] == [("actor", 1), ("mine", 1)]
    assert "experience signature" in status.refusals[0].reason
    assert "negative td_error" in status.refusals[1].reason
    assert status.metrics["refused_messages"] == 2


def test_batches_wait_for_min_size_and_null_ratio_never_blocks(peers: MakePeers) -> None:
    shard = peers(min_size=40)
    shard.greet()
    shard.send(3)
    assert shard.status_when(lambda metrics: metrics["inserts"] == 30)["samples"] == 0
    assert shard.status().metrics["samples"] == 0
    shard.send(1)
    assert shard.batch().sample.num_transitions == 40
    shard.send(30)
    assert shard.status_when(lambda metrics: metrics["inserts"] == 340)["insert_blocked_s"] == 0


def test_credits_limit_batches_until_acknowledged(peers: MakePeers) -> None:
    shard = peers(credits=2, credit_timeout_s=1e6)
    shard.greet()
    shard.send(3)
    first, second = shard.batch(), shard.batch()
    for _ in range(5):  # of which the later ones tell of rounds after the second batch
        assert shard.status().metrics["samples"] <= 2 * BATCH
    shard.acknowledge(second)
    assert [first.number, second.number, shard.batch().number, shard.batch().number] == [0, 1, 2, 3]
    assert shard.status().metrics["lost_batches"] == 0


def test_credit_of_an_unanswered_batch_returns_on_timeout(peers: MakePeers) -> None:
    shard = peers(credits=1, credit_timeout_s=0.05)
    shard.greet()
    shard.send(3)
    assert shard.batch().number == 0
    assert any(shard.status().metrics["lost_batches"] for _ in range(100))  # 2 s of them; 30 s by default
    assert shard.batch().number == 1


def test_oldest_transitions_are_evicted_at_capacity(peers: MakePeers) -> None:
    shard = peers(capacity=100, min_size=20)
    shard.send(25)
    metrics = shard.status_when(lambda metrics: metrics["inserts"] == 250)
    assert metrics["size"] == 100


def test_oldest_transitions_are_evicted_at_arena_bytes(peers: MakePeers) -> None:
    shard = peers(values=2500, arena_bytes=1 << 20)  # 10 kB an observation
    shard.send(20)
    metrics = shard.status_when(lambda metrics: metrics["inserts"] == 200)
    assert 0.8 * (1 << 20) < metrics["bytes"] <= 1 << 20
    assert metrics["size"] < 110


def test_priorities_follow_alpha_and_epsilon(peers: MakePeers) -> None:
    shard = peers(alpha=0.25, epsilon=0.5)
    td_error = shard.send(4)
    shard.greet()
    sample = shard.batch().sample
    np.testing.assert_allclose(sample.priority, (td_error[sample.keys] + 0.5) ** 0.25, rtol=1e-6)


def test_statuses_are_sent_at_the_configured_interval(peers: MakePeers) -> None:
    shard = peers()
    times = [shard.status().time for _ in range(20)]
    assert min(np.diff(times)) < 0.5  # told 0.02; a second by default


def test_status_reports_what_blocks_the_shard(peers: MakePeers) -> None:
    shard = peers(min_size=40, credits=2, credit_timeout_s=1e6)
    shard.send(3)
    filling = shard.status_when(lambda metrics: metrics["inserts"] == 30)
    assert (filling["min_size_left"], filling["in_flight"], filling["link_blocked_s"]) == (10, 0, 0)
    assert filling["samples_per_insert_target"] == 0  # free-running
    shard.send(1)
    shard.greet()
    dealt = shard.status_when(lambda metrics: metrics["in_flight"] == 2 and metrics["link_blocked_s"] > 0)
    assert (dealt["min_size_left"], dealt["sample_blocked_s"]) == (0, 0)
    assert dealt["idle_s"] >= dealt["link_blocked_s"]
    assert 1 <= dealt["sample_age"] <= 40


def test_segments_are_accounted_for_and_none_is_stored_twice(peers: MakePeers) -> None:
    shard = peers()
    shard.send(2)
    for sequence in (1, 0, 5, 4, 2**62):  # 2 and 3 never come
        shard.resend(sequence)
    shard.say_bye(count=8)
    metrics = shard.status_when(lambda metrics: metrics["segments_lost"] == 4)
    counts = [metrics[f"segments_{what}"] for what in ("received", "duplicate", "refused")]
    assert counts == [4, 2, 1]
    assert metrics["inserts"] == 4 * LENGTH


def test_newest_learner_receives_batches_until_it_is_silent(peers: MakePeers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that was frozen, and a stranger that knows its incarnation, get nothing while another one lives."""
    shard = peers(credits=1, credit_timeout_s=1e6)
    shard.greet(incarnation=5)
    shard.send(3)
    assert shard.batch().learner_incarnation == 5
    shard.greet(incarnation=7)
    assert shard.batch().learner_incarnation == 7
    shard.greet(incarnation=6)
    shard.greet(incarnation=8)
    assert shard.batch().learner_incarnation == 8
    monkeypatch.setattr(replay, "SILENT_S", 0.0)
    shard.greet(incarnation=5)
    assert shard.batch().learner_incarnation == 5


def test_each_rank_has_its_own_address_and_credits(peers: MakePeers, tmp_path: Path) -> None:
    addresses = [f"ipc://{tmp_path}/rank-{rank}" for rank in range(2)]
    shard = peers(credits=2, credit_timeout_s=1e6, **{"addresses.batches": addresses})
    shard.greet(incarnation=5, rank=1)
    shard.send(3)
    assert [shard.batch(rank=1).number for _ in range(2)] == [0, 1]
    shard.greet(incarnation=5, rank=0)
    dealt = [shard.batch(rank=0) for _ in range(2)]
    assert [(batch.rank, batch.number) for batch in dealt] == [(0, 0), (0, 1)]
    shard.acknowledge(dealt[0])
    assert shard.batch(rank=0).number == 2
    shard.greet(incarnation=5, rank=2)  # a stranger: nobody is known to take batches there
    shard.status_when(lambda metrics: metrics["refused_messages"] == 1)
    assert shard.status().metrics["samples"] == 5 * BATCH  # rank 1 has not answered, so it gets no more
    shard.greet(incarnation=6, rank=1)
    assert [(batch.learner_incarnation, batch.number) for batch in (shard.batch(rank=1), shard.batch(rank=1))] == [
        (6, 0),
        (6, 1),
    ]
    metrics = shard.status_when(lambda metrics: metrics["samples"] >= 7 * BATCH)
    assert metrics["samples"] == 7 * BATCH  # rank 0 has not said that it belongs to this learner


def test_two_ranks_share_the_allowed_batches_evenly(peers: MakePeers, tmp_path: Path) -> None:
    """The governor allows four batches: both have two of them, though each could have had all."""
    addresses = [f"ipc://{tmp_path}/rank-{rank}" for rank in range(2)]
    ratio = {"samples_per_insert": 1, "tolerance": 2 * BATCH + 3}
    shard = peers(credits=64, **ratio, **{"addresses.batches": addresses})
    shard.greet(rank=0)
    shard.greet(rank=1)
    shard.send(4)
    dealt = [shard.batch(rank) for rank in (0, 1, 0, 1)]
    assert [(batch.rank, batch.number) for batch in dealt] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    # The governor may have held back before, while segments were on their way.
    metrics = shard.status_when(lambda metrics: metrics["samples"] >= 4 * BATCH and metrics["sample_blocked_s"] > 0)
    assert metrics["samples"] == 4 * BATCH
