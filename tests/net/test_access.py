"""Channels with keys: each kind of stranger is refused, and who is struck off gets and delivers nothing more."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zmq.auth import load_certificate

from apex_zmq.config.settings import Addresses, Config
from apex_zmq.errors import ConfigError
from apex_zmq.net import access, keys
from apex_zmq.net.keys import OPENS, SERVERS, SERVES, ClientKeys, ServerKeys, make_client, make_servers
from apex_zmq.net.parameters import ParameterFollower, ParameterPublisher
from apex_zmq.net.sockets import Inbox, Outbox, Publisher, wait
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Hello, Parameters, decode_heartbeat, decode_hello, decode_parameters, make_tensors

from ..channels import HELLO, PATIENCE_S, Publication, await_ready, hear, welcome
from ..conftest import StartProgram, free_tcp_address

Opened = Callable[[Any], Any]
ROLES = {"replay": "replay", "learner": "learner", "alice": "actor", "judge": "evaluator", "box": "forwarder"}
USUAL = {channel: server for server in SERVERS for channel in SERVES[server]}
# What a ZeroMQ peer without keys begins with (ZMTP 3.0): signature, version, mechanism, no server, filler.
NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
LATER = Hello("later", 2, 0, HELLO.signature)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "RETRY_S", 0.2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Keys of a holder of each role, and of bob, an actor whose parameters come from the forwarder."""
    path = tmp_path / "keys"
    make_servers(path)
    for name in ("alice", "judge", "box"):
        make_client(path, name, ROLES[name])
    make_client(path, "bob", "actor", "box")
    return path


def server_keys(root: Path, channel: str) -> ServerKeys:
    found = keys.server_keys(Addresses(keys=str(root / USUAL[channel])), channel)
    assert found is not None
    return found


def client_keys(root: Path, name: str, channel: str) -> ClientKeys:
    """A holder's keys and those of the channel's server, whether they open it or not."""
    public, secret = load_certificate(root / name / "identity.key_secret")
    server, _ = load_certificate(root / USUAL[channel] / "identity.key")
    assert secret is not None
    return ClientKeys(public, secret, server)


def bind(address: str, server: ServerKeys) -> Inbox[Hello]:
    """A PULL; what kind of message it takes is not the question here."""
    return Inbox.bind(address, {Kind.HELLO: decode_hello}, hwm=16, keys=server)


def subscribe(address: str, client: ClientKeys | None) -> Inbox[Publication]:
    decoders: dict[Kind, Callable[[Any], Publication]] = {
        Kind.PARAMETERS: decode_parameters,
        Kind.HEARTBEAT: decode_heartbeat,
    }
    return Inbox.subscribe(address, decoders, keys=client)


def until(met: Callable[[], Any], meanwhile: Callable[[], Any] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.01)


def tell(publisher: Publisher, inbox: Inbox[Publication], version: int) -> None:
    """Publish until one who is connecting anew hears it: what is sent before its subscription comes it misses."""

    def told() -> bool:
        message = inbox.receive()
        return isinstance(message, tuple) and message[0].version == version

    def again() -> None:
        welcome(publisher, version)
        publisher.serve()

    until(told, again)


def strike(path: Path, name: str) -> str:
    """Take a holder's line out of a list, as somebody with an editor would; the line."""
    lines = path.read_text().splitlines(keepends=True)
    (line,) = [line for line in lines if line.startswith(f"{name} ")]
    path.write_text("".join(each for each in lines if each != line))
    return line


def test_a_key_opens_the_channels_of_its_role_and_no_others(root: Path, directory: Path, opened: Opened) -> None:
    addresses = {channel: f"ipc://{directory}/{channel}" for channel in USUAL}
    publisher: Publisher = opened(Publisher(addresses["parameters"], keys=server_keys(root, "parameters")))
    welcome(publisher, 1)
    for channel in USUAL.keys() - {"parameters"}:
        opened(bind(addresses[channel], server_keys(root, channel)))
    refused = access.counts["refused_peers"]
    ends: dict[tuple[str, str], Any] = {}
    for name in ROLES:
        for channel, address in addresses.items():
            client = client_keys(root, name, channel)
            end = subscribe(address, client) if channel == "parameters" else Outbox(address, hwm=4, keys=client)
            ends[name, channel] = opened(end)
    inside: set[tuple[str, str]] = set()

    def look() -> None:
        publisher.serve()
        for each, end in ends.items():
            if end.receive() is not None if isinstance(end, Inbox) else end.ready:
                inside.add(each)

    expected = {(name, channel) for name, role in ROLES.items() for channel in OPENS[role]}
    until(lambda: inside >= expected, look)
    until(lambda: access.counts["refused_peers"] - refused >= len(ends) - len(expected), look)
    assert inside == expected


def other_run(tmp_path: Path) -> Path:
    """Keys that nobody here knows."""
    path = tmp_path / "another run"
    if not path.exists():
        make_servers(path)
    return path


def unlisted(root: Path, tmp_path: Path) -> ClientKeys:
    own = client_keys(other_run(tmp_path), "learner", "priorities")
    return ClientKeys(own.public, own.secret, client_keys(root, "learner", "priorities").server)


def deceived(root: Path, tmp_path: Path) -> ClientKeys:
    own = client_keys(root, "learner", "priorities")
    return ClientKeys(own.public, own.secret, client_keys(other_run(tmp_path), "learner", "priorities").server)


def of_another_channel(root: Path, _: Path) -> ClientKeys:
    return client_keys(root, "alice", "priorities")


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        pytest.param(lambda *_: None, "no CURVE handshake", id="no key"),
        pytest.param(unlisted, "does not name its key", id="a key on no list"),
        pytest.param(deceived, "no CURVE handshake", id="the wrong server's key"),
        pytest.param(of_another_channel, "does not name its key", id="another channel's key"),
    ],
)
def test_a_stranger_is_refused_counted_and_logged(
    stranger: Callable[[Path, Path], ClientKeys | None],
    reason: str,
    root: Path,
    tmp_path: Path,
    address: str,
    opened: Opened,
    caplog: pytest.LogCaptureFixture,
) -> None:
    inbox = opened(bind(address, server_keys(root, "priorities")))
    good = opened(Outbox(address, hwm=4, keys=client_keys(root, "learner", "priorities")))
    await_ready(good)
    refused = access.counts["refused_peers"]
    bad = opened(Outbox(address, hwm=4, keys=stranger(root, tmp_path)))
    until(lambda: access.counts["refused_peers"] > refused)
    assert not bad.send(encode(Kind.HELLO, LATER))
    assert good.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO
    assert inbox.receive() is None
    # An address is asked from the kernel when the connection has been made: too late when it has ended by then.
    who = rf"(127\.0\.0\.1|localhost\S*|a local peer|{access.GONE})"
    until(lambda: re.search(f"refused a connection from {who}: .*{reason}", caplog.text))


def test_the_address_of_who_shows_no_key_is_logged(
    root: Path, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    address = free_tcp_address()
    inbox = opened(bind(address, server_keys(root, "priorities")))
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as stranger:
        until(lambda: inbox._end.guard._addresses)
        stranger.sendall(NULL_GREETING)
    until(lambda: "refused a connection from 127.0.0.1: 'no CURVE handshake" in caplog.text)


def test_a_flood_of_strangers_does_not_flood_the_log(
    root: Path, address: str, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    opened(bind(address, server_keys(root, "priorities")))
    refused = access.counts["refused_peers"]
    client = client_keys(root, "alice", "priorities")
    for _ in range(20):
        opened(Outbox(address, hwm=4, keys=client))
    until(lambda: access.counts["refused_peers"] - refused >= 20)
    assert caplog.text.count("refused a connection") == 1


@pytest.mark.parametrize("impostor", ["another key", "no key"])
def test_a_client_talks_to_its_own_server_only(
    impostor: str, root: Path, tmp_path: Path, address: str, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """It says why not, and finds the true one when that comes to the same address."""
    theirs = server_keys(other_run(tmp_path), "priorities") if impostor == "another key" else None
    inbox = Inbox.bind(address, {Kind.HELLO: decode_hello}, hwm=4, keys=theirs)
    failed = access.counts["failed_handshakes"]
    client = opened(Outbox(address, hwm=4, keys=client_keys(root, "learner", "priorities")))
    until(lambda: access.counts["failed_handshakes"] > failed)
    assert not client.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive() is None
    until(lambda: f"no access to {address}: " in caplog.text)
    inbox.close()
    inbox = opened(rebind(address, server_keys(root, "priorities")))
    until(lambda: client.ready)
    assert client.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO


def rebind(address: str, server: ServerKeys) -> Inbox[Hello]:
    """Bind where a socket has just been closed, as soon as libzmq has let go of the address."""
    found: list[Inbox[Hello]] = []

    def attempt() -> None:
        try:
            found.append(bind(address, server))
        except ConfigError:
            return

    until(lambda: found, attempt)
    return found[0]


def test_who_waits_is_let_in_when_its_line_is_written(root: Path, address: str, opened: Opened) -> None:
    server = server_keys(root, "priorities")
    inbox = opened(bind(address, server))
    refused = access.counts["refused_peers"]
    alice = opened(Outbox(address, hwm=4, keys=client_keys(root, "alice", "priorities")))
    until(lambda: access.counts["refused_peers"] > refused)
    with server.allowed.open("a") as lines:
        lines.write((root / "replay" / "allowed" / "experience").read_text())
    until(lambda: alice.ready)
    assert alice.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO


def test_who_is_struck_off_delivers_nothing_more(
    root: Path, address: str, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_keys(root, "experience")
    inbox = opened(bind(address, server))
    clients = [client_keys(root, name, "experience") for name in ("alice", "bob")]
    alice, bob = (opened(Outbox(address, hwm=4, keys=client)) for client in clients)
    for each in (alice, bob):
        await_ready(each)
        assert each.send(encode(Kind.HELLO, HELLO))
        assert inbox.receive(PATIENCE_S) == HELLO
    with caplog.at_level(logging.INFO):
        strike(server.allowed, "alice")
        until(lambda: "experience: alice" in caplog.text)
    assert alice.send(encode(Kind.HELLO, HELLO))  # it is connected still
    wait([inbox], [], PATIENCE_S)
    assert inbox.receive() is None
    assert inbox.refused == 1
    assert "has been struck off" in caplog.text
    assert bob.send(encode(Kind.HELLO, LATER))
    assert inbox.receive(PATIENCE_S) == LATER


@pytest.mark.parametrize("how", ["a line", "the file"])
def test_who_is_struck_off_gets_nothing_more(how: str, root: Path, address: str, opened: Opened) -> None:
    server = server_keys(root, "parameters")
    publisher: Publisher = opened(Publisher(address, keys=server))
    welcome(publisher, 1)
    alice, judge = (opened(subscribe(address, client_keys(root, name, "parameters"))) for name in ("alice", "judge"))
    for each in (alice, judge):
        hear(publisher, each, 1)
    refused = access.counts["refused_peers"]
    before = server.allowed.read_text()
    if how == "a line":
        strike(server.allowed, "alice")
    else:
        server.allowed.unlink()  # then nobody is let in
    until(lambda: access.counts["refused_peers"] > refused, publisher.serve)
    welcome(publisher, 2)
    if how == "a line":
        tell(publisher, judge, 2)
    for _ in range(20):
        publisher.serve()
        assert alice.receive(0.01) is None
    server.allowed.write_text(before)
    hear(publisher, alice, 2)
    if how == "the file":
        hear(publisher, judge, 2)


def test_a_list_that_nobody_can_read_lets_nobody_in_and_a_bad_line_is_named(
    root: Path, directory: Path, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_keys(root, "experience")
    server.allowed.write_text(server.allowed.read_text() + "carol\n")
    address = f"ipc://{directory}/socket"
    opened(bind(address, server))
    assert "experience, line 3 is left out" in caplog.text
    await_ready(opened(Outbox(address, hwm=4, keys=client_keys(root, "alice", "experience"))))


def test_a_forwarder_is_a_hop_with_keys_of_its_own(root: Path, start: StartProgram, opened: Opened) -> None:
    """learner (here) -> forwarder (a process) -> bob (here), who could not follow the learner himself."""
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    signatures = network_signature(arrays), experience_signature(Config())
    upstream, downstream = free_tcp_address(), free_tcp_address()
    learner: ParameterPublisher = opened(
        ParameterPublisher(upstream, insecure=False, keys=server_keys(root, "parameters"))
    )
    learner.publish(Parameters("run", 7, 1, 10, *signatures, make_tensors(arrays)))
    forwarder = start(
        "forwarder", "--parameters", upstream, "--bind", downstream, "--status", free_tcp_address(),
        "--keys", str(root / "box"),
    )  # fmt: skip
    bobs = keys.client_keys(Addresses(keys=str(root / "bob")), "parameters")
    bob: ParameterFollower = opened(ParameterFollower(downstream, *signatures, bobs))
    # Alice's key is good for the learner, and so is the learner's for alice: neither here.
    alice: ParameterFollower = opened(
        ParameterFollower(downstream, *signatures, client_keys(root, "alice", "parameters"))
    )
    while (found := bob.poll(0.05)) is None:
        learner.serve()
        assert forwarder.process.poll() is None, forwarder.output
    np.testing.assert_array_equal(found["weight"], arrays["weight"])
    forwarder.wait_for("refused a connection from")
    assert alice.poll() is None
    strike(root / "box" / "allowed" / "parameters", "bob")
    forwarder.wait_for("struck off .*: bob")
    forwarder.interrupt()
    assert forwarder.wait() == 0
