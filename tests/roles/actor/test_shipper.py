"""Segments over real sockets: rotation over the shards, waiting or dropping, and the counts of BYE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from apex_zmq.config.settings import Addresses, Config
from apex_zmq.net.sockets import Inbox, Links
from apex_zmq.roles.actor import shipper as shipper_module
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.roles.actor.shipper import QUEUED_SEGMENTS, Shipper
from apex_zmq.types import FrameSpec, Segment, Shipment
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import decode_segment
from apex_zmq.wire.messages import Bye, decode_bye

from ...channels import PATIENCE_S, SIGNATURE, await_ready

N_STEP = 3


class Shards:
    """Addresses of two shards, which bind when a test asks them to."""

    def __init__(self, directory: Path, opened: Callable[[Any], Any]) -> None:
        addresses = tuple(f"ipc://{directory}/shard-{shard}" for shard in range(2))
        self._links = Links(Config(addresses=replace(Addresses(), experience=addresses)))
        self._opened = opened

    def shipper(self, *, drop_oldest: bool = False) -> Shipper:
        shipper: Shipper = self._opened(Shipper(self._links, 2, SIGNATURE, "actor", 7, drop_oldest=drop_oldest))
        return shipper

    def bind(self, shard: int) -> Inbox[Shipment | Bye]:
        inbox: Inbox[Shipment | Bye] = self._opened(
            self._links.bind(
                "experience",
                {Kind.SEGMENT: lambda parts: decode_segment(parts, SIGNATURE, N_STEP), Kind.BYE: decode_bye},
                shard,
            )
        )
        return inbox


@pytest.fixture
def shards(tmp_path: Path, opened: Callable[[Any], Any]) -> Shards:
    return Shards(tmp_path, opened)


@pytest.fixture(autouse=True)
def unhurried_bye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "BYE_TIMEOUT_S", PATIENCE_S)


def segment(number: int) -> Segment:
    """A segment of actions `number`."""
    builder = SegmentBuilder(FrameSpec((2,), "float32", 1), N_STEP, 0.9, 4)
    frame = np.zeros(2, np.float32)
    builder.reset(frame[None])
    while (made := builder.take()) is None:
        builder.step(number, 0.0, frame, 0.0, False, False)
        builder.bootstrap(0.0)
    return made


def received(inbox: Inbox[Shipment | Bye]) -> tuple[int, int] | Bye:
    """(number, sequence) of the next segment, or the BYE."""
    message = inbox.receive(PATIENCE_S)
    assert message is not None
    return message if isinstance(message, Bye) else (int(message.segment.transitions["action"][0]), message.sequence)


def test_segments_rotate_over_shards_with_sequences_per_shard(shards: Shards) -> None:
    inboxes = [shards.bind(shard) for shard in range(2)]
    shipper = shards.shipper()
    for outbox in shipper._outboxes:
        await_ready(outbox)
    for number in range(6):
        shipper.ship(segment(number))
        assert received(inboxes[number % 2]) == (number, number // 2)
    assert (shipper.sent, shipper.queued, shipper.dropped) == (6, 0, 0)


def test_unreachable_shard_is_skipped(shards: Shards) -> None:
    first = shards.bind(0)
    shipper = shards.shipper()
    await_ready(shipper._outboxes[0])
    for number in range(3):
        shipper.ship(segment(number))
        assert received(first) == (number, number)
    second = shards.bind(1)
    await_ready(shipper._outboxes[1])
    shipper.ship(segment(3))
    assert received(second) == (3, 0)
    shipper.ship(segment(4))
    assert received(first) == (4, 3)


def test_shipper_blocks_until_a_shard_is_reachable(shards: Shards) -> None:
    shipper = shards.shipper()
    shipper.ship(segment(0))
    assert shipper.blocked
    shipper.wait(0.0)
    assert (shipper.sent, shipper.queued) == (0, 1)
    inbox = shards.bind(1)
    shipper.wait(PATIENCE_S)
    assert not shipper.blocked
    assert received(inbox) == (0, 0)
    assert shipper.waited_s > 0


def test_drop_oldest_keeps_newest_and_numbers_them_on_send(shards: Shards) -> None:
    shipper = shards.shipper(drop_oldest=True)
    for number in range(QUEUED_SEGMENTS + 3):
        shipper.ship(segment(number))
        assert not shipper.blocked
    assert (shipper.sent, shipper.queued, shipper.dropped) == (0, QUEUED_SEGMENTS, 3)
    inbox = shards.bind(0)
    found: list[tuple[int, int] | Bye] = []
    while shipper.queued:
        shipper.wait(PATIENCE_S)
        while len(found) < shipper.sent:
            found.append(received(inbox))
    assert found == [(3 + sequence, sequence) for sequence in range(QUEUED_SEGMENTS)]


def test_send_bye_sends_queued_segments_then_bye_per_shard(shards: Shards) -> None:
    shipper = shards.shipper()
    shipper.ship(segment(0))
    inboxes = [shards.bind(shard) for shard in range(2)]
    for outbox in shipper._outboxes:
        await_ready(outbox)
    shipper.ship(segment(1))  # sends the first too
    shipper.ship(segment(2))
    shipper.send_bye()
    assert [received(inboxes[0]) for _ in range(3)] == [(0, 0), (2, 1), Bye("actor", 7, 2)]
    assert [received(inboxes[1]) for _ in range(2)] == [(1, 0), Bye("actor", 7, 1)]


def test_shard_without_segments_receives_no_bye(shards: Shards) -> None:
    inboxes = [shards.bind(shard) for shard in range(2)]
    shipper = shards.shipper()
    await_ready(shipper._outboxes[0])
    await_ready(shipper._outboxes[1])
    shipper.ship(segment(0))
    shipper.send_bye()
    assert [received(inboxes[0]) for _ in range(2)] == [(0, 0), Bye("actor", 7, 1)]
    shipper.close()
    assert inboxes[1].receive() is None
