"""The publisher's thread over real sockets: parameters out, statuses in, relays out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apex_zmq.errors import ConfigError
from apex_zmq.net.sockets import Inbox, Links, wait
from apex_zmq.roles.learner.publisher import MAX_QUEUED_STATUSES, Publisher
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import (
    Heartbeat,
    Parameters,
    Status,
    decode_heartbeat,
    decode_parameters,
    decode_relayed_status,
    make_tensors,
)

from ...channels import links_of

PATIENCE_S = 30.0
Opened = Callable[[Any], Any]


def parameters(version: int) -> Parameters:
    tensors = make_tensors({"weight": np.full(3, version, np.float32)})
    return Parameters("run", 1, version, 10 * version, "network", "experience", tensors)


def status(number: int, name: str = "actor") -> Status:
    now = time.time()
    return Status("actor", name, "host", 1, 1, now, now, now, {"decisions": number})


@pytest.fixture
def links(directory: Path) -> Links:
    return links_of(parameters=f"ipc://{directory}/parameters", status=f"ipc://{directory}/status")


@pytest.fixture
def publisher(links: Links) -> Iterator[Publisher]:
    with closing(Publisher(links)) as publisher:
        publisher.start()
        yield publisher


def subscribe(links: Links) -> Inbox[Any]:
    return links.subscribe(
        "parameters",
        {
            Kind.PARAMETERS: lambda parts: decode_parameters(parts)[0],
            Kind.HEARTBEAT: decode_heartbeat,
            Kind.RELAYED_STATUS: decode_relayed_status,
        },
    )


def next_of(inbox: Inbox[Any], kind: type) -> Any:
    """The next message of a kind; others are dropped."""
    while (message := inbox.receive(PATIENCE_S)) is not None:
        if isinstance(message, kind):
            return message
    raise AssertionError(f"no {kind.__name__}")


def test_subscribers_receive_newest_parameters_and_heartbeats(
    links: Links, publisher: Publisher, opened: Opened
) -> None:
    publisher.publish(parameters(1))
    early = opened(subscribe(links))
    assert next_of(early, Parameters) == parameters(1)
    for version in (2, 3):
        publisher.publish(parameters(version))
    while (newest := next_of(early, Parameters)).version < 3:
        assert newest.version == 2
    late = opened(subscribe(links))
    assert next_of(late, Parameters) == parameters(3)  # its welcome
    heartbeat = next_of(late, Heartbeat)
    assert (heartbeat.version, heartbeat.update) == (3, 30)


def test_only_the_newest_queued_parameters_are_published(links: Links, opened: Opened) -> None:
    publisher = opened(Publisher(links))
    subscriber = opened(subscribe(links))
    for version in (1, 2, 3):
        publisher.publish(parameters(version))
    publisher.start()
    assert next_of(subscriber, Parameters).version == 3


def test_statuses_are_queued_and_relayed_in_order(links: Links, publisher: Publisher, opened: Opened) -> None:
    publisher.publish(parameters(1))
    subscriber = opened(subscribe(links))
    next_of(subscriber, Parameters)  # it is subscribed
    actor = opened(links.connect("status"))
    sent = [status(number) for number in range(5)]
    for each in sent:
        wait([], [actor], PATIENCE_S)
        assert actor.send(encode(Kind.STATUS, each))
    assert [publisher.statuses.get(timeout=PATIENCE_S) for _ in sent] == sent
    assert [next_of(subscriber, Status) for _ in sent] == sent
    own = status(7, "learner")
    publisher.relay(own)
    assert next_of(subscriber, Status) == own


def test_slow_journal_delays_no_parameters_and_loses_no_status(
    links: Links, publisher: Publisher, opened: Opened
) -> None:
    count = 3 * MAX_QUEUED_STATUSES
    actor = opened(links.connect("status"))
    for number in range(count):  # more than its own queue holds: the publisher's socket keeps them
        wait([], [actor], PATIENCE_S)
        assert actor.send(encode(Kind.STATUS, status(number)))
    while not publisher.statuses.full():
        assert publisher.is_alive()
    subscriber = opened(subscribe(links))
    for version in (1, 2, 3):
        publisher.publish(parameters(version))
        while next_of(subscriber, Parameters).version < version:
            pass
    assert publisher.statuses.full()
    heard = [publisher.statuses.get(timeout=PATIENCE_S).metrics["decisions"] for _ in range(count)]
    assert heard == list(range(count))


def test_a_message_that_breaks_the_protocol_is_counted(links: Links, publisher: Publisher, opened: Opened) -> None:
    actor = opened(links.connect("status"))
    wait([], [actor], PATIENCE_S)
    assert actor.send(encode(Kind.RELAYED_STATUS, status(0)))
    assert actor.send(encode(Kind.STATUS, status(1)))
    assert publisher.statuses.get(timeout=PATIENCE_S).metrics["decisions"] == 1
    assert publisher.refused == 1


def test_addresses_are_free_after_close(links: Links) -> None:
    for begin in (True, False, True):
        publisher = Publisher(links)
        if begin:
            publisher.start()
        publisher.close()
        assert not publisher.is_alive()


def test_publisher_that_fails_to_bind_frees_the_other_address(links: Links, opened: Opened) -> None:
    statuses = opened(links.bind("status", {Kind.STATUS: decode_relayed_status}))
    with pytest.raises(ConfigError, match="is in use"):
        Publisher(links)
    statuses.close()
    Publisher(links).close()
