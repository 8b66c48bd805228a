"""A learner between a replay shard and an actor that the test plays: its settings do what they say."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apex_zmq import configure
from apex_zmq.config import Config
from apex_zmq.roles.learner import Learner
from apex_zmq.transport import Inbox, Outbox, wait
from apex_zmq.types import Batch, FrameSpec, PriorityUpdate, Sample
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import (
    Episode,
    Hello,
    Parameters,
    Status,
    decode_hello,
    decode_parameters,
    decode_priorities,
    decode_status,
    encode,
    encode_batch,
)

PATIENCE_S = 30.0
ROWS, N_STEP = 4, 3


class Peers:
    """What a learner meets: it is dealt batches and told of actors, and published parameters are heard."""

    def __init__(self, directory: Path, changes: dict[str, Any]) -> None:
        names = ("experience", "priorities", "batches", "parameters", "status")
        paths = {name: f"ipc://{directory}/{name}" for name in names}
        self.config: Config = configure.replace(
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
        self._priorities: Inbox[PriorityUpdate | Hello] = Inbox.bind(
            paths["priorities"], {Kind.PRIORITIES: decode_priorities, Kind.HELLO: decode_hello}, hwm=256
        )
        learner = Learner(self.config, self.directory)
        self._batches, self._statuses = Outbox(paths["batches"], hwm=4), Outbox(paths["status"], hwm=16)
        self._parameters: Inbox[Any] = Inbox.subscribe(paths["parameters"], {Kind.PARAMETERS: decode_parameters})
        self.relayed: Inbox[Status] = Inbox.subscribe(
            paths["parameters"], {Kind.RELAYED_STATUS: lambda parts: decode_status(parts, Kind.RELAYED_STATUS)}
        )
        self._stop = threading.Event()
        self.thread = threading.Thread(target=learner.run, args=(self._stop,))
        self.thread.start()
        self._epoch: int | None = None
        self._number = 0

    def learn(self) -> None:
        """Deal a batch, to the learner that has introduced itself, and wait for its priorities."""
        if self._epoch is None:
            hello = self._priorities.receive(PATIENCE_S)
            assert isinstance(hello, Hello)
            self._epoch = hello.epoch
        rng = np.random.default_rng(self._number)
        frames = rng.normal(size=(ROWS, 1 + N_STEP, 4)).astype("<f4")
        sample = Sample(
            num_transitions=100,
            mass=100.0,
            frame=FrameSpec((4,), "float32", 1),
            keys=np.arange(ROWS, dtype=np.uint64),
            priority=np.ones(ROWS),
            action=np.zeros(ROWS, np.uint16),
            reward=np.ones(ROWS, np.float32),
            discount=np.zeros(ROWS, np.float32),
            steps=np.full(ROWS, N_STEP, np.uint8),
            frame_sizes=np.full((ROWS, 1 + N_STEP), 16, np.uint32),
            frames=frames.tobytes(),
        )
        batch = Batch(epoch=self._epoch, rank=0, shard=0, generation=1, number=self._number, sample=sample)
        wait([], [self._batches], PATIENCE_S)
        assert self._batches.send(encode_batch(batch))
        while isinstance(answer := self._priorities.receive(PATIENCE_S), Hello):
            pass
        assert answer is not None
        assert answer.number == self._number
        self._number += 1

    def published(self) -> Parameters:
        message = self._parameters.receive(PATIENCE_S)
        assert message is not None
        parameters: Parameters = message[0]
        return parameters

    def tell(self, decisions: int, episodes: int) -> None:
        """An actor's status."""
        now = time.time()
        wait([], [self._statuses], PATIENCE_S)
        status = Status(
            role="actor",
            name="actor",
            host="host",
            pid=1,
            boot=1,
            start_time=now,
            time=now,
            progress_time=now,
            metrics={"decisions": decisions},
            episodes=(Episode(1.0, 1, 0.5),) * episodes,
        )
        assert self._statuses.send(encode(Kind.STATUS, status))

    def close(self) -> None:
        self._stop.set()
        self.thread.join()
        for socket in (self._priorities, self._batches, self._statuses, self._parameters, self.relayed):
            socket.close()


MakePeers = Callable[..., Peers]


def test_parameters_and_checkpoints_come_as_often_as_told(make: MakePeers) -> None:
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


def test_the_learner_reports_as_often_as_told(make: MakePeers) -> None:
    peers = make(telemetry__log_interval_s=0.05)
    statuses = [peers.relayed.receive(PATIENCE_S) for _ in range(10)]
    times = [status.time for status in statuses if status is not None]
    assert len(times) == 10
    assert min(np.diff(times)) < 5  # told 0.05; ten seconds by default
