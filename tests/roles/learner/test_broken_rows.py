"""Rows nobody can learn from: nothing of them reaches a gradient, they are drawn no more, and their actor is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apex_zmq.net.sockets import wait
from apex_zmq.types import Batch, FrameSpec, PriorityUpdate, Sample
from apex_zmq.wire.checksums import frame_crc, window_crcs
from apex_zmq.wire.experience import encode_batch
from apex_zmq.wire.messages import Hello, Parameters

from ...transitions import make_transitions
from ..test_replay import Peers as ShardPeers
from .test_loop import N_STEP, PATIENCE_S, ROWS, MakePeers, Peers

__all__ = ["Peers"]  # what the fixture `make` makes


def teach(peers: Peers, broken: list[int], number: int, no_action: tuple[int, ...] = ()) -> PriorityUpdate:
    """Deal a batch in which these rows hold a NaN, or an action that there is not; the learner's answer."""
    while not isinstance(hello := peers._priorities.receive(PATIENCE_S), Hello):
        assert hello is not None
    frames = np.random.default_rng(number).normal(size=(ROWS, 1 + N_STEP, 4)).astype("<f4")
    frames[broken, 1, 2] = np.nan
    steps = np.full(ROWS, N_STEP, np.uint8)
    action = np.zeros(ROWS, np.uint16)
    action[list(no_action)] = 2  # CartPole has two
    crcs = np.array([frame_crc(frame.tobytes()) for frame in frames.reshape(-1, 4)], np.uint32)
    sample = Sample(
        num_transitions=100,
        mass=100.0,
        frame=FrameSpec((4,), "float32", 1),
        keys=np.arange(ROWS, dtype=np.uint64),
        priority=np.ones(ROWS),
        transitions=make_transitions(
            ROWS,
            action=action,
            reward=1.0,
            steps=steps,
            window_crc=window_crcs(crcs, np.arange(ROWS) * (1 + N_STEP), steps, 1),
        ),
        frame_sizes=np.full((ROWS, 1 + N_STEP), 16, np.uint32),
        frames=frames.tobytes(),
    )
    wait([], [peers._batches], PATIENCE_S)
    assert peers._batches.send(encode_batch(Batch(hello.learner_incarnation, 0, 0, 1, number, sample)))
    while isinstance(answer := peers._priorities.receive(PATIENCE_S), Hello):
        pass
    assert answer is not None
    return answer


def numbers(parameters: Parameters) -> dict[str, Any]:
    return {tensor.name: np.frombuffer(tensor.data, "<f4") for tensor in parameters.tensors}


def test_broken_rows_do_not_affect_gradients(make: MakePeers) -> None:
    peers = make(learner__sync_every=1)
    before = numbers(peers.published())
    assert teach(peers, [0, 1, 2, 3], 0).retired.all()
    after = numbers(peers.published())
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    answer = teach(peers, [2], 1)
    assert answer.retired.tolist() == [False, False, True, False]
    learned = numbers(peers.published())
    assert all(np.isfinite(tensor).all() for tensor in learned.values())
    assert any((learned[name] != tensor).any() for name, tensor in after.items())
    assert teach(peers, [2], 2, no_action=(0,)).retired.tolist() == [True, False, True, False]


def test_shard_logs_the_actor_of_a_retired_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = ShardPeers(tmp_path, 2, {})
    try:
        shard.send(3)
        shard.greet()
        batch = shard.batch()
        shard.acknowledge(batch, retired=batch.sample.keys.tolist())
        retired = len(np.unique(batch.sample.keys))
        shard.status_when(lambda metrics: metrics["retired"] >= retired)
        assert "retired transitions of 'actor': 'among" in caplog.text
        later = shard.batch().sample.keys
        while np.isin(later, batch.sample.keys).any():  # dealt before the answer came
            later = shard.batch().sample.keys
    finally:
        shard.close()
