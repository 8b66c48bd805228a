from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import zmq

from apex_zmq.errors import ConfigError
from apex_zmq.net.links import LINKS, Link
from apex_zmq.net.parameters import ParameterPublisher
from apex_zmq.net.sockets import Inbox, is_local, max_message_bytes, wait
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.types import FrameSpec, Shipment
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import LIMITS, Kind
from apex_zmq.wire.experience import decode_segment, encode_segment
from apex_zmq.wire.messages import Heartbeat, Hello, decode_heartbeat, decode_hello

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
from ..conftest import free_tcp_address

T = TypeVar("T")


def shipment(sequence: int, size: int = 84) -> Shipment:
    """One whose frames do not compress, so that it is as large as it looks."""
    rng = np.random.default_rng(sequence)
    builder = SegmentBuilder(FrameSpec((size, size), "uint8", 4), n_step=3, gamma=0.99, length=16)
    builder.reset(rng.integers(0, 256, (4, size, size)).astype(np.uint8))
    for _ in range(18):
        builder.step(1, 0.0, rng.integers(0, 256, (size, size)).astype(np.uint8), 1.0, False, False)
        builder.bootstrap(0.0)
    segment = builder.take()
    assert segment is not None
    return Shipment(f"actor-{sequence}", 1, sequence, segment)


def segment_inbox(address: str) -> Inbox[Shipment]:
    return links_of(experience=address).bind(
        "experience", {Kind.SEGMENT: lambda parts: decode_segment(parts, SIGNATURE, 3)}
    )


# Addresses.


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_max_message_bytes_just_exceeds_the_largest_kind(link: Link) -> None:
    largest = max(max(LIMITS[kind]) for kind in link.kinds)
    assert largest + 8 <= max_message_bytes(link) <= largest + 4096


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("tcp://127.0.0.1:5551", True),
        ("tcp://127.9.9.9:5551", True),
        ("tcp://localhost:5551", True),
        ("tcp://[::1]:5551", True),
        ("ipc:///tmp/x", True),
        ("tcp://0.0.0.0:5551", False),
        ("tcp://*:5551", False),
        ("tcp://eth0:5551", False),
        ("tcp://10.0.0.1:5551", False),
        ("tcp://[::]:5551", False),
        ("tcp://localhost.example.org:5551", False),
    ],
)
def test_is_local_classifies_addresses(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_binding_for_other_hosts_requires_insecure(opened: Callable[[Any], Any]) -> None:
    address = free_tcp_address().replace("127.0.0.1", "0.0.0.0")
    with pytest.raises(ConfigError, match="--insecure"):
        hello_inbox(address)
    with pytest.raises(ConfigError, match="--insecure"):
        publisher_of(address)
    opened(links_of(priorities=address, insecure=True).bind("priorities", {Kind.HELLO: decode_hello}))


def test_a_bound_address_cannot_be_bound_again(address: str, opened: Callable[[Any], Any]) -> None:
    inbox = opened(hello_inbox(address))
    for second in (hello_inbox, publisher_of):
        with pytest.raises(ConfigError, match=re.escape(f"{address} is in use")):
            second(address)
    # The first is unharmed.
    outbox = opened(hello_outbox(address))
    await_ready(outbox)
    assert outbox.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO


def test_ipc_address_can_be_bound_again_after_close_or_crash(directory: Path, opened: Callable[[Any], Any]) -> None:
    hello_inbox(f"ipc://{directory}/closed").close()
    opened(hello_inbox(f"ipc://{directory}/closed"))
    # What a killed process leaves behind: the socket's file and an unlocked lock file.
    (directory / "killed.lock").touch()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / "killed"))
    opened(hello_inbox(f"ipc://{directory}/killed"))


@pytest.mark.parametrize("address", ["ipc:///nowhere/at/all/socket", "tcp://192.0.2.1:5551"])
def test_an_address_that_cannot_be_bound_is_a_config_error(address: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(address)):
        links_of(priorities=address, insecure=True).bind("priorities", {Kind.HELLO: decode_hello})


def test_failed_bind_releases_its_lock(directory: Path) -> None:
    address = f"ipc://{directory}/{'x' * 120}"
    for _ in range(2):  # and the second does not find its own lock
        with pytest.raises(ConfigError, match="cannot bind"):
            hello_inbox(address)


# PUSH and PULL.


def test_segments_arrive_as_they_were_sent(address: str, opened: Callable[[Any], Any]) -> None:
    inbox: Inbox[Shipment] = opened(segment_inbox(address))
    outbox = opened(links_of(experience=address).connect("experience"))
    for sequence in range(12):  # more than the queues hold
        await_ready(outbox)
        sent = shipment(sequence)
        assert outbox.send(encode_segment(sent, SIGNATURE))
        found = inbox.receive(PATIENCE_S)
        assert found is not None
        assert found.actor == f"actor-{sequence}"
        assert bytes(found.segment.frames) == sent.segment.frames
        np.testing.assert_array_equal(found.segment.frame_sizes, sent.segment.frame_sizes)
    assert inbox.receive() is None
    assert inbox.refused == 0


def test_received_buffer_stays_valid_after_later_messages(address: str, opened: Callable[[Any], Any]) -> None:
    inbox: Inbox[Shipment] = opened(segment_inbox(address))
    outbox = opened(links_of(experience=address).connect("experience"))
    found = []
    for sequence in range(4):
        await_ready(outbox)
        outbox.send(encode_segment(shipment(sequence), SIGNATURE))
        found.append(inbox.receive(PATIENCE_S))
    inbox.close()
    for sequence, each in enumerate(found):
        assert each is not None
        assert bytes(each.segment.frames) == shipment(sequence).segment.frames


def test_send_without_a_peer_queues_nothing(address: str, opened: Callable[[Any], Any]) -> None:
    outbox = opened(hello_outbox(address))
    for _ in range(10):
        assert not outbox.ready
        assert not outbox.send(encode(Kind.HELLO, HELLO))
    inbox = opened(hello_inbox(address))
    await_ready(outbox)
    present = Hello("present", 2, 0, SIGNATURE)
    assert outbox.send(encode(Kind.HELLO, present))
    assert inbox.receive(PATIENCE_S) == present
    assert inbox.receive() is None


def test_full_queue_refuses_sends_until_the_receiver_reads(address: str, opened: Callable[[Any], Any]) -> None:
    inbox: Inbox[Shipment] = opened(segment_inbox(address))
    outbox = opened(links_of(experience=address).connect("experience"))
    message = encode_segment(shipment(0, size=256), SIGNATURE)  # 1.4 MB
    await_ready(outbox)
    sent = 0
    while outbox.send(message) and sent < 200:
        sent += 1
        wait([], [outbox], 0.2)
    assert 8 <= sent < 200  # four messages in the queue of each end
    for _ in range(sent):
        assert inbox.receive(PATIENCE_S) is not None
    await_ready(outbox)


def test_wait_returns_when_a_message_can_be_received(address: str, opened: Callable[[Any], Any]) -> None:
    inbox = opened(hello_inbox(address))
    outbox = opened(hello_outbox(address))
    await_ready(outbox)
    outbox.send(encode(Kind.HELLO, HELLO))
    wait([inbox], [], PATIENCE_S)
    assert inbox.receive() == HELLO


# PUB and SUB.


def test_late_subscriber_receives_the_newest_parameters(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(publisher_of(address))
    for version in (1, 2, 3):
        publisher.publish(parameters(version))
    message = hear(publisher, opened(subscriber(address)), 3)
    assert isinstance(message, tuple)
    np.testing.assert_array_equal(message[1]["weight"], np.full(10, 3, np.float32))


def test_large_parameters_arrive(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(publisher_of(address))
    publisher.publish(parameters(1, 2_000_000))
    message = hear(publisher, opened(subscriber(address)), 1)
    assert isinstance(message, tuple)
    assert message[1]["weight"].shape == (2_000_000,)


def test_heartbeat_subscriber_tolerates_large_parameters(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(publisher_of(address))
    publisher.publish(parameters(1, 3_000_000))  # of four bytes each: more than any other kind may have
    inbox = opened(links_of(parameters=address).subscribe("parameters", {Kind.HEARTBEAT: decode_heartbeat}))
    heartbeat = Heartbeat(run="run", learner_incarnation=1, version=1, update=0)
    deadline = time.monotonic() + PATIENCE_S
    while (heard := inbox.receive(0.05)) is None:
        assert time.monotonic() < deadline
        publisher.send(encode(Kind.HEARTBEAT, heartbeat))
        publisher.serve()
    assert heard == heartbeat


@pytest.mark.parametrize("address", ["tcp://*:5554", "tcp://my host:5554", "tcp://host/path:5554"])
def test_an_address_that_cannot_be_connected_to_is_a_config_error(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot connect to"):
        hello_outbox(address)


def test_subscribers_receive_new_parameters_and_heartbeats(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(publisher_of(address))
    publisher.publish(parameters(1))
    inboxes = [opened(subscriber(address)) for _ in range(3)]
    for inbox in inboxes:
        hear(publisher, inbox, 1)
    publisher.publish(parameters(2))
    publisher.send(encode(Kind.HELLO, HELLO))  # nobody has subscribed to it
    publisher.send(encode(Kind.HEARTBEAT, Heartbeat("run", 1, 3, 30)))
    for inbox in inboxes:
        assert isinstance(hear(publisher, inbox, 2), tuple)
        assert isinstance(hear(publisher, inbox, 3), Heartbeat)
        assert inbox.refused == 0


def test_subscriber_receives_from_a_restarted_publisher(opened: Callable[[Any], Any]) -> None:
    address = free_tcp_address()
    publisher = publisher_of(address)
    publisher.publish(parameters(1))
    inbox = opened(subscriber(address))
    hear(publisher, inbox, 1)
    publisher.close()
    publisher = opened(publisher_once_free(address))
    publisher.publish(parameters(2))
    hear(publisher, inbox, 2)


def publisher_once_free(address: str) -> ParameterPublisher:
    return once_free(lambda: publisher_of(address))


def once_free(make: Callable[[], T]) -> T:
    """ZeroMQ closes a port in the background."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return make()
        except ConfigError:
            if time.monotonic() > deadline:
                raise


def push(server: zmq.Socket[bytes]) -> None:
    """Nothing more to do: its kind is wrong."""


def want_keys(server: zmq.Socket[bytes]) -> None:
    server.setsockopt(zmq.CURVE_SERVER, 1)
    server.setsockopt(zmq.CURVE_SECRETKEY, zmq.curve_keypair()[1])


@pytest.mark.parametrize(
    ("kind", "alter", "reason"),
    [(zmq.PUSH, push, "another link"), (zmq.PULL, want_keys, "requires keys")],
    ids=["wrong-kind", "curve"],
)
def test_client_logs_a_wrong_server_and_reconnects(
    kind: int,
    alter: Callable[[zmq.Socket[bytes]], None],
    reason: str,
    opened: Callable[[Any], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    address = free_tcp_address()
    wrong: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    alter(wrong)
    wrong.bind(address)
    outbox = opened(hello_outbox(address))
    deadline = time.monotonic() + PATIENCE_S
    while not re.search(f"no access to {address}: .*{reason}", caplog.text):
        wait([], [outbox], 0.05)
        assert time.monotonic() < deadline
    wrong.close(linger=0)
    inbox = opened(once_free(lambda: hello_inbox(address)))
    while not outbox.ready:
        wait([], [outbox], 0.05)
        assert time.monotonic() < deadline
    assert outbox.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO


@pytest.mark.long
def test_receiver_stalled_for_a_minute_loses_no_message(opened: Callable[[Any], Any]) -> None:
    address = free_tcp_address()
    inbox = opened(hello_inbox(address))
    outbox = opened(links_of(experience=address).connect("experience"))
    await_ready(outbox)
    sent = 0
    while outbox.ready:  # until every buffer on the way is full
        assert outbox.send(encode(Kind.HELLO, Hello("r" * 64, sent, 0, SIGNATURE)))
        sent += 1
        if not outbox.ready:
            wait([], [outbox], 0.5)
    assert not threading.Event().wait(60)
    for incarnation in range(sent):
        message = inbox.receive(PATIENCE_S)
        assert message is not None
        assert message.learner_incarnation == incarnation
