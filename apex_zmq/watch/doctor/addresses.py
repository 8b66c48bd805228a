"""Checks of keys and addresses: accepted clients, free addresses, reachable servers."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from apex_zmq.config.settings import Addresses, Config, addresses_of
from apex_zmq.errors import ConfigError
from apex_zmq.net import access
from apex_zmq.net.keys import OPENS, SERVES, client_keys, read_allowed, role_of, server_keys
from apex_zmq.net.links import LINKS, Link
from apex_zmq.net.sockets import is_local
from apex_zmq.watch.doctor.check import Check, failed

WILDCARDS = ("*", "0.0.0.0", "::")  # hosts that stand for all interfaces
HANDSHAKE_S = 3.0
CONNECT_S = 3.0
COMMAND_LENGTH = 80  # characters shown of a command line
REMEDIES = {
    access.NOT_LISTED: "copy the server's allow-lists again from the directory in which apex-keys created them",
    access.HUNG_UP: "copy these keys again from where apex-keys created them, or start both sides without --keys",
    access.NO_CURVE: "start the server with --keys too, or this process without",
    access.KEYS_REQUIRED: "give --keys if the server belongs to this run; else choose another address",
    access.WRONG_SOCKET_TYPE: "compare the addresses with those of the server's host",
    access.SILENT: "read the server's log, and restart it",
}


class Endpoint(NamedTuple):
    """One address of a link. number: of the shard or rank; None: the link has one address."""

    link: Link
    number: int | None
    address: str

    @property
    def name(self) -> str:
        """Name of the check: link and number."""
        return self.link.name if self.number is None else f"{self.link.name} {self.number}"

    @property
    def server(self) -> str:
        """Role that binds the address."""
        return self.link.binds[0]


class Holder(NamedTuple):
    """A process that has bound an address. pid: None if it belongs to another user. command: its command line."""

    pid: int | None
    command: str
    rss_bytes: int = 0

    @property
    def role(self) -> str | None:
        """The role that the command runs, as `-m apex_zmq ROLE` or as a program apex-ROLE; None: another program."""
        found = re.search(r"\bapex(?:_zmq |-)(\w+)(?= |$)", self.command)
        return found[1] if found else None


def endpoints(addresses: Addresses) -> Iterator[Endpoint]:
    """Every address of a run."""
    for link in LINKS.values():
        numbered = not isinstance(getattr(addresses, link.name), str)
        for number, address in enumerate(addresses_of(addresses, link.name)):
            yield Endpoint(link, number if numbered else None, address)


def host_and_port(address: str) -> tuple[str, int]:
    """Host and port of a tcp address."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


def ip_of(address: str) -> str | None:
    """IPv4 address of a tcp address, whose host may be a network interface; libzmq resolves no other. None: no such."""
    host, _ = host_and_port(address)
    for each in psutil.net_if_addrs().get(host, ()):
        if each.family == socket.AF_INET:
            return each.address
    try:
        return "0.0.0.0" if host in WILDCARDS else socket.gethostbyname(host)
    except (OSError, UnicodeError):  # UnicodeError: not a valid host name
        return None


def connect_address(address: str) -> str | None:
    """The address to connect to from this host, with the host resolved; None: it cannot be resolved."""
    if address.startswith("ipc://"):
        return address
    ip, (_, port) = ip_of(address), host_and_port(address)
    return f"tcp://{'127.0.0.1' if ip == '0.0.0.0' else ip}:{port}" if ip is not None else None


def is_here(address: str) -> bool:
    """Whether an address belongs to this host."""
    if is_local(address):
        return True
    ip = ip_of(address)
    own = {each.address for interface in psutil.net_if_addrs().values() for each in interface}
    return ip is not None and (ip == "0.0.0.0" or ip.startswith("127.") or ip in own)


def shards_here(addresses: Addresses) -> list[int]:
    """Numbers of the shards whose addresses belong to this host; of several with the same address, the first."""
    return [
        shard
        for shard, (experience, priorities) in enumerate(zip(addresses.experience, addresses.priorities, strict=True))
        if experience not in addresses.experience[:shard] and is_here(experience) and is_here(priorities)
    ]


def roles_here(config: Config) -> list[str]:
    """The roles of this host: the role of its keys, else those that bind addresses of this host.

    Actors bind none: they are assumed if no other role is here, or if all addresses are local to this host.
    """
    addresses = config.addresses
    if addresses.keys is not None and (role := role_of(Path(addresses.keys))) is not None:
        return [role]
    roles = ["replay"] if shards_here(addresses) else []
    if all(any(map(is_here, addresses_of(addresses, link))) for link in SERVES["learner"]):
        roles.append("learner")
    if not roles or all(is_local(each.address) for each in endpoints(addresses)):
        roles.append("actor")
    return roles


def bound_here(config: Config, roles: Sequence[str]) -> list[Endpoint]:
    """The addresses that these roles bind on this host."""
    shards = shards_here(config.addresses) or range(config.replay.shards)
    return [
        each
        for each in endpoints(config.addresses)
        if each.server in roles
        and (each.number is None or (each.number in shards if each.server == "replay" else is_here(each.address)))
    ]


def opened_here(config: Config, roles: Sequence[str]) -> list[Endpoint]:
    """The addresses that these roles connect to."""
    return [each for each in endpoints(config.addresses) if {*roles} & {*each.link.connects}]


def find_holder(address: str) -> Holder | None:
    """The process that has bound an address on this host; None: no process has."""
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        pids = [each.pid for each in psutil.net_connections("unix") if str(each.laddr) == path]
    else:
        ip, (_, port) = ip_of(address), host_and_port(address)
        pids = [
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
            and each.laddr
            and each.laddr.port == port
            and (each.laddr.ip == ip or ip in WILDCARDS or each.laddr.ip in WILDCARDS)
        ]
    if not pids:
        return None
    if pids[0] is not None:
        with suppress(psutil.Error):
            process = psutil.Process(pids[0])
            return Holder(process.pid, " ".join(process.cmdline()), process.memory_info().rss)
    return Holder(pids[0], "")


def check_keys(config: Config, roles: Sequence[str], bound: Sequence[Endpoint]) -> Check:
    """Check that the keys belong to these roles and are protected, or that the run needs none."""
    addresses = config.addresses
    if addresses.keys is None:
        return _check_no_keys(addresses, bound)
    directory = Path(addresses.keys)
    clients: set[str] = set()
    defects: list[str] = []
    try:
        for role in roles:
            for channel in OPENS[role]:
                client_keys(addresses, channel)
            for channel in SERVES[role]:
                server_keys(addresses, channel)
                allowed, broken = read_allowed(directory / "allowed" / channel)
                clients.update(allowed.values())
                if broken or not allowed:
                    defect = f"line {broken[0]} is ignored" if broken else "names no client"
                    defects.append(f"allowed/{channel}: {defect}")
        writable = [path for path in (directory, *directory.rglob("*")) if _is_writable_by_others(path)]
    except ConfigError as error:
        return failed("keys", error)
    except OSError as error:
        return Check("keys", "fail", f"cannot read {error.filename}: {error.strerror}", "chown it to this user")
    if writable:
        return Check("keys", "fail", f"{writable[0]} can be written by other users", f"chmod -R go-w {directory}")
    if defects:
        remedy = "write a name and a public key per line, as apex-keys does"
        return Check("keys", "warn", f"{directory}: {', '.join(defects)}", remedy)
    accepted = f"; accepts {', '.join(sorted(clients))}" if clients else ""
    return Check("keys", "ok", f"{directory}, for {' and '.join(roles)}{accepted}")


def _check_no_keys(addresses: Addresses, bound: Sequence[Endpoint]) -> Check:
    exposed = [each.address for each in bound if not is_local(each.address)]
    if not exposed:
        return Check("keys", "ok", "none: links are not encrypted")
    if addresses.insecure:
        found = f"none: any host that can reach {exposed[0]} can send to this run"
        return Check("keys", "warn", found, "create keys with apex-keys, and start every process with --keys")
    found = f"none, although other hosts can reach {exposed[0]}"
    return Check("keys", "fail", found, "give --keys (apex-keys creates them), or accept every peer with --insecure")


def _is_writable_by_others(path: Path) -> bool:
    """Whether another user can replace a path; in a sticky directory only its owner can."""
    mode = path.lstat().st_mode
    return bool(mode & 0o022) and not path.is_symlink() and not mode & 0o1000


def check_endpoint(config: Config, endpoint: Endpoint, holder: Holder | None, *, here: bool, opens: bool) -> Check:
    """Check that an address is free for the role that binds it, or that its server can be reached.

    holder: the process that has bound it. here, opens: whether a role of this host binds it, or connects to it.
    """
    name, address = endpoint.name, endpoint.address
    target = connect_address(address)
    if target is None:
        found = f"{address}: {host_and_port(address)[0]} has no IPv4 address"
        return Check(name, "fail", found, "give its IPv4 address, or add its name to DNS or /etc/hosts")
    if here and holder is None:
        return _check_free(endpoint)
    state = "answers"
    if holder is not None:
        state = f"is held by pid {holder.pid or 'unknown'}: {holder.command[:COMMAND_LENGTH] or 'of another user'}"
        if holder.pid is not None and holder.role != endpoint.server:
            return Check(name, "fail", f"{address} {state}", "stop it, or choose another address")
        if holder.pid is not None and not opens:
            return Check(name, "ok", f"{address} {state}")
    try:
        keys = client_keys(config.addresses, endpoint.link.name)
    except ConfigError as error:
        return Check(name, "warn", f"{address} was not tested: {str(error).partition('; ')[0]}", "correct the keys")
    refusal = access.probe(target, keys, publishes=endpoint.link.pattern == "publish", timeout_s=HANDSHAKE_S)
    if refusal is None:
        return Check(name, "ok", f"{address} {state}")
    if refusal == access.NOT_ANSWERING:
        return _check_absent(endpoint, target)
    return Check(name, "fail", f"{address} {state}; no access: {refusal}", REMEDIES[refusal])


def _check_free(endpoint: Endpoint) -> Check:
    """Check that a role can bind a free address on this host, and that other hosts can then reach it.

    The socket does not listen, so that no client can connect, and a role that starts meanwhile can bind the address.
    """
    name, address = endpoint.name, endpoint.address
    free = Check(name, "ok", f"{address} is free; no {endpoint.server} is running")
    if address.startswith("ipc://"):
        directory = Path(address.removeprefix("ipc://")).parent
        if os.access(directory, os.W_OK | os.X_OK):
            return free
        found = f"{address} cannot be bound: {directory} is not a writable directory"
        return Check(name, "fail", found, "create it, or choose another")
    ip, (_, port) = str(ip_of(address)), host_and_port(address)
    try:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind((ip, port))
    except OSError as error:
        remedy = f"give an address of this host, such as tcp://0.0.0.0:{port}"
        return Check(name, "fail", f"{address} cannot be bound: {error.strerror}", remedy)
    if ip.startswith("127.") and not is_local(address):
        found = f"{address} is free, but resolves to {ip} on this host, which no other host can reach"
        remedy = f"bind tcp://0.0.0.0:{port}, or the IPv4 address that other hosts connect to"
        return Check(name, "warn", found, remedy)
    return free


def _check_absent(endpoint: Endpoint, target: str) -> Check:
    """Distinguish a server that is not running from one that cannot be reached. target: the resolved address."""
    name, address, ipc = endpoint.name, endpoint.address, target.startswith("ipc://")
    with socket.socket(socket.AF_UNIX if ipc else socket.AF_INET) as attempt:
        attempt.settimeout(CONNECT_S)
        try:
            attempt.connect(target.removeprefix("ipc://") if ipc else host_and_port(target))
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError as error:
            remedy = "run apex-doctor as the user of the run"
            if not ipc:
                remedy = f"check that its host is up, and that firewalls allow port {host_and_port(address)[1]}"
            return Check(name, "fail", f"{address} cannot be reached: {error.strerror or error}", remedy)
    remedy = f"start apex-{endpoint.server}, or correct the address"
    return Check(name, "warn", f"{address}: no {endpoint.server} is running", remedy)
