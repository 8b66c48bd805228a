"""Links with keys: each kind of stranger is refused, and a client whose key is revoked neither gets nor delivers."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zmq.auth import load_certificate

from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.net import access
from apex_zmq.net.keys import OPENS, SERVERS, SERVES, make_client, make_servers
from apex_zmq.net.links import LINKS
from apex_zmq.net.parameters import ParameterFollower, ParameterPublisher
from apex_zmq.net.sockets import Inbox, Outbox, wait
from apex_zmq.signature import experience_signature, network_signature
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Hello, Parameters, decode_hello, make_tensors

from ..channels import (
    HELLO,
    PATIENCE_S,
    Publication,
    await_ready,
    hear,
    links_of,
    parameters,
    publisher_of,
    subscriber,
)
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


def stranger(holder: Path, servers: Path) -> Path:
    """Keys of a holder that name the servers of a run for every channel, whether the holder opens it or not."""
    path = holder.with_name(f".{holder.name} as a client of {servers.name}")
    if not path.exists():
        shutil.copytree(holder, path)
        lines = []
        for channel, server in USUAL.items():
            public, _ = load_certificate(servers / server / "identity.key")
            lines.append(f"{channel} {public.decode()}\n")
        (path / "servers").write_text("".join(lines))
    return path


def allowed(root: Path, channel: str) -> Path:
    """The allow-list of a channel at its usual server."""
    return root / USUAL[channel] / "allowed" / channel


def _given(channel: str, address: str, keys: Path | None) -> dict[str, Any]:
    return {channel: address, "keys": keys}


def bind(address: str, channel: str, keys: Path | None) -> Inbox[Hello]:
    """A PULL; the kind of its messages does not matter here."""
    return links_of(**_given(channel, address, keys)).bind(channel, {Kind.HELLO: decode_hello})


def connect(address: str, channel: str, keys: Path | None) -> Outbox:
    return links_of(**_given(channel, address, keys)).connect(channel)


def until(met: Callable[[], Any], meanwhile: Callable[[], Any] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.01)


def version_of(message: Publication) -> int:
    return (message[0] if isinstance(message, tuple) else message).version


def tell(publisher: ParameterPublisher, inbox: Inbox[Publication], version: int) -> None:
    """Publish until one who is connecting anew hears it: what is sent before its subscription comes it misses."""

    def told() -> bool:
        message = inbox.receive()
        return isinstance(message, tuple) and message[0].version == version

    def again() -> None:
        publisher.publish(parameters(version))
        publisher.serve()

    until(told, again)


def strike(path: Path, name: str) -> str:
    """Take a holder's line out of a list, as somebody with an editor would; the line."""
    lines = path.read_text().splitlines(keepends=True)
    (line,) = [line for line in lines if line.startswith(f"{name} ")]
    path.write_text("".join(each for each in lines if each != line))
    return line


def test_key_grants_only_the_channels_of_its_role(root: Path, directory: Path, opened: Opened) -> None:
    addresses = {channel: f"ipc://{directory}/{channel}" for channel in USUAL}
    publisher: ParameterPublisher = opened(publisher_of(addresses["parameters"], root / "learner"))
    publisher.publish(parameters(1))
    for channel in USUAL.keys() - {"parameters"}:
        opened(bind(addresses[channel], channel, root / USUAL[channel]))
    refused = access.counts["refused_peers"]
    ends: dict[tuple[str, str], Any] = {}
    for name in ROLES:
        for channel, address in addresses.items():
            client = stranger(root / name, root)
            publishes = LINKS[channel].pattern == "publish"
            ends[name, channel] = opened(
                subscriber(address, client) if publishes else connect(address, channel, client)
            )
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


def unlisted(root: Path, tmp_path: Path) -> Path:
    return stranger(other_run(tmp_path) / "learner", root)


def deceived(root: Path, tmp_path: Path) -> Path:
    return stranger(root / "learner", other_run(tmp_path))


def of_another_channel(root: Path, _: Path) -> Path:
    return stranger(root / "alice", root)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda *_: None, "no CURVE handshake", id="no key"),
        pytest.param(unlisted, "is not in", id="a key on no list"),
        pytest.param(deceived, "no CURVE handshake", id="the wrong server's key"),
        pytest.param(of_another_channel, "is not in", id="another channel's key"),
    ],
)
def test_unauthorized_peer_is_refused_counted_and_logged(
    make: Callable[[Path, Path], Path | None],
    reason: str,
    root: Path,
    tmp_path: Path,
    address: str,
    opened: Opened,
    caplog: pytest.LogCaptureFixture,
) -> None:
    inbox = opened(bind(address, "priorities", root / "replay"))
    good = opened(connect(address, "priorities", root / "learner"))
    await_ready(good)
    refused = access.counts["refused_peers"]
    bad = opened(connect(address, "priorities", make(root, tmp_path)))
    until(lambda: access.counts["refused_peers"] > refused)
    assert not bad.send(encode(Kind.HELLO, LATER))
    assert good.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO
    assert inbox.receive() is None
    # An address is asked from the kernel when the connection has been made: too late when it has ended by then.
    who = rf"(127\.0\.0\.1|localhost\S*|a local peer|{access.UNKNOWN_ADDRESS})"
    until(lambda: re.search(f"refused a connection from {who}: .*{reason}", caplog.text))


def test_address_of_a_peer_without_key_is_logged(root: Path, opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    address = free_tcp_address()
    inbox = opened(bind(address, "priorities", root / "replay"))
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as stranger:
        until(lambda: inbox._end.authenticator._addresses)
        stranger.sendall(NULL_GREETING)
    until(lambda: "refused a connection from 127.0.0.1: 'no CURVE handshake" in caplog.text)


def test_many_refused_peers_give_one_log_line(
    root: Path, address: str, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    opened(bind(address, "priorities", root / "replay"))
    refused = access.counts["refused_peers"]
    for _ in range(20):
        opened(connect(address, "priorities", stranger(root / "alice", root)))
    until(lambda: access.counts["refused_peers"] - refused >= 20)
    assert caplog.text.count("refused a connection") == 1


@pytest.mark.parametrize("impostor", ["another key", "no key"])
def test_client_sends_only_to_a_server_with_the_expected_key(
    impostor: str, root: Path, tmp_path: Path, address: str, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """It says why not, and finds the true one when that comes to the same address."""
    inbox = bind(address, "priorities", other_run(tmp_path) / "replay" if impostor == "another key" else None)
    failed = access.counts["failed_handshakes"]
    client = opened(connect(address, "priorities", root / "learner"))
    until(lambda: access.counts["failed_handshakes"] > failed)
    assert not client.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive() is None
    until(lambda: f"no access to {address}: " in caplog.text)
    inbox.close()
    inbox = opened(rebind(address, "priorities", root / "replay"))
    until(lambda: client.ready)
    assert client.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO


def rebind(address: str, channel: str, keys: Path) -> Inbox[Hello]:
    """Bind where a socket has just been closed, as soon as libzmq has let go of the address."""
    found: list[Inbox[Hello]] = []

    def attempt() -> None:
        try:
            found.append(bind(address, channel, keys))
        except ConfigError:
            return

    until(lambda: found, attempt)
    return found[0]


def test_refused_client_is_accepted_once_on_the_allow_list(root: Path, address: str, opened: Opened) -> None:
    inbox = opened(bind(address, "priorities", root / "replay"))
    refused = access.counts["refused_peers"]
    alice = opened(connect(address, "priorities", stranger(root / "alice", root)))
    until(lambda: access.counts["refused_peers"] > refused)
    with allowed(root, "priorities").open("a") as lines:
        lines.write((root / "replay" / "allowed" / "experience").read_text())
    until(lambda: alice.ready)
    assert alice.send(encode(Kind.HELLO, HELLO))
    assert inbox.receive(PATIENCE_S) == HELLO


def test_revoked_client_delivers_no_more_messages(
    root: Path, address: str, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = opened(bind(address, "experience", root / "replay"))
    alice, bob = (opened(connect(address, "experience", root / name)) for name in ("alice", "bob"))
    for each in (alice, bob):
        await_ready(each)
        assert each.send(encode(Kind.HELLO, HELLO))
        assert inbox.receive(PATIENCE_S) == HELLO
    with caplog.at_level(logging.INFO):
        strike(allowed(root, "experience"), "alice")
        until(lambda: "experience: alice" in caplog.text)
    assert alice.send(encode(Kind.HELLO, HELLO))  # it is connected still
    wait([inbox], [], PATIENCE_S)
    assert inbox.receive() is None
    assert inbox.refused == 1
    assert "has been revoked" in caplog.text
    assert bob.send(encode(Kind.HELLO, LATER))
    assert inbox.receive(PATIENCE_S) == LATER


@pytest.mark.parametrize("how", ["a line", "the file"])
def test_revoked_subscriber_receives_no_new_parameters(how: str, root: Path, address: str, opened: Opened) -> None:
    names = allowed(root, "parameters")
    publisher: ParameterPublisher = opened(publisher_of(address, root / "learner"))
    publisher.publish(parameters(1))
    alice, judge = (opened(subscriber(address, root / name)) for name in ("alice", "judge"))
    for each in (alice, judge):
        hear(publisher, each, 1)
    refused = access.counts["refused_peers"]
    before = names.read_text()
    if how == "a line":
        strike(names, "alice")
    else:
        names.unlink()  # then every client is refused
    until(lambda: access.counts["refused_peers"] > refused, publisher.serve)
    publisher.publish(parameters(2))
    if how == "a line":
        tell(publisher, judge, 2)
    for _ in range(20):
        publisher.serve()
        message = alice.receive(0.01)  # a heartbeat from before the revocation may still be queued
        assert message is None or version_of(message) == 1
    names.write_text(before)
    hear(publisher, alice, 2)
    if how == "the file":
        hear(publisher, judge, 2)


def test_bad_allow_list_line_is_logged_and_ignored(
    root: Path, directory: Path, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    names = allowed(root, "experience")
    names.write_text(names.read_text() + "carol\n")
    address = f"ipc://{directory}/socket"
    opened(bind(address, "experience", root / "replay"))
    assert "experience, line 3 is ignored" in caplog.text
    await_ready(opened(connect(address, "experience", root / "alice")))


def test_forwarder_uses_its_own_keys_and_allow_list(root: Path, start: StartProgram, opened: Opened) -> None:
    """learner (here) -> forwarder (a process) -> bob (here), who could not follow the learner himself."""
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    signatures = network_signature(arrays), experience_signature(Config())
    upstream, downstream = free_tcp_address(), free_tcp_address()
    learner: ParameterPublisher = opened(publisher_of(upstream, root / "learner"))
    learner.publish(Parameters("run", 7, 1, 10, *signatures, make_tensors(arrays)))
    forwarder = start(
        "forwarder", "--parameters", upstream, "--bind", downstream, "--status", free_tcp_address(),
        "--keys", str(root / "box"),
    )  # fmt: skip
    # Alice's key is good for the learner, and so is the learner's for alice: neither here.
    bob, alice = (
        opened(ParameterFollower(links_of(parameters=downstream, keys=root / name), *signatures))
        for name in ("bob", "alice")
    )
    while (found := bob.poll(0.05)) is None:
        learner.serve()
        assert forwarder.process.poll() is None, forwarder.output
    np.testing.assert_array_equal(found["weight"], arrays["weight"])
    forwarder.wait_for("refused a connection from")
    assert alice.poll() is None
    strike(root / "box" / "allowed" / "parameters", "bob")
    forwarder.wait_for("revoked in .*: bob")
    forwarder.interrupt()
    assert forwarder.wait() == 0


# Addresses of peers.


class ReusedSocket(socket.socket):
    """A socket whose number is taken by somebody else as soon as it is closed."""

    others: list[int] = []  # noqa: RUF012 (emptied by its test)

    def close(self) -> None:
        super().close()
        self.others.append(os.open(os.devnull, os.O_RDONLY))


def test_the_duplicate_of_a_descriptor_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apex_zmq.net.access.sockets.socket", ReusedSocket)
    ReusedSocket.others.clear()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unconnected:
        assert access._peer_of(unconnected.fileno()) == access.UNKNOWN_ADDRESS
    for descriptor in ReusedSocket.others:
        os.close(descriptor)  # raises where somebody has closed it


def test_non_socket_descriptor_stays_open_and_duplicate_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        before = os.listdir("/proc/self/fd")
        assert access._peer_of(file.fileno()) == access.UNKNOWN_ADDRESS
        assert os.listdir("/proc/self/fd") == before
        os.fstat(file.fileno())
