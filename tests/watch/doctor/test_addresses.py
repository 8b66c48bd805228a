"""Checks of keys and addresses, each with the real fault."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apex_zmq.config import loading
from apex_zmq.config.settings import Addresses, Config
from apex_zmq.net import keys
from apex_zmq.net.keys import make_client, make_servers
from apex_zmq.net.sockets import Inbox
from apex_zmq.watch.doctor import addresses
from apex_zmq.watch.doctor.addresses import COMMAND_LENGTH, Endpoint, Holder, check_endpoint, check_keys
from apex_zmq.watch.doctor.check import Check
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import decode_hello

from ...channels import links_of
from ...conftest import free_tcp_address

Opened = Callable[[Any], Any]
ELSEWHERE = "tcp://198.51.100.7"  # reserved for documentation, so no host has it (RFC 5737)
LISTENER = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Keys for each role."""
    path = tmp_path / "keys"
    make_servers(path)
    make_client(path, "alice", "actor")
    make_client(path, "judge", "evaluator")
    make_client(path, "box", "forwarder")
    make_client(path, "bob", "actor", "box")
    return path


@pytest.fixture
def stranger() -> Iterator[tuple[int, str]]:
    """PID and address of another process that listens."""
    command = [sys.executable, "-c", LISTENER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.pid, f"tcp://127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()


def settings(**given: object) -> Config:
    return loading.replace(Config(), {f"addresses.{name}": value for name, value in given.items()})


def endpoint(address: str, name: str = "experience") -> Endpoint:
    return next(each for each in addresses.endpoints(Addresses()) if each.link.name == name)._replace(address=address)


def check(address: str, *, here: bool = False, directory: Path | None = None) -> Check:
    """Check an experience address. here: on the host of the replay; else on that of an actor."""
    config = settings(keys=str(directory) if directory is not None else None)
    holder = addresses.find_holder(address) if here else None
    return check_endpoint(config, endpoint(address), holder, here=here, opens=not here)


def bind(address: str, directory: Path | None = None, *, insecure: bool = False) -> Inbox[Any]:
    """Bind an experience address, as a replay does."""
    opener = links_of(experience=address, keys=directory, insecure=insecure)
    return opener.bind("experience", {Kind.HELLO: decode_hello})


@pytest.mark.parametrize(
    ("given", "roles", "shards"),
    [
        ({}, ["replay", "learner", "actor"], [0]),
        ({"status": "tcp://0.0.0.0:5555"}, ["replay", "learner"], [0]),
        (dict.fromkeys(("batches", "parameters", "status"), f"{ELSEWHERE}:1"), ["replay"], [0]),
        ({name: [f"{ELSEWHERE}:1"] for name in ("experience", "priorities")}, ["learner"], []),
        ({"experience": [f"{ELSEWHERE}:1"], "status": f"{ELSEWHERE}:1"}, ["actor"], []),
        # Actors behind a forwarder.
        (
            {"experience": [f"{ELSEWHERE}:1"], "batches": f"{ELSEWHERE}:2", "status": f"{ELSEWHERE}:1"}
            | {"parameters": "ipc:///tmp/parameters"},
            ["actor"],
            [],
        ),
    ],
)
def test_roles_are_derived_from_addresses_of_this_host(
    given: dict[str, Any], roles: list[str], shards: list[int]
) -> None:
    config = settings(**given)
    assert addresses.roles_here(config) == roles
    assert addresses.shards_here(config.addresses) == shards


def test_shards_of_a_host_are_those_with_its_addresses() -> None:
    def shards(*hosts: str) -> list[int]:
        found = [f"{host}:1" for host in hosts]
        return addresses.shards_here(Addresses(experience=tuple(found), priorities=tuple(found)))

    assert shards(ELSEWHERE, "tcp://127.0.0.1") == [1]
    assert shards("tcp://0.0.0.0", "tcp://0.0.0.0") == [0]
    assert shards(ELSEWHERE, ELSEWHERE) == []
    config = loading.replace(
        Config(),
        {
            "replay.shards": 2,
            "addresses.experience": [f"{ELSEWHERE}:1", "tcp://127.0.0.1:1"],
            "addresses.priorities": [f"{ELSEWHERE}:2", "tcp://127.0.0.1:2"],
        },
    )
    assert [(each.name, each.address) for each in addresses.bound_here(config, ["replay"])] == [
        ("experience 1", "tcp://127.0.0.1:1"),
        ("priorities 1", "tcp://127.0.0.1:2"),
    ]
    assert {each.name for each in addresses.opened_here(config, ["actor"])} == {
        "experience 0",
        "experience 1",
        "parameters",
        "status",
    }


def test_ranks_of_a_host_are_those_with_its_addresses() -> None:
    config = settings(batches=[f"{ELSEWHERE}:1", "tcp://127.0.0.1:2"])
    assert "learner" in addresses.roles_here(config)
    bound = [(each.name, each.address) for each in addresses.bound_here(config, ["learner"])]
    assert bound[0] == ("batches 1", "tcp://127.0.0.1:2")
    assert [name for name, _ in bound[1:]] == ["parameters", "status"]
    assert {each.name for each in addresses.opened_here(config, ["replay"])} == {"batches 0", "batches 1", "status"}


@pytest.mark.parametrize(
    ("holder", "role"),
    [("replay", "replay"), ("learner", "learner"), ("alice", "actor"), ("judge", "evaluator"), ("box", "forwarder")],
)
def test_the_role_is_derived_from_the_keys(root: Path, holder: str, role: str) -> None:
    config = settings(keys=str(root / holder))
    assert addresses.roles_here(config) == [role]
    found = check_keys(config, [role], [])
    assert (found.level, found.remedy) == ("ok", ""), found


def test_clients_on_the_allow_lists_are_reported(root: Path) -> None:
    config = settings(keys=str(root / "learner"))
    assert check_keys(config, ["learner"], []).found.endswith("for learner; accepts alice, bob, box, judge, replay")
    (root / "learner" / "allowed" / "batches").write_text("# nobody\n")
    found = check_keys(config, ["learner"], [])
    assert (found.level, "allowed/batches: names no client" in found.found) == ("warn", True)
    (root / "learner" / "allowed" / "batches").write_text("replay\n")
    assert "allowed/batches: line 1 is ignored" in check_keys(config, ["learner"], []).found


def test_unprotected_keys_and_keys_of_another_role_fail(root: Path) -> None:
    config = settings(keys=str(root / "replay"))
    found = check_keys(config, ["actor"], [])
    assert (found.level, "servers must hold a line `experience" in found.found) == ("fail", True)
    (root / "replay" / "allowed" / "experience").chmod(0o666)
    found = check_keys(config, ["replay"], [])
    assert (found.level, found.remedy) == ("fail", f"chmod -R go-w {root / 'replay'}")
    (root / "replay" / "allowed" / "experience").chmod(0o600)
    secret = root / "replay" / "identity.key_secret"
    secret.chmod(0o644)
    found = check_keys(config, ["replay"], [])
    assert found.level == "fail"
    assert f"{secret} can be read by other users (mode 644)" in found.found
    assert found.remedy == f"chmod 600 {secret}"
    secret.unlink()
    assert "cannot read" in check_keys(config, ["replay"], []).found


def test_an_address_open_to_other_hosts_requires_keys_or_insecure() -> None:
    bound = [endpoint("tcp://127.0.0.1:1"), endpoint("tcp://0.0.0.0:1")]
    assert check_keys(settings(), ["replay"], bound[:1]).level == "ok"
    found = check_keys(settings(), ["replay"], bound)
    assert (found.level, "other hosts can reach tcp://0.0.0.0:1" in found.found) == ("fail", True)
    found = check_keys(settings(insecure=True), ["replay"], bound)
    assert (found.level, "--keys" in found.remedy) == ("warn", True)


def test_a_free_address_can_be_bound(address: str) -> None:
    found = check(address, here=True)
    assert found == Check("experience 0", "ok", f"{address} is free; no replay is running")
    bind(address).close()  # the check has left no socket


def test_the_process_that_holds_an_address_is_reported(stranger: tuple[int, str], directory: Path) -> None:
    pid, address = stranger
    found = check(address, here=True)
    assert (found.level, found.remedy) == ("fail", "stop it, or choose another address")
    command = f"{sys.executable} -c import socket"
    assert f"held by pid {pid}: {command[:COMMAND_LENGTH]}" in found.found
    assert f"held by pid {pid}" in check(address.replace("127.0.0.1", "0.0.0.0"), here=True).found
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{directory}/socket")
        server.listen()
        assert f"held by pid {os.getpid()}" in check(f"ipc://{directory}/socket", here=True).found
    assert check(f"ipc://{directory}/socket", here=True).level == "ok"  # the socket file remains, without a holder


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/usr/bin/python3 -m apex_zmq learner --run-dir actor", "learner"),
        ("/usr/bin/python3 /usr/local/bin/apex-replay --shard 1", "replay"),
        ("/usr/bin/python3 -m http.server 5551", None),
        ("", None),
    ],
)
def test_the_role_of_a_holder_is_derived_from_its_command(command: str, role: str | None) -> None:
    assert Holder(1, command).role == role


def test_only_its_own_role_may_hold_an_address(address: str, opened: Opened) -> None:
    opened(bind(address))
    config = settings()
    for role, level in (("replay", "ok"), ("learner", "fail")):
        holder = Holder(os.getpid(), f"apex-{role}")
        assert check_endpoint(config, endpoint(address), holder, here=True, opens=True).level == level
    hidden = Holder(None, "")  # of another user, so a handshake decides
    found = check_endpoint(config, endpoint(address), hidden, here=True, opens=False)
    assert (found.level, "of another user" in found.found) == ("ok", True)


@pytest.mark.parametrize(
    ("address", "reason", "remedy"),
    [
        (f"{ELSEWHERE}:5551", "Cannot assign requested address", "tcp://0.0.0.0:5551"),
        ("ipc:///no/such/place/socket", "/no/such/place is not a writable directory", "create it"),
        ("tcp://[::1]:5551", "::1 has no IPv4 address", "give its IPv4 address"),
        ("tcp://a..b:5551", "a..b has no IPv4 address", "/etc/hosts"),
    ],
)
def test_an_address_that_cannot_be_bound_fails(address: str, reason: str, remedy: str) -> None:
    found = check(address, here=True)
    assert found.level == "fail"
    assert reason in found.found
    assert remedy in found.remedy


def test_a_name_that_resolves_to_loopback_is_a_warning() -> None:
    address = free_tcp_address().replace("127.0.0.1", "127.1")  # many /etc/hosts map the host's own name to loopback
    found = check(address, here=True)
    assert (found.level, "resolves to 127.0.0.1 on this host" in found.found) == ("warn", True)
    bind(address, insecure=True).close()


def test_a_server_that_is_not_running_is_a_warning_and_an_unreachable_one_fails(address: str) -> None:
    found = check(address)
    assert (found.level, found.found) == ("warn", f"{address}: no replay is running")
    assert "start apex-replay" in found.remedy
    found = check("tcp://255.255.255.255:5551")
    assert (found.level, "cannot be reached" in found.found) == ("fail", True)
    assert "firewalls allow port 5551" in found.remedy


def test_a_running_server_is_reached(address: str, opened: Opened, root: Path) -> None:
    inbox = opened(bind(address))
    assert check(address) == Check("experience 0", "ok", f"{address} answers")
    assert inbox.receive() is None
    found = check(address, directory=root / "alice")
    assert found.level == "fail"
    assert "does not speak CURVE" in found.found or "does not match keys/servers" in found.found
    found = check_endpoint(settings(), endpoint(address, "parameters"), None, here=False, opens=True)
    assert (found.level, "address is of another link" in found.found) == ("fail", True)


def test_access_depends_on_the_keys(address: str, opened: Opened, root: Path, tmp_path: Path) -> None:
    opened(bind(address, root / "replay"))
    assert check(address, directory=root / "alice").level == "ok"
    make_servers(tmp_path / "others")
    make_client(tmp_path / "others", "alice", "actor")
    found = {
        "none": check(address),
        "of another run": check(address, directory=tmp_path / "others" / "alice"),
        "of another channel": check(address, directory=root / "judge"),
    }
    keys.remove(root, "alice")
    make_client(root, "alice", "actor")
    (root / "replay" / "allowed" / "experience").write_text("")
    opened(bind(later := free_tcp_address(), root / "replay"))
    found["revoked"] = check(later, directory=root / "alice")
    assert {name: each.level for name, each in found.items()} == {
        "none": "fail",
        "of another run": "fail",
        "of another channel": "warn",
        "revoked": "fail",
    }
    assert "requires keys" in found["none"].found
    assert "does not match keys/servers" in found["of another run"].found
    assert "not on the server's allow-list" in found["revoked"].found
    assert all(each.remedy for each in found.values())


def test_a_server_without_a_handshake_fails(stranger: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "HANDSHAKE_S", 0.3)
    found = check(stranger[1])
    assert (found.level, "does not respond" in found.found) == ("fail", True)
