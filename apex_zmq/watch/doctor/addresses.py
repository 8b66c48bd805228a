"""Checks of keys and addresses: which clients are accepted, which addresses are free, which servers answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.net.access import (
    HUNG_UP,
    KEYS_REQUIRED,
    NO_CURVE,
    NOT_ANSWERING,
    NOT_LISTED,
    SILENT,
    WRONG_SOCKET_TYPE,
    probe,
)
from apex_zmq.net.keys import OPENS, SERVES, client_keys, read_allowed, server_keys
from apex_zmq.net.sockets import is_local
from apex_zmq.watch.doctor import links
from apex_zmq.watch.doctor.check import Check, failed
from apex_zmq.watch.doctor.links import Endpoint, Holder

HANDSHAKE_S = 3.0
COMMAND_LENGTH = 80  # shown of one
REMEDIES = {
    NOT_LISTED: "copy the server's allow-lists again from the directory where apex-keys made them",
    HUNG_UP: "copy this directory of keys again from where apex-keys made it, or start both sides without --keys",
    NO_CURVE: "start the server with --keys too, or this process without",
    KEYS_REQUIRED: "give --keys if the server belongs to this run; else choose another address",
    WRONG_SOCKET_TYPE: "compare the addresses with those of the server's host",
    SILENT: "read the server's log, and restart it",
}


def check_keys(config: Config, roles: Sequence[str], bound: Sequence[Endpoint]) -> Check:
    """Whether the keys are those of these roles, and protected; without keys, whether the run needs any."""
    addresses = config.addresses
    if addresses.keys is None:
        public = [each.address for each in bound if not is_local(each.address)]
        if not public:
            return Check("keys", "ok", "none: links are not encrypted")
        if addresses.insecure:
            found = f"none: any host that can reach {public[0]} may write into the run"
            return Check("keys", "warn", found, "make keys with apex-keys, and give every process its own with --keys")
        found = f"none, and other hosts can reach {public[0]}"
        return Check("keys", "fail", found, "give --keys (apex-keys makes them), or accept every peer with --insecure")
    directory = Path(addresses.keys)
    names: set[str] = set()
    odd: list[str] = []
    try:
        for role in roles:
            for channel in OPENS[role]:
                client_keys(addresses, channel)
            for channel in SERVES[role]:
                server_keys(addresses, channel)
                allowed, broken = read_allowed(directory / "allowed" / channel)
                names.update(allowed.values())
                if broken or not allowed:
                    what = f"line {broken[0]} is ignored" if broken else "names no client"
                    odd.append(f"allowed/{channel}: {what}")
        writable = [path for path in (directory, *directory.rglob("*")) if _others_write(path)]
    except ConfigError as error:
        return failed("keys", error)
    except OSError as error:
        return Check("keys", "fail", f"cannot read {error.filename}: {error.strerror}", "chown it to this user")
    if writable:
        return Check("keys", "fail", f"{writable[0]} can be written by other users", f"chmod -R go-w {directory}")
    if odd:
        return Check(
            "keys",
            "warn",
            f"{directory}: {', '.join(odd)}",
            "write a name and a public key per line, as apex-keys does",
        )
    accepts = f"; accepts {', '.join(sorted(names))}" if names else ""
    return Check("keys", "ok", f"{directory}, of {' and '.join(roles)}{accepts}")


def _others_write(path: Path) -> bool:
    """Whether another user can replace a path; in a sticky directory only its owner can."""
    mode = path.lstat().st_mode
    return bool(mode & 0o022) and not path.is_symlink() and not mode & 0o1000


def check_endpoint(config: Config, endpoint: Endpoint, holder: Holder | None, *, here: bool, opens: bool) -> Check:
    """Whether an address is free for the role that binds it, or that role can be reached there.

    holder: the process that has bound it. here: a role of this host binds it. opens: one of this host connects to it.
    """
    name, address = endpoint.name, endpoint.address
    if not links.resolves(address):
        found = f"{address}: {links.host_of(address)} has no IPv4 address"
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
        return Check(name, "warn", f"{address} was not tried: {str(error).partition('; ')[0]}", "see keys")
    publishes = endpoint.link.pattern == "publish"
    refusal = probe(links.target(address), keys, publishes=publishes, timeout_s=HANDSHAKE_S)
    if refusal is None:
        return Check(name, "ok", f"{address} {state}")
    if refusal == NOT_ANSWERING:
        return _check_absent(endpoint)
    return Check(name, "fail", f"{address} {state}; no access: {refusal}", REMEDIES[refusal])


def _check_free(endpoint: Endpoint) -> Check:
    """Whether a role can bind a free address here, and other hosts can then reach it."""
    name, address = endpoint.name, endpoint.address
    tcp = address.startswith("tcp://")
    anywhere = f"tcp://0.0.0.0:{links.port_of(address)}" if tcp else ""
    why = links.why_not_bound(address)
    if why:
        remedy = f"give an address of this host, such as {anywhere}" if tcp else "make it, or choose another"
        return Check(name, "fail", f"{address} cannot be bound: {why}", remedy)
    if not is_local(address) and (number := links.resolve(links.host_of(address))).startswith("127."):
        found = f"{address} is free, but resolves to {number} here, which no other host can reach"
        return Check(name, "warn", found, f"bind {anywhere}, or the IPv4 address that other hosts connect to")
    return Check(name, "ok", f"{address} is free; no {endpoint.server} is running")


def _check_absent(endpoint: Endpoint) -> Check:
    """Whether the server of an address where none answers is not running, or cannot be reached."""
    name, address = endpoint.name, endpoint.address
    error = links.why_not_reached(address)
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        found = f"{address}: no {endpoint.server} is running"
        return Check(name, "warn", found, f"start apex-{endpoint.server}, or correct the address")
    remedy = "run apex-doctor as the user of the run"
    if address.startswith("tcp://"):
        remedy = f"check that its host is up, and that firewalls let port {links.port_of(address)} through"
    return Check(name, "fail", f"{address} cannot be reached: {error.strerror or error}", remedy)
