"""Peers that keep no rules do not stop a server."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from apex_zmq.net.links import LINKS
from apex_zmq.net.sockets import max_message_bytes, wait
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind, WireError
from apex_zmq.wire.messages import Heartbeat, Hello, decode_hello

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


@contextmanager
def raw_push(address: str) -> Iterator[zmq.Socket[bytes]]:
    """A peer that keeps no rules."""
    peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    with peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(address)
        yield peer


(GOOD,) = encode(Kind.HELLO, HELLO)
GARBAGE: list[list[bytes]] = [
    [b""],
    [b"\x00"],
    [b"GET / HTTP/1.1\r\n\r\n"],
    [bytes(GOOD), b"one part too many"],
    [bytes(part) for part in encode(Kind.HEARTBEAT, Heartbeat("run", 1, 1, 1))],
    [bytes(GOOD)[:-1]],
    [bytes(GOOD)[:1] + b"\x63" + bytes(GOOD)[2:]],
    [b"\x04\x01\x00\x00\x04\x00\x00\x00\x81\xa1\xff\xff"],
]


def test_bad_messages_are_counted_and_good_ones_delivered(
    address: str, opened: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    inbox = opened(hello_inbox(address))
    outbox = opened(hello_outbox(address))
    await_ready(outbox)
    with caplog.at_level(logging.WARNING), raw_push(address) as peer:
        for garbage in GARBAGE:
            peer.send_multipart(garbage)
        peer.send(bytes(GOOD))  # the same peer is heard again once it makes sense
        assert inbox.receive(PATIENCE_S) == HELLO
        assert inbox.refused == len(GARBAGE)
        outbox.send([GOOD])
        assert inbox.receive(PATIENCE_S) == HELLO
    # One peer, one line: who and why.
    (record,) = caplog.records
    assert re.search(r"from (127\.0\.0\.1|localhost\S*): .*shorter than its prelude", record.getMessage())


def test_refusal_reason_is_escaped_and_truncated_in_the_log(
    address: str, opened: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(parts: Any) -> Hello:
        found = decode_hello(parts)
        raise WireError(f"run {found.run} " + 10_000 * "x")

    inbox = opened(links_of(priorities=address).bind("priorities", {Kind.HELLO: refuse}))
    with caplog.at_level(logging.WARNING), raw_push(address) as peer:
        peer.send(bytes(encode(Kind.HELLO, Hello("a\nCRITICAL all is lost", 1, 0, SIGNATURE))[0]))
        wait([inbox], [], PATIENCE_S)
        assert inbox.receive() is None
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 500


def test_many_bad_messages_do_not_block_the_caller(address: str, opened: Callable[[Any], Any]) -> None:
    inbox = opened(hello_inbox(address))
    with raw_push(address) as peer:
        for _ in range(50):
            peer.send(b"garbage")
        peer.send(bytes(GOOD))
        calls = 0
        while (found := inbox.receive()) is None:
            wait([inbox], [], PATIENCE_S)
            calls += 1
    assert found == HELLO
    assert inbox.refused == 50
    assert calls >= 50


def test_peer_that_does_not_speak_zeromq_is_ignored(opened: Callable[[Any], Any]) -> None:
    address = free_tcp_address()
    inbox = opened(hello_inbox(address))
    outbox = opened(hello_outbox(address))
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 10)
        await_ready(outbox)
        outbox.send([GOOD])
        assert inbox.receive(PATIENCE_S) == HELLO


def test_oversized_part_closes_the_connection_before_delivery(address: str, opened: Callable[[Any], Any]) -> None:
    inbox = opened(hello_inbox(address))
    outbox = opened(hello_outbox(address))
    await_ready(outbox)
    with raw_push(address) as peer, peer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        peer.send(bytes(max_message_bytes(LINKS["priorities"]) + 1))
        assert monitor.poll(round(1000 * PATIENCE_S)), "the connection was not closed"
        assert recv_monitor_message(monitor)["event"] == zmq.EVENT_DISCONNECTED
        peer.disable_monitor()
    outbox.send([GOOD])
    assert inbox.receive(PATIENCE_S) == HELLO
    assert inbox.refused == 0  # it never came so far


def test_an_oversized_subscription_does_not_stop_a_publisher(opened: Callable[[Any], Any]) -> None:
    address = free_tcp_address()
    publisher = opened(publisher_of(address))
    publisher.publish(parameters(1))
    peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    with peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.subscribe(bytes(10_000))
        peer.connect(address)
        hear(publisher, opened(subscriber(address)), 1)


def test_bad_publication_is_refused_and_later_one_received(address: str, opened: Callable[[Any], Any]) -> None:
    publisher = opened(publisher_of(address))
    inbox = opened(subscriber(address))
    deadline = time.monotonic() + PATIENCE_S
    while not inbox.refused:
        publisher.send([b"\x05garbage"])
        publisher.serve()
        assert inbox.receive(0.01) is None
        assert time.monotonic() < deadline
    publisher.publish(parameters(2))
    hear(publisher, inbox, 2)
