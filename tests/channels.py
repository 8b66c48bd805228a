"""Links and peers for tests over real sockets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from apex_zmq.config.settings import Addresses, Config
from apex_zmq.net.parameters import ParameterPublisher
from apex_zmq.net.sockets import Inbox, Links, Outbox, wait
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import (
    Heartbeat,
    Hello,
    Parameters,
    Status,
    decode_heartbeat,
    decode_hello,
    decode_parameters,
    decode_relayed_status,
    make_tensors,
)

SIGNATURE = "0123456789abcdef"
PATIENCE_S = 20.0  # until a test gives up; a good run takes milliseconds
HELLO = Hello("run", 1, 0, SIGNATURE)


def links_of(keys: Path | None = None, insecure: bool = False, **addresses: str) -> Links:
    """Links of a process with these addresses, one each, and the keys of a directory."""
    per_shard = {name: (address,) for name, address in addresses.items() if name in ("experience", "priorities")}
    given: dict[str, Any] = {**addresses, **per_shard}
    return Links(Config(addresses=replace(Addresses(keys=str(keys) if keys else None, insecure=insecure), **given)))


def hello_inbox(address: str) -> Inbox[Hello]:
    return links_of(priorities=address).bind("priorities", {Kind.HELLO: decode_hello})


def hello_outbox(address: str) -> Outbox:
    return links_of(priorities=address).connect("priorities")


def await_ready(outbox: Outbox) -> None:
    wait([], [outbox], PATIENCE_S)
    assert outbox.ready


def parameters(version: int, size: int = 10) -> Parameters:
    tensors = make_tensors({"weight": np.full(size, version, np.float32)})
    return Parameters("run", 1, version, 10 * version, "fedcba9876543210", SIGNATURE, tensors)


Publication = tuple[Parameters, dict[str, np.ndarray[Any, Any]]] | Heartbeat


def publisher_of(address: str, keys: Path | None = None) -> ParameterPublisher:
    return ParameterPublisher(links_of(parameters=address, keys=keys))


def subscriber(address: str, keys: Path | None = None) -> Inbox[Publication]:
    return links_of(parameters=address, keys=keys).subscribe(
        "parameters", {Kind.PARAMETERS: decode_parameters, Kind.HEARTBEAT: decode_heartbeat}
    )


def relayed_statuses(address: str) -> Inbox[Status]:
    return links_of(parameters=address).subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})


def hear(publisher: ParameterPublisher, inbox: Inbox[Publication], version: int) -> Publication:
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
