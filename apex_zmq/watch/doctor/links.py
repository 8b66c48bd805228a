"""Facts about the addresses of a run, as seen from one host: whose they are, who has bound them, who answers."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from apex_zmq.config.settings import Addresses, Config, all_addresses, batch_addresses
from apex_zmq.net.keys import OPENS, SERVERS, SERVES, role_of
from apex_zmq.net.sockets import is_local

ANYWHERE = ("", "*", "0.0.0.0", "::")  # hosts of an address that stand for all of this machine's
REACH_S = 3.0


class Link(NamedTuple):
    """One address of a run and the role that binds it. number: of the shard or the rank; None: the only one."""

    channel: str
    number: int | None
    address: str
    server: str

    @property
    def name(self) -> str:
        """As a line calls it."""
        return self.channel if self.number is None else f"{self.channel} {self.number}"


class Holder(NamedTuple):
    """A process that has bound an address. pid: None where this user may not know. role: of this program's, if any."""

    pid: int | None
    command: str
    role: str | None


def links(addresses: Addresses) -> Iterator[Link]:
    """Every link of a run."""
    for server in SERVERS:
        for channel in SERVES[server]:
            found = getattr(addresses, channel)
            if isinstance(found, str):
                yield Link(channel, None, found, server)
            else:
                yield from (Link(channel, number, address, server) for number, address in enumerate(found))


def host_of(address: str) -> str:
    """The host of a tcp address."""
    return address.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def port_of(address: str) -> int:
    """The port of a tcp address."""
    return int(address.rpartition(":")[2])


def resolve(host: str) -> str:
    """The IPv4 address of a host or of one of this machine's interfaces; libzmq looks for no other.

    Raises:
        OSError: there is none.
    """
    for each in psutil.net_if_addrs().get(host, ()):
        if each.family == socket.AF_INET:
            return each.address
    if host in ANYWHERE:
        return "0.0.0.0"
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except UnicodeError as error:  # a name that none can have
        raise OSError(str(error)) from None


def resolves(address: str) -> bool:
    """Whether the host of an address is known."""
    if address.startswith("ipc://"):
        return True
    try:
        resolve(host_of(address))
    except OSError:
        return False
    return True


def target(address: str) -> str:
    """An address to connect to, where the given one may be to bind only.

    Raises:
        OSError: its host is not known.
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
    """Shards that this machine can bind; of several with one address the first."""
    first = {address: shard for shard, address in reversed(list(enumerate(addresses.experience)))}
    return sorted(
        shard for address, shard in first.items() if is_here(address) and is_here(addresses.priorities[shard])
    )


def roles_here(config: Config) -> list[str]:
    """The roles that belong on this machine: those of its keys, else those whose addresses are its own.

    An actor belongs where no other role does, and where all addresses are out of other machines' reach.
    """
    addresses = config.addresses
    if addresses.keys is not None and (role := role_of(Path(addresses.keys))) is not None:
        return [role]
    roles = ["replay"] if shards_here(addresses) else []
    ranks = any(map(is_here, batch_addresses(addresses)))
    if ranks and is_here(addresses.parameters) and is_here(addresses.status):
        roles.append("learner")
    if not roles or all(map(is_local, all_addresses(addresses))):
        roles.append("actor")
    return roles


def bound_here(config: Config, roles: Sequence[str]) -> list[Link]:
    """The links that these roles bind on this machine."""
    shards = shards_here(config.addresses) or list(range(config.replay.shards))
    return [
        link
        for link in links(config.addresses)
        if link.server in roles
        and (link.number is None or (link.number in shards if link.server == "replay" else is_here(link.address)))
    ]


def opened_here(config: Config, roles: Sequence[str]) -> list[Link]:
    """The links that these roles connect to."""
    channels = {channel for role in roles for channel in OPENS[role]}
    return [link for link in links(config.addresses) if link.channel in channels]


def find_holder(address: str) -> Holder | None:
    """Who has bound an address on this machine; None: nobody."""
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
            and (each.laddr.ip == host or host in ANYWHERE or each.laddr.ip in ANYWHERE)
        ]
    return _holder(pids[0]) if pids else None


def _holder(pid: int | None) -> Holder:
    try:
        words = psutil.Process(pid).cmdline() if pid is not None else []
    except psutil.Error:
        words = []
    return Holder(pid, " ".join(words), role_of_command(words))


def role_of_command(command: Sequence[str]) -> str | None:
    """The role that a command line starts, by this package's module or one of its programs."""
    for before, word in itertools.pairwise(command):
        if before == "apex_zmq":
            return word
    programs = (Path(word).name for word in command)
    return next((name.removeprefix("apex-") for name in programs if name.startswith("apex-")), None)


def why_not_bound(address: str) -> str:
    """Why this machine cannot bind an address that nobody holds; empty where it can.

    A port is tried without listening on it, so that nobody connects, and a role that starts meanwhile has it.
    """
    if address.startswith("ipc://"):
        directory = Path(address.removeprefix("ipc://")).parent
        return "" if os.access(directory, os.W_OK | os.X_OK) else f"{directory} is no directory that can be written"
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((resolve(host_of(address)), port_of(address)))
        except OSError as error:
            return os.strerror(error.errno or 0)
    return ""


def why_not_reached(address: str) -> OSError:
    """The error of connecting to an address where nobody answers."""
    try:
        if address.startswith("ipc://"):
            with socket.socket(socket.AF_UNIX) as attempt:
                attempt.connect(address.removeprefix("ipc://"))
        else:
            socket.create_connection((resolve(host_of(address)), port_of(address)), REACH_S).close()
    except OSError as error:
        return error
    return ConnectionRefusedError("it has come up since")
