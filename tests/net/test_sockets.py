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
from apex_zmq.net.sockets import Inbox, Outbox, Publisher, is_local, max_message_bytes, wait
from apex_zmq.roles.actor.segments import SegmentBuilder
from apex_zmq.types import FrameSpec, Shipment
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import LIMITS, Kind
from apex_zmq.wire.experience import decode_segment, encode_segment
from apex_zmq.wire.messages import Heartbeat, Hello, decode_heartbeat, decode_hello

from ..channels import HELLO, PATIENCE_S, SIGNATURE, await_ready, hear, hello_inbox, subscriber, welcome
from ..conftest import free_tcp_address

T = TypeVar("T")


def shipment(sequence: int, size: int = 84) -> Shipment:
    """One whose frames do not compress, so that it is as large as it looks."""
    rng = np.random.default_rng(sequence)
    builder = SegmentBuilder(FrameSpec((size, size), "uint8", 4), n_step=3, gamma=0.99, length=16)
    builder.reset(rng.integers(0, 256, (size, size)).astype(np.uint8))
    for _ in range(18):
        builder.step(1, 0.0, rng.integers(0, 256, (size, size)).astype(np.uint8), 1.0, False, False)
        builder.bootstrap(0.0)
    segment = builder.take()
    assert segment is not None
    return Shipment(f"actor-{sequence}", 1, sequence, segment)


# Options and addresses.

COMMON: dict[int, int] = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 30,
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 30_000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 5_000,
    zmq.LINGER: 0,
    zmq.HEARTBEAT_IVL: 0,
}


def assert_options(channel: zmq.Socket[bytes], expected: dict[int, int]) -> None:
    assert {option: channel.getsockopt(option) for option in expected} == expected


def test_socket_options_are_those_of_the_protocol(address: str, opened: Callable[[Any], Any]) -> None:
    decoders: dict[Kind, Callable[[Any], object]] = {Kind.SEGMENT: list, Kind.HELLO: list}
    inbox = opened(Inbox.bind(address, decoders, hwm=4))
    assert inbox.socket.type == zmq.PULL
    assert_options(inbox.socket, COMMON | {zmq.RCVHWM: 4, zmq.MAXMSGSIZE: (256 << 20) + 4096})
    small = opened(Inbox.bind(free_tcp_address(), decoders, hwm=4, kernel_bytes=4096))
    assert_options(small.socket, COMMON | {zmq.RCVBUF: 4096})
    outbox = opened(Outbox(address, hwm=7))
    assert outbox.socket.type == zmq.PUSH
    assert_options(outbox.socket, COMMON | {zmq.SNDHWM: 7, zmq.IMMEDIATE: 1})
    patient = opened(Outbox(address, hwm=7, patient=True, kernel_bytes=4096))
    assert_options(patient.socket, COMMON | {zmq.SNDHWM: 7, zmq.IMMEDIATE: 1, zmq.TCP_MAXRT: 0, zmq.SNDBUF: 4096})
    follower = opened(subscriber(free_tcp_address()))
    assert follower.socket.type == zmq.SUB
    assert_options(follower.socket, COMMON | {zmq.RCVHWM: 8, zmq.MAXMSGSIZE: (1 << 30) + 4096, zmq.CONFLATE: 0})
    publisher = opened(Publisher(free_tcp_address()))
    assert publisher._bound is not None
    assert publisher._bound.socket.type == zmq.XPUB
    assert_options(publisher._bound.socket, COMMON | {zmq.SNDHWM: 8, zmq.MAXMSGSIZE: 4096})


@pytest.mark.parametrize("kind", Kind)
def test_a_socket_takes_every_message_of_its_kinds_and_little_more(kind: Kind) -> None:
    largest = max(LIMITS[kind])
    assert largest + 8 <= max_message_bytes([kind]) <= largest + 4096


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
def test_which_addresses_are_local(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_binding_for_other_hosts_must_be_asked_for(opened: Callable[[Any], Any]) -> None:
    address = free_tcp_address().replace("127.0.0.1", "0.0.0.0")
    with pytest.raises(ConfigError, match="--insecure"):
        hello_inbox(address)
    with pytest.raises(ConfigError, match="--insecure"):
        Publisher(address)
    opened(Inbox.bind(address, {Kind.HELLO: decode_hello}, hwm=1, insecure=True))


def test_a_bound_address_cannot_be_bound_again(address: str, opened: Callable[[Any], Any]) -> None:
    inbox = opened(hello_inbox(address))
    for second in (hello_inbox, Publisher):
        with pytest.raises(ConfigError, match=re.escape(f"{address} is in use")):
            second(address)
    # The first is unharmed.
    outbox = opened(Outbox(address, hwm=4))
    await_ready(outbox)
    assert outbox.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO


def test_an_ipc_address_is_free_again_after_closing_and_after_a_crash(
    directory: Path, opened: Callable[[Any], Any]
) -> None:
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
        Inbox.bind(address, {Kind.HELLO: decode_hello}, hwm=1, insecure=True)


def test_a_failed_bind_keeps_no_lock(directory: Path) -> None:
    address = f"ipc://{directory}/{'x' * 120}"
    for _ in range(2):  # and the second does not find its own lock
        with pytest.raises(ConfigError, match="cannot bind"):
            hello_inbox(address)


# PUSH and PULL.


def test_segments_arrive_as_they_were_sent(address: str, opened: Callable[[Any], Any]) -> None:
    inbox: Inbox[Shipment] = opened(
        Inbox.bind(address, {Kind.SEGMENT: lambda parts: decode_segment(parts, SIGNATURE, 3)}, hwm=4)
    )
    outbox = opened(Outbox(address, hwm=4))
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


def test_a_received_buffer_outlives_later_messages(address: str, opened: Callable[[Any], Any]) -> None:
    inbox: Inbox[Shipment] = opened(
        Inbox.bind(address, {Kind.SEGMENT: lambda parts: decode_segment(parts, SIGNATURE, 3)}, hwm=4)
    )
    outbox = opened(Outbox(address, hwm=4))
    found = []
    for sequence in range(4):
        await_ready(outbox)
        outbox.send(encode_segment(shipment(sequence), SIGNATURE))
        found.append(inbox.receive(PATIENCE_S))
    inbox.close()
    for sequence, each in enumerate(found):
        assert each is not None
        assert bytes(each.segment.frames) == shipment(sequence).segment.frames


def test_nothing_queues_for_an_absent_peer(address: str, opened: Callable[[Any], Any]) -> None:
    outbox = opened(Outbox(address, hwm=100))
    for _ in range(10):
        assert not outbox.ready
        assert not outbox.send(encode(Kind.HELLO, HELLO))
    inbox = opened(hello_inbox(address))
    await_ready(outbox)
    present = Hello("present", 2, 0, SIGNATURE)
    assert outbox.send(encode(Kind.HELLO, present))
    assert inbox.receive(PATIENCE_S) == present
    assert inbox.receive() is None


def test_a_full_queue_holds_the_sender_back_until_the_receiver_reads(
    address: str, opened: Callable[[Any], Any]
) -> None:
    inbox: Inbox[Shipment] = opened(
        Inbox.bind(address, {Kind.SEGMENT: lambda parts: decode_segment(parts, SIGNATURE, 3)}, hwm=2)
    )
    outbox = opened(Outbox(address, hwm=2))
    message = encode_segment(shipment(0, size=256), SIGNATURE)  # 1.4 MB
    await_ready(outbox)
    sent = 0
    while outbox.send(message) and sent < 200:
        sent += 1
        wait([], [outbox], 0.2)
    assert 2 <= sent < 200
    for _ in range(sent):
        assert inbox.receive(PATIENCE_S) is not None
    await_ready(outbox)


def test_wait_returns_for_what_can_be_received(address: str, opened: Callable[[Any], Any]) -> None:
    inbox = opened(hello_inbox(address))
    outbox = opened(Outbox(address, hwm=4))
    await_ready(outbox)
    outbox.send(encode(Kind.HELLO, HELLO))
    wait([inbox], [], PATIENCE_S)
    assert inbox.receive() == HELLO


# PUB and SUB.


def test_a_late_subscriber_is_welcomed_with_the_newest(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(Publisher(address))
    for version in (1, 2, 3):
        welcome(publisher, version)
    message = hear(publisher, opened(subscriber(address)), 3)
    assert isinstance(message, tuple)
    np.testing.assert_array_equal(message[1]["weight"], np.full(10, 3, np.float32))


def test_large_parameters_arrive(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(Publisher(address))
    welcome(publisher, 1, size=2_000_000)
    message = hear(publisher, opened(subscriber(address)), 1)
    assert isinstance(message, tuple)
    assert message[1]["weight"].shape == (2_000_000,)


def test_who_listens_to_others_bears_a_large_welcome(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(Publisher(address))
    welcome(publisher, 1, size=3_000_000)  # of four bytes each: more than any other kind may have
    inbox = opened(Inbox.subscribe(address, {Kind.HEARTBEAT: decode_heartbeat}))
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
        Outbox(address, hwm=1)


def test_subscribers_hear_new_parameters_and_heartbeats(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(Publisher(address))
    welcome(publisher, 1)
    inboxes = [opened(subscriber(address)) for _ in range(3)]
    for inbox in inboxes:
        hear(publisher, inbox, 1)
    welcome(publisher, 2)
    publisher.send(encode(Kind.HELLO, HELLO))  # nobody has subscribed to it
    publisher.send(encode(Kind.HEARTBEAT, Heartbeat("run", 1, 3, 30)))
    for inbox in inboxes:
        assert isinstance(hear(publisher, inbox, 2), tuple)
        assert isinstance(hear(publisher, inbox, 3), Heartbeat)
        assert inbox.refused == 0


def test_a_subscriber_is_welcomed_by_a_restarted_publisher(opened: Callable[[Any], Any]) -> None:
    address = free_tcp_address()
    publisher = Publisher(address)
    welcome(publisher, 1)
    inbox = opened(subscriber(address))
    hear(publisher, inbox, 1)
    publisher.close()
    publisher = opened(publisher_once_free(address))
    welcome(publisher, 2)
    hear(publisher, inbox, 2)


def publisher_once_free(address: str) -> Publisher:
    return once_free(lambda: Publisher(address))


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
    [(zmq.PUSH, push, "another link"), (zmq.PULL, want_keys, "wants keys")],
    ids=["wrong-kind", "curve"],
)
def test_who_has_met_another_server_says_so_and_connects_anew(
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
    outbox = opened(Outbox(address, hwm=1))
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
def test_a_peer_that_takes_nothing_for_a_minute_costs_a_patient_sender_nothing(opened: Callable[[Any], Any]) -> None:
    address = free_tcp_address()
    inbox = opened(hello_inbox(address))
    outbox = opened(Outbox(address, hwm=4, patient=True))
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
