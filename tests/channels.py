"""Channels and peers for the tests of the transport."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from apex_zmq.net.sockets import Inbox, Outbox, Publisher, wait
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import (
    Heartbeat,
    Hello,
    Parameters,
    decode_heartbeat,
    decode_hello,
    decode_parameters,
    make_tensors,
)

SIGNATURE = "0123456789abcdef"
PATIENCE_S = 20.0  # until a test gives up; a good run takes milliseconds
HELLO = Hello("run", 1, 0, SIGNATURE)


def hello_inbox(address: str) -> Inbox[Hello]:
    return Inbox.bind(address, {Kind.HELLO: decode_hello}, hwm=16)


def await_ready(outbox: Outbox) -> None:
    wait([], [outbox], PATIENCE_S)
    assert outbox.ready


def parameters(version: int, size: int = 10) -> Parameters:
    tensors = make_tensors({"weight": np.full(size, version, np.float32)})
    return Parameters("run", 1, version, 10 * version, "fedcba9876543210", SIGNATURE, tensors)


Publication = tuple[Parameters, dict[str, np.ndarray[Any, Any]]] | Heartbeat


def subscriber(address: str) -> Inbox[Publication]:
    return Inbox.subscribe(address, {Kind.PARAMETERS: decode_parameters, Kind.HEARTBEAT: decode_heartbeat})


def welcome(publisher: Publisher, version: int, size: int = 10) -> None:
    (part,) = encode(Kind.PARAMETERS, parameters(version, size))
    publisher.welcome(part)


def hear(publisher: Publisher, inbox: Inbox[Publication], version: int) -> Publication:
    """Serve until the subscriber hears this version; whatever it hears before is older."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        publisher.serve()
        message = inbox.receive(0.01)
        if message is not None:
            found = message.version if isinstance(message, Heartbeat) else message[0].version
            assert found <= version
            if found == version:
                return message
    raise AssertionError(f"version {version} was never heard")
