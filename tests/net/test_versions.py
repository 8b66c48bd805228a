"""Peers of another major version of the protocol, over real sockets: who ends, and who does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from apex_zmq.errors import MismatchError
from apex_zmq.net import sockets
from apex_zmq.net.parameters import ParameterFollower
from apex_zmq.net.sockets import Inbox, Outbox, wait
from apex_zmq.types import Buffer
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import PROTOCOL_VERSION, Kind
from apex_zmq.wire.messages import Heartbeat, Hello

from ..channels import (
    HELLO,
    PATIENCE_S,
    SIGNATURE,
    await_ready,
    hear,
    hello_inbox,
    hello_outbox,
    links_of,
    parameters,
    publisher_of,
    subscriber,
)

Opened = Callable[[Any], Any]
OURS = "{}.{}".format(*PROTOCOL_VERSION)
REASON = rf"speaks protocol 9\.2, this program {OURS}; install the same version of apex_zmq on every host"


def foreign(part: Buffer) -> bytes:
    """A message of version 9.2. What follows its first four bytes is anybody's guess."""
    return bytes([part[0], 9, 255, 2]) + b"whatever"


def minor(part: Buffer) -> bytes:
    """The same message as a later minor version of ours sends it."""
    return bytes(part[:3]) + bytes([PROTOCOL_VERSION[1] + 1]) + bytes(part[4:])


def deliver(outbox: Outbox, inbox: Inbox[Hello], part: bytes) -> Hello | None:
    """Send a message and have it read."""
    await_ready(outbox)
    assert outbox.send([part])
    wait([inbox], [], PATIENCE_S)
    return inbox.receive()


def repeat(action: Callable[[], None]) -> None:
    """Repeat until the action raises."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        action()


GOOD = bytes(encode(Kind.HELLO, HELLO)[0])


@pytest.mark.parametrize("kind", [Kind.PARAMETERS, Kind.HEARTBEAT])
def test_a_follower_ends_when_its_publisher_speaks_another_version(kind: Kind, address: str, opened: Opened) -> None:
    publisher = opened(publisher_of(address))
    follower = opened(ParameterFollower(links_of(parameters=address), None, SIGNATURE))

    def follow() -> None:
        publisher.send([foreign(bytes([kind]) + bytes(7))])
        publisher.serve()
        assert follower.poll(0.01) is None

    with pytest.raises(MismatchError, match=f"the learner {REASON}"):
        repeat(follow)


def test_follower_ends_when_its_learner_changes_version(address: str, opened: Opened) -> None:
    publisher = opened(publisher_of(address))
    publisher.publish(parameters(1))
    follower = opened(ParameterFollower(links_of(parameters=address), None, SIGNATURE))
    deadline = time.monotonic() + PATIENCE_S
    while follower.newest is None:
        publisher.serve()
        follower.poll(0.01)
        assert time.monotonic() < deadline

    def follow() -> None:
        publisher.send([foreign(bytes([Kind.HEARTBEAT]) + bytes(7))])
        follower.poll(0.01)

    with pytest.raises(MismatchError, match=REASON):
        repeat(follow)


def test_messages_of_a_later_minor_version_are_accepted(address: str, opened: Opened) -> None:
    publisher = opened(publisher_of(address))
    publisher.publish(parameters(1))
    inbox = opened(subscriber(address))
    hear(publisher, inbox, 1)
    heartbeat = Heartbeat("run", 1, 2, 20)
    publisher.send([minor(encode(Kind.HEARTBEAT, heartbeat)[0])])
    assert hear(publisher, inbox, 2) == heartbeat
    inbox.check_version("learner")
    assert inbox.refused == 0


def test_server_ends_if_all_messages_are_of_another_version(
    address: str, opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sockets, "FOREIGN_VERSION_S", 0.3)
    inbox, outbox = opened(hello_inbox(address)), opened(hello_outbox(address))
    began = time.monotonic()

    def receive() -> None:
        assert deliver(outbox, inbox, foreign(GOOD)) is None
        inbox.check_version("learner")

    with pytest.raises(MismatchError, match=f"the learner {REASON}"):
        repeat(receive)
    assert time.monotonic() - began > 0.3
    assert f"protocol version 9.2, this program has {OURS}" in caplog.text


@pytest.mark.parametrize("strangers", [1, 100])
def test_brief_messages_of_another_version_do_not_end_a_server(strangers: int, address: str, opened: Opened) -> None:
    """Neither one wrong byte, nor a flood of them."""
    inbox, outbox = opened(hello_inbox(address)), opened(hello_outbox(address))
    for _ in range(strangers):
        assert deliver(outbox, inbox, foreign(GOOD)) is None
    inbox.check_version("learner")


def test_other_kinds_of_another_version_do_not_end_a_server(
    address: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "FOREIGN_VERSION_S", 0.0)
    inbox, outbox = opened(hello_inbox(address)), opened(hello_outbox(address))
    for _ in range(2):
        assert deliver(outbox, inbox, foreign(bytes([Kind.BYE]) + bytes(7))) is None
    assert inbox.refused == 2
    inbox.check_version("learner")


def test_server_with_peers_of_its_version_does_not_end(
    address: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "FOREIGN_VERSION_S", 0.0)
    inbox, outbox = opened(hello_inbox(address)), opened(hello_outbox(address))
    assert deliver(outbox, inbox, GOOD) == HELLO
    for _ in range(3):
        assert deliver(outbox, inbox, foreign(GOOD)) is None
        inbox.check_version("learner")
    assert deliver(outbox, inbox, GOOD) == HELLO
    assert inbox.foreign is None
