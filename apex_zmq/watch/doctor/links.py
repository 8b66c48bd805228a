"""Facts about the addresses of a run, as seen from one host: which role binds them, which process holds them."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from apex_zmq.config.settings import Addresses, Config, addresses_of, all_addresses
from apex_zmq.net.keys import role_of
from apex_zmq.net.links import LINKS, Link
from apex_zmq.net.sockets import is_local

WILDCARDS = ("", "*", "0.0.0.0", "::")  # hosts that stand for all of this machine's interfaces
REACH_S = 3.0


class Endpoint(NamedTuple):
    """One address of a link. number: of the shard or rank; None: the link has one address."""

    link: Link
    number: int | None
    address: str

    @property
    def name(self) -> str:
        """Link and number, as a check shows them."""
        return self.link.name if self.number is None else f"{self.link.name} {self.number}"

    @property
    def server(self) -> str:
        """Role that binds the address."""
        return self.link.binds[0]


class Holder(NamedTuple):
    """A process that has bound an address.

    pid: None if this user may not know it. command: its command line. role: of this package, that the command starts.
    """

    pid: int | None
    command: str
    role: str | None


def endpoints(addresses: Addresses) -> Iterator[Endpoint]:
    """Every address of a run."""
    for link in LINKS.values():
        found = addresses_of(addresses, link.name)
        numbered = not isinstance(getattr(addresses, link.name), str)
        yield from (Endpoint(link, number if numbered else None, address) for number, address in enumerate(found))


def host_of(address: str) -> str:
    """The host of a tcp address."""
    return address.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def port_of(address: str) -> int:
    """The port of a tcp address."""
    return int(address.rpartition(":")[2])


def resolve(host: str) -> str:
    """The IPv4 address of a host name or of one of this machine's interfaces; libzmq resolves no other.

    Raises:
        OSError: it has none.
    """
    for each in psutil.net_if_addrs().get(host, ()):
        if each.family == socket.AF_INET:
            return each.address
    if host in WILDCARDS:
        return "0.0.0.0"
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except UnicodeError as error:  # a name that no host can have
        raise OSError(str(error)) from None


def resolves(address: str) -> bool:
    """Whether the host of an address can be resolved."""
    if address.startswith("ipc://"):
        return True
    try:
        resolve(host_of(address))
    except OSError:
        return False
    return True


def target(address: str) -> str:
    """The address to connect to, for one that may be given as an address to bind (0.0.0.0).

    Raises:
        OSError: the host cannot be resolved.
    """
    if address.startswith("ipc://"):
        return address
    host = resolve(host_of(address))
    return f"tcp://{'127.0.0.1' if host == '0.0.0.0' else host}:{port_of(address)}"


def is_here(address: str) -> bool:
    """Whether an address is one of this machine's own."""
    if is_local(address):
        return True
    try:
        found = resolve(host_of(address))
    except OSError:
        return False
    own = {each.address for interface in psutil.net_if_addrs().values() for each in interface}
    return found == "0.0.0.0" or found.startswith("127.") or found in own


def shards_here(addresses: Addresses) -> list[int]:
    """Numbers of the shards that this machine can bind; of several with one address, the first."""
    first = {address: shard for shard, address in reversed(list(enumerate(addresses.experience)))}
    return sorted(
        shard for address, shard in first.items() if is_here(address) and is_here(addresses.priorities[shard])
    )


def roles_here(config: Config) -> list[str]:
    """The roles of this machine: the one of its keys, else those whose addresses it can bind.

    An actor is one of them if no other role is, or if no other machine can reach the run's addresses.
    """
    addresses = config.addresses
    if addresses.keys is not None and (role := role_of(Path(addresses.keys))) is not None:
        return [role]
    roles = ["replay"] if shards_here(addresses) else []
    ranks = any(map(is_here, addresses_of(addresses, "batches")))
    if ranks and is_here(addresses.parameters) and is_here(addresses.status):
        roles.append("learner")
    if not roles or all(map(is_local, all_addresses(addresses))):
        roles.append("actor")
    return roles


def bound_here(config: Config, roles: Sequence[str]) -> list[Endpoint]:
    """The addresses that these roles bind on this machine."""
    shards = shards_here(config.addresses) or list(range(config.replay.shards))
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
    """The process that has bound an address on this machine; None: there is none."""
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        pids = [each.pid for each in psutil.net_connections("unix") if str(each.laddr) == path]
    else:
        host, port = resolve(host_of(address)), port_of(address)
        pids = [
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
            and each.laddr
            and each.laddr.port == port
            and (each.laddr.ip == host or host in WILDCARDS or each.laddr.ip in WILDCARDS)
        ]
    return _holder(pids[0]) if pids else None


def _holder(pid: int | None) -> Holder:
    try:
        words = psutil.Process(pid).cmdline() if pid is not None else []
    except psutil.Error:
        words = []
    return Holder(pid, " ".join(words), role_of_command(words))


def role_of_command(command: Sequence[str]) -> str | None:
    """The role that a command line starts, as this package's module or one of its programs."""
    for before, word in itertools.pairwise(command):
        if before == "apex_zmq":
            return word
    programs = (Path(word).name for word in command)
    return next((name.removeprefix("apex-") for name in programs if name.startswith("apex-")), None)


def why_not_bound(address: str) -> str:
    """Why this machine cannot bind a free address; empty if it can.

    The port is bound without listening: no client can connect, and a role that starts meanwhile can bind it.
    """
    if address.startswith("ipc://"):
        directory = Path(address.removeprefix("ipc://")).parent
        return "" if os.access(directory, os.W_OK | os.X_OK) else f"{directory} is not a writable directory"
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((resolve(host_of(address)), port_of(address)))
        except OSError as error:
            return os.strerror(error.errno or 0)
    return ""


def why_not_reached(address: str) -> OSError:
    """The error of connecting to an address where no server answers."""
    try:
        if address.startswith("ipc://"):
            with socket.socket(socket.AF_UNIX) as attempt:
                attempt.connect(address.removeprefix("ipc://"))
        else:
            socket.create_connection((resolve(host_of(address)), port_of(address)), REACH_S).close()
    except OSError as error:
        return error
    return ConnectionRefusedError("a server has started there since")
