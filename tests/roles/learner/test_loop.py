"""A learner between a replay shard and an actor that the test plays: its settings do what they say."""

from __future__ import annotations

import logging
import re
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.roles.learner.bad_batches import DIRECTORY, KEPT
from apex_zmq.roles.learner.loop import DivergenceError, Learner
from apex_zmq.rundir.checkpoint import load
from apex_zmq.types import COLUMNS, Batch, FrameSpec, PriorityUpdate, Sample
from apex_zmq.watch.metrics import unknown
from apex_zmq.watch.stats import PROGRESS_LOG
from apex_zmq.wire.body import encode
from apex_zmq.wire.checksums import window_crcs
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import decode_priorities, encode_batch
from apex_zmq.wire.messages import (
    Episode,
    Hello,
    Parameters,
    Status,
    decode_hello,
    decode_parameters,
    decode_relayed_status,
)

from ...transitions import make_transitions

PATIENCE_S = 30.0
ROWS, N_STEP = 4, 3


class Peers:
    """What a learner meets: it is dealt batches and told of actors, and published parameters are heard."""

    def __init__(self, directory: Path, changes: dict[str, Any]) -> None:
        names = ("experience", "priorities", "batches", "parameters", "status")
        paths = {name: f"ipc://{directory}/{name}" for name in names}
        self.config: Config = loading.replace(
            Config(),
            {
                "env.id": "CartPole-v1",
                "env.frame_stack": 1,
                "agent.network": "mlp",
                "agent.n_step": N_STEP,
                "learner.batch_size": ROWS,
                "addresses.experience": [paths["experience"]],
                "addresses.priorities": [paths["priorities"]],
                "addresses.batches": paths["batches"],
                "addresses.parameters": paths["parameters"],
                "addresses.status": paths["status"],
            }
            | changes,
        )
        self.directory = directory / "run"
        links = Links(self.config)
        self._priorities: Inbox[PriorityUpdate | Hello] = links.bind(
            "priorities", {Kind.PRIORITIES: decode_priorities, Kind.HELLO: decode_hello}
        )
        self.learner = Learner(self.config, self.directory)
        self.failure: Exception | None = None
        self._batches, self._statuses = links.connect("batches"), links.connect("status")
        self._parameters: Inbox[Any] = links.subscribe("parameters", {Kind.PARAMETERS: decode_parameters})
        self.relayed: Inbox[Status] = links.subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self._learner_incarnation: int | None = None
        self._number = 0

    def _run(self) -> None:
        try:
            self.learner.run(self._stop)
        except DivergenceError as error:
            self.failure = error

    def learn(self, reward: float = 1.0, corrupted: tuple[int, ...] = ()) -> PriorityUpdate:
        """Deal a batch, to the learner that has introduced itself, and wait for its priorities.

        reward: of the first row. corrupted: rows whose frames are not those that their actor sent.
        """
        if self._learner_incarnation is None:
            hello = self._priorities.receive(PATIENCE_S)
            assert isinstance(hello, Hello)
            self._learner_incarnation = hello.learner_incarnation
        rng = np.random.default_rng(self._number)
        frames = rng.normal(size=(ROWS, 1 + N_STEP, 4)).astype("<f4")
        rewards = np.ones(ROWS, np.float32)
        rewards[0] = reward
        frame_crcs = np.array([zlib.crc32(frame.tobytes()) for frame in frames.reshape(-1, 4)], np.uint32)
        crcs = window_crcs(frame_crcs, np.arange(ROWS) * (1 + N_STEP), np.full(ROWS, N_STEP, np.uint8), 1)
        crcs[list(corrupted)] += 1
        sample = Sample(
            num_transitions=100,
            mass=100.0,
            frame=FrameSpec((4,), "float32", 1),
            keys=np.arange(ROWS, dtype=np.uint64),
            priority=np.ones(ROWS),
            transitions=make_transitions(ROWS, reward=rewards, steps=N_STEP, window_crc=crcs),
            frame_sizes=np.full((ROWS, 1 + N_STEP), 16, np.uint32),
            frames=frames.tobytes(),
        )
        batch = Batch(
            learner_incarnation=self._learner_incarnation,
            rank=0,
            shard=0,
            shard_incarnation=1,
            number=self._number,
            sample=sample,
        )
        wait([], [self._batches], PATIENCE_S)
        assert self._batches.send(encode_batch(batch))
        while isinstance(answer := self._priorities.receive(PATIENCE_S), Hello):
            pass
        assert answer is not None
        assert answer.acknowledged == self._number
        self._number += 1
        return answer

    def published(self) -> Parameters:
        message = self._parameters.receive(PATIENCE_S)
        assert message is not None
        parameters: Parameters = message[0]
        return parameters

    def tell(self, decisions: int, episodes: int, epsilon: float = 0.5) -> None:
        """Send an actor's status and wait until the learner has relayed it."""
        now = time.time()
        wait([], [self._statuses], PATIENCE_S)
        status = Status(
            role="actor",
            name="actor",
            host="host",
            pid=1,
            incarnation=1,
            start_time=now,
            time=now,
            progress_time=now,
            metrics={"decisions": decisions},
            episodes=(Episode(1.0, 1, epsilon),) * episodes,
        )
        assert self._statuses.send(encode(Kind.STATUS, status))
        while (relayed := self.relayed.receive(PATIENCE_S)) is not None and relayed.role != "actor":
            pass
        assert relayed == status

    def close(self) -> None:
        self._stop.set()
        self.thread.join()
        for socket in (self._priorities, self._batches, self._statuses, self._parameters, self.relayed):
            socket.close()


MakePeers = Callable[..., Peers]


def test_sync_every_and_save_every_are_followed(make: MakePeers) -> None:
    peers = make(
        learner__sync_every=3,
        learner__save_every=4,
        learner__keep_checkpoints=2,
        learner__threads=2,
        run__max_updates=9,
    )
    assert torch.get_num_threads() == 2
    assert peers.published().update == 0
    for sync in (3, 6):
        for _ in range(3):
            peers.learn()
        assert peers.published().update == sync
    assert sorted(path.name for path in peers.directory.glob("step-*")) == [
        "step-000000000.safetensors",
        "step-000000004.safetensors",
    ]
    for _ in range(3):
        peers.learn()
    peers.thread.join()  # its updates are spent
    assert sorted(path.name for path in peers.directory.glob("step-*")) == [
        "step-000000008.safetensors",
        "step-000000009.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "budget", "spend", "spent"),
    [
        ("max_minutes", 0.001, lambda peers: None, r"0\.\d+ of 0\.001 minutes"),
        ("max_decisions", 50, lambda peers: peers.tell(decisions=60, episodes=0), "60 of 50 decisions"),
        ("episodes", 3, lambda peers: peers.tell(decisions=60, episodes=4), "4 of 3 episodes"),
        ("max_updates", 1, lambda peers: peers.learn(), "1 of 1 updates"),
    ],
    ids=["minutes", "decisions", "episodes", "updates"],
)
def test_a_run_ends_with_its_budget(
    name: str,
    budget: float,
    spend: Callable[[Peers], None],
    spent: str,
    make: MakePeers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    peers = make(**{f"run__{name}": budget})
    spend(peers)
    peers.thread.join()
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("budget spent")]
    assert re.fullmatch(f"budget spent: {spent}", line)


def test_learner_reports_at_the_configured_intervals(make: MakePeers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    peers = make(telemetry__log_interval_s=0.05, telemetry__status_interval_s=0.05)
    statuses = [heard(peers).time for _ in range(20)]
    assert min(np.diff(statuses)) < 0.5  # a second by default
    lines = [record.created for record in caplog.records if record.name == PROGRESS_LOG]
    assert min(np.diff(lines)) < 5  # ten by default


def test_learner_status_has_the_metrics_for_apex_top(make: MakePeers) -> None:
    peers = make(telemetry__status_interval_s=0.02, learner__sync_every=7)
    peers.tell(decisions=10, episodes=0)
    peers.learn()
    while not (status := heard(peers)).metrics.get("live_actor") or not status.metrics["updates"]:
        pass
    told = {"shards": 1, "batch_size": ROWS, "sync_every": 7, "live_actor": 1, "live_replay": 0, "train/updates": 1}
    assert told.items() <= status.metrics.items()
    assert not unknown("learner", status.metrics)
    assert status.metrics["waited_s"] > 0
    assert status.metrics["cpu_s"] > 0
    assert status.metrics["decode_s"] > 0
    assert status.metrics["rss_bytes"] > 1e6
    assert (status.metrics["decoded"], status.metrics["refused_batches"]) == (0, 0)
    assert 0 <= status.metrics["host_cpu"] <= 1


def heard(peers: Peers) -> Status:
    """The learner's own next status."""
    while True:
        status = peers.relayed.receive(PATIENCE_S)
        assert status is not None
        if status.role == "learner":
            return status


def await_count(peers: Peers, metric: str, count: float) -> None:
    """Hear the learner's own statuses until one says so; the test times out when none does."""
    while heard(peers).metrics.get(metric) != count:
        pass


def test_corrupted_rows_are_retired_and_counted(make: MakePeers) -> None:
    peers = make(telemetry__log_interval_s=0.02)
    answer = peers.learn(corrupted=(1, 3))
    assert answer.retired.tolist() == [False, True, False, True]
    await_count(peers, "train/corrupted_windows", 2)


def test_non_finite_step_is_skipped_and_its_batch_saved(make: MakePeers) -> None:
    peers = make(learner__loss="l2", learner__max_bad_steps=2, telemetry__log_interval_s=0.02)
    for _ in range(KEPT + 1):
        answer = peers.learn(reward=3e38)  # finite, but not its square
        assert (answer.keys.tolist(), answer.retired.tolist()) == ([0], [True])  # only this row, and for good
        assert len(peers.learn().keys) == ROWS  # so that there are never two in a row
    await_count(peers, "train/bad_steps", KEPT + 1)
    kept = sorted((peers.directory / DIRECTORY).iterdir())
    assert len(kept) == KEPT
    with np.load(kept[-1], allow_pickle=False) as batch:
        assert batch["reward"][0] == np.float32(3e38)
        assert batch["windows"].shape == (ROWS, 1 + N_STEP, 4)
        assert set(batch) == {
            "keys",
            "priority",
            *COLUMNS,
            "windows",
            "broken",
            "weights",
        }
    peers.close()
    assert peers.failure is None
    assert load(peers.directory).counters["updates"] == KEPT + 1


def test_non_finite_parameters_end_the_run_and_are_not_saved(make: MakePeers) -> None:
    peers = make(learner__loss="l2", learner__max_bad_steps=4, learner__save_every=1, learner__sync_every=1)
    peers.learn()
    peers.learn(reward=3e38)  # skipped, once the first update has been saved
    with torch.no_grad():
        next(peers.learner._trainer.online.parameters()).fill_(torch.nan)
    for _ in range(3):
        assert len(peers.learn().keys) == 0  # no row is to blame
    peers.thread.join()
    assert "4 steps in a row were skipped" in str(peers.failure)
    assert "parameters that are not finite" in str(peers.failure)
    saved = load(peers.directory)
    assert saved.counters["updates"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in saved.tensors["online"].values())
