from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.replay.governor import Governor

from .conftest import TWO_SHARDS, refusal


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["actor.segment_length=2"], "agent.n_step 3 exceeds actor.segment_length 2; lengthen segments"),
        (
            ["replay.capacity=400"],
            "learner.batch_size 512 exceeds the 400 transitions of a shard; raise replay.capacity",
        ),
        (
            ["replay.capacity=60", "learner.batch_size=1", "actor.segment_length=64"],
            "actor.segment_length 64 exceeds the 60 transitions of a shard; raise replay.capacity",
        ),
        (
            [*TWO_SHARDS, "replay.capacity=1000", "learner.batch_size=501"],
            "learner.batch_size 501 exceeds the 500 transitions of a shard; raise replay.capacity",
        ),
        (["replay.min_size=2000000"], "replay.min_size 2000000 exceeds replay.capacity 1000000"),
        (["replay.min_size=999990"], "exceeds replay.capacity 1000000 less a segment per shard; lower it"),
        (["replay.samples_per_insert=4", "replay.tolerance=9"], "replay.tolerance 9 can deadlock: 2 x tolerance must"),
        (["replay.shards=2"], "addresses.experience lists 1 addresses for replay.shards 2; list one per shard"),
        (
            [*TWO_SHARDS, "addresses.priorities=[tcp://127.0.0.1:3]"],
            "addresses.priorities lists 1 addresses for replay.shards 2; list one per shard",
        ),
        (["addresses.batches=host"], "address host: write tcp://host:port"),
        (["addresses.batches=tcp://host"], "address tcp://host: write tcp://host:port"),
        (["addresses.batches=[tcp://host:1, tcp://host]"], "address tcp://host: write tcp://host:port"),
        (["addresses.status=tcp://:1"], "address tcp://:1: write tcp://host:port"),
        (["addresses.status=tcp://host:0"], "(port 1 to 65535)"),
        (["addresses.status=tcp://host:65536"], "(port 1 to 65535)"),
        (["addresses.status=tcp://host:²"], "(port 1 to 65535)"),
        (["addresses.status=tcp://[::1]:5555"], "IPv6 is not supported; write a host's name"),
        (["addresses.parameters=udp://host:1"], "write tcp://host:port"),
        (["addresses.parameters=ipc://"], "or ipc:///path"),
        (["addresses.experience=[nowhere]"], "address nowhere: write tcp://host:port"),
        (["addresses.parameters=ipc:///" + "x" * 107], "at most 107 bytes; use a shorter directory"),
    ],
)
def test_combinations_that_cannot_work_are_refused(overrides: list[str], expected: str) -> None:
    assert expected in refusal(lambda: loading.load(overrides=overrides))


def test_largest_valid_values_are_accepted() -> None:
    loading.load(overrides=["agent.n_step=32"])
    loading.load(overrides=["replay.capacity=50032"])
    loading.load(overrides=["replay.min_size=999968"])
    loading.load(overrides=["addresses.parameters=ipc:///" + "x" * 106])
    loading.load(overrides=TWO_SHARDS)


@given(
    batch=st.integers(1, 64),
    length=st.integers(3, 64),
    per_insert=st.sampled_from([0.25, 0.5, 1.0, 4.5, 8.0]),
    tolerance=st.integers(1, 1200).map(lambda quarters: quarters / 4),
)
@example(batch=8, length=4, per_insert=0.5, tolerance=5.0)
@example(batch=8, length=4, per_insert=0.5, tolerance=4.75)
def test_tolerance_is_refused_if_the_governor_can_deadlock(
    batch: int, length: int, per_insert: float, tolerance: float
) -> None:
    changes = {
        "learner.batch_size": batch,
        "actor.segment_length": length,
        "replay.samples_per_insert": per_insert,
        "replay.tolerance": tolerance,
    }

    def governor() -> Governor:
        return Governor(
            min_size=1,
            samples_per_insert=per_insert,
            tolerance=tolerance,
            batch_size=batch,
            max_segment=length,
        )

    if 2 * tolerance >= batch + per_insert * length:
        loading.replace(Config(), changes)
        governor()
    else:
        assert "can deadlock" in refusal(lambda: loading.replace(Config(), changes))
        with pytest.raises(ValueError, match="both sides may wait"):
            governor()
    loading.replace(Config(), changes | {"replay.tolerance": None})
    loading.replace(Config(), changes | {"replay.samples_per_insert": None})
