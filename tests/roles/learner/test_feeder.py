"""The feeder between a real socket and the training thread."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.errors import MismatchError
from apex_zmq.net import sockets
from apex_zmq.net.sockets import Links, wait
from apex_zmq.roles.learner.feeder import DECODED_AHEAD, FOREIGN_PER_LINE, DecodedBatch, Feeder, bind_batches
from apex_zmq.types import Batch
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import encode_batch

from .dealt import FRAME, N_STEP, WIDTH, dealt

PATIENCE_S = 30.0
ROWS, NUM_ACTIONS, INCARNATION = 6, 2, 7


class Shard:
    """Deals batches to a feeder that it has started."""

    def __init__(self, directory: Path) -> None:
        settings = {"addresses.batches": f"ipc://{directory}/batches", "agent.n_step": N_STEP}
        config: Config = loading.replace(Config(), settings)
        links = Links(config)
        inbox = bind_batches(links, config, 0, FRAME)
        self.feeder = Feeder(inbox, learner_incarnation=INCARNATION, num_actions=NUM_ACTIONS, pin_memory=False)
        self.feeder.start()
        self._outbox = links.connect("batches")

    def deal(self, batch: Batch) -> None:
        wait([], [self._outbox], PATIENCE_S)
        assert self._outbox.send(encode_batch(batch))

    def decoded(self) -> DecodedBatch:
        decoded = self.feeder.get(PATIENCE_S)
        assert decoded is not None
        return decoded

    def close(self) -> None:
        self._outbox.close()
        self.feeder.close()


@pytest.fixture(scope="module")
def shard() -> Iterator[Shard]:
    with tempfile.TemporaryDirectory(prefix="apex-") as directory, closing(Shard(Path(directory))) as shard:
        yield shard


def windows_of(batch: Batch) -> Any:
    return np.frombuffer(batch.sample.frames, "<f4").reshape(-1, 1 + N_STEP, WIDTH)


rows = st.sets(st.integers(0, ROWS - 1))


@settings(max_examples=40)
@given(nan=rows, corrupted=rows, unknown=rows, number=st.integers(0, 1 << 20))
def test_only_nan_corrupted_or_unknown_action_rows_are_broken(
    shard: Shard, nan: set[int], corrupted: set[int], unknown: set[int], number: int
) -> None:
    before = shard.feeder.corrupted
    action = [NUM_ACTIONS if row in unknown else row % NUM_ACTIONS for row in range(ROWS)]
    batch = dealt(ROWS, incarnation=INCARNATION, number=number, nan=nan, corrupted=corrupted, action=action)
    shard.deal(batch)
    decoded = shard.decoded()
    assert decoded.batch.number == number
    assert set(np.flatnonzero(decoded.broken)) == nan | corrupted | unknown
    assert shard.feeder.corrupted - before == len(corrupted)
    assert (decoded.batch.sample.transitions["action"] < NUM_ACTIONS).all()
    whole = [row for row in range(ROWS) if row not in nan]
    np.testing.assert_array_equal(decoded.windows[whole], windows_of(batch)[whole])
    shard.feeder.recycle(decoded)


def test_batches_of_another_incarnation_are_dropped_and_reported(
    shard: Shard, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(FOREIGN_PER_LINE):
        shard.deal(dealt(1, incarnation=INCARNATION - 1, number=number))
    shard.deal(dealt(1, incarnation=INCARNATION, number=77))
    assert shard.decoded().batch.number == 77
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{FOREIGN_PER_LINE} batches for a learner of incarnation {INCARNATION - 1} dropped")


def test_recycled_memory_is_reused(directory: Path) -> None:
    with closing(Shard(directory)) as shard:
        shard.deal(dealt(ROWS, incarnation=INCARNATION, number=0))
        first = shard.decoded()
        shard.deal(dealt(ROWS, incarnation=INCARNATION, number=1))
        second = shard.decoded()
        assert not np.shares_memory(first.windows, second.windows)
        shard.feeder.recycle(first)
        third = dealt(ROWS, incarnation=INCARNATION, number=2)
        shard.deal(third)
        again = shard.decoded()
        assert np.shares_memory(first.windows, again.windows)
        np.testing.assert_array_equal(again.windows, windows_of(third))
        shard.feeder.recycle(again)
        shard.deal(dealt(ROWS - 1, incarnation=INCARNATION, number=3))  # of another shape
        assert shard.decoded().windows.shape == (ROWS - 1, 1 + N_STEP, WIDTH)


def test_messages_that_break_the_protocol_are_counted(shard: Shard) -> None:
    refused = shard.feeder.refused
    head, frames = encode_batch(dealt(1, incarnation=INCARNATION))
    wait([], [shard._outbox], PATIENCE_S)
    assert shard._outbox.send([head, bytes(frames)[:-1]])
    shard.deal(dealt(1, incarnation=INCARNATION, number=5))
    assert shard.decoded().batch.number == 5
    assert shard.feeder.refused == refused + 1


def test_a_shard_that_the_settings_do_not_list_is_refused(shard: Shard) -> None:
    refused = shard.feeder.refused
    shard.deal(replace(dealt(1, incarnation=INCARNATION, number=6), shard=1))
    shard.deal(dealt(1, incarnation=INCARNATION, number=7))
    assert shard.decoded().batch.number == 7
    assert shard.feeder.refused == refused + 1


def test_a_learner_ends_when_its_shards_speak_another_version(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Shard(directory)) as shard:
        for _ in range(2):
            shard.feeder.check_version()
            wait([], [shard._outbox], PATIENCE_S)
            assert shard._outbox.send([bytes([Kind.BATCH, 9, 0, 1])])
        while shard.feeder.refused < 2:
            assert shard.feeder.is_alive()
        monkeypatch.setattr(sockets, "FOREIGN_VERSION_S", 0.0)
        with pytest.raises(MismatchError, match=r"the replay speaks protocol 9\.1, this program"):
            shard.feeder.check_version()


def test_feeder_with_untaken_batches_can_be_closed(directory: Path) -> None:
    with closing(Shard(directory)) as shard:
        for number in range(DECODED_AHEAD + 1):
            shard.deal(dealt(ROWS, incarnation=INCARNATION, number=number))
        while shard.feeder.decoded < DECODED_AHEAD:
            assert shard.feeder.is_alive()
    assert not shard.feeder.is_alive()


def test_feeder_closed_before_start_frees_its_address(directory: Path) -> None:
    config: Config = loading.replace(Config(), {"addresses.batches": f"ipc://{directory}/batches"})
    for _ in range(2):
        inbox = bind_batches(Links(config), config, 0, FRAME)
        Feeder(inbox, learner_incarnation=1, num_actions=2, pin_memory=False).close()
