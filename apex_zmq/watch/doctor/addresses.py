"""Checks of keys and addresses: who may come in, what is free, who is reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apex_zmq.config.settings import Config
from apex_zmq.errors import ConfigError
from apex_zmq.net.access import HUNG_UP, MUTE, NO_CURVE, NOBODY, NOT_LISTED, WANTS_KEYS, WRONG_KIND, knock
from apex_zmq.net.keys import OPENS, SERVES, client_keys, read_allowed, server_keys
from apex_zmq.net.sockets import is_local
from apex_zmq.watch.doctor import links
from apex_zmq.watch.doctor.check import Check, failed
from apex_zmq.watch.doctor.links import Holder, Link

HANDSHAKE_S = 3.0
COMMAND_LENGTH = 80  # shown of one
REMEDIES = {
    NOT_LISTED: "copy its list of allowed keys again, from where apex-keys has made them",
    HUNG_UP: "copy the directory of these keys again, from where apex-keys has made it; or give keys to neither",
    NO_CURVE: "start it with --keys too, or this without",
    WANTS_KEYS: "give --keys, if it is of this run; else choose another address",
    WRONG_KIND: "compare the addresses with those of its host",
    MUTE: "read its log, and start it again",
}


def check_keys(config: Config, roles: Sequence[str], bound: Sequence[Link]) -> Check:
    """Whether the keys are those of these roles, and safe; without keys, whether none are needed."""
    addresses = config.addresses
    if addresses.keys is None:
        public = [link.address for link in bound if not is_local(link.address)]
        if not public:
            return Check("keys", "ok", "none: nothing is encrypted")
        if addresses.insecure:
            found = f"none: whoever reaches {public[0]} may write into the run"
            return Check("keys", "warn", found, "make keys with apex-keys, and give them to all with --keys")
        found = f"none, and other hosts can reach {public[0]}"
        return Check("keys", "fail", found, "give --keys (apex-keys makes them), or let everybody in with --insecure")
    directory = Path(addresses.keys)
    names: set[str] = set()
    odd: list[str] = []
    try:
        for role in roles:
            for channel in OPENS[role]:
                client_keys(addresses, channel)
            for channel in SERVES.get(role, ()):
                server_keys(addresses, channel)
                allowed, broken = read_allowed(directory / "allowed" / channel)
                names.update(allowed.values())
                if broken or not allowed:
                    what = f"line {broken[0]} is left out" if broken else "lets nobody in"
                    odd.append(f"allowed/{channel}: {what}")
        writable = [path for path in (directory, *directory.rglob("*")) if _others_write(path)]
    except ConfigError as error:
        return failed("keys", error)
    except OSError as error:
        return Check("keys", "fail", f"cannot read {error.filename}: {error.strerror}", "give it to this user")
    if writable:
        return Check("keys", "fail", f"{writable[0]} can be written by others", f"chmod -R go-w {directory}")
    if odd:
        return Check(
            "keys", "warn", f"{directory}: {', '.join(odd)}", "write a name and a public key, as apex-keys does"
        )
    lets_in = f"; lets in {', '.join(sorted(names))}" if names else ""
    return Check("keys", "ok", f"{directory}, of {' and '.join(roles)}{lets_in}")


def _others_write(path: Path) -> bool:
    """Whether another user could put something else in its place; in a sticky directory only its owner can."""
    mode = path.lstat().st_mode
    return bool(mode & 0o022) and not path.is_symlink() and not mode & 0o1000


def check_link(config: Config, link: Link, holder: Holder | None, *, here: bool, opens: bool) -> Check:
    """Whether an address is free for its role, or the role can be reached there.

    holder: who has bound it. here: a role of this host binds it. opens: one of this host connects to it.
    """
    name, address = link.name, link.address
    if not links.resolves(address):
        found = f"{address}: no IPv4 address is known of {links.host_of(address)}"
        return Check(name, "fail", found, "write its number, or name it in DNS or /etc/hosts")
    if here and holder is None:
        return _check_free(link)
    state = "answers"
    if holder is not None:
        state = f"is held by pid {holder.pid or 'unknown'}: {holder.command[:COMMAND_LENGTH] or 'of another user'}"
        if holder.pid is not None and holder.role != link.server:
            return Check(name, "fail", f"{address} {state}", "stop it, or choose another address")
        if holder.pid is not None and not opens:
            return Check(name, "ok", f"{address} {state}")
    try:
        keys = client_keys(config.addresses, link.channel)
    except ConfigError as error:
        return Check(name, "warn", f"{address} is not tried: {str(error).partition('; ')[0]}", "see keys")
    refusal = knock(links.target(address), keys, publishes=link.channel == "parameters", timeout_s=HANDSHAKE_S)
    if refusal is None:
        return Check(name, "ok", f"{address} {state}")
    if refusal == NOBODY:
        return _check_absent(link)
    return Check(name, "fail", f"{address} {state}; no access: {refusal}", REMEDIES[refusal])


def _check_free(link: Link) -> Check:
    """Of an address that nobody holds: whether its role can bind it here, and others will find it."""
    name, address, tcp = link.name, link.address, link.address.startswith("tcp://")
    anywhere = f"tcp://0.0.0.0:{links.port_of(address)}" if tcp else ""
    why = links.why_not_bound(address)
    if why:
        remedy = f"give an address of this host, as {anywhere}" if tcp else "make it, or choose another"
        return Check(name, "fail", f"{address} cannot be bound: {why}", remedy)
    if not is_local(address) and (number := links.resolve(links.host_of(address))).startswith("127."):
        found = f"{address} is free, but {number} here, where no other host gets in"
        return Check(name, "warn", found, f"bind {anywhere}, or the number that others connect to")
    return Check(name, "ok", f"{address} is free; no {link.server} is up")


def _check_absent(link: Link) -> Check:
    """Of an address where nobody answers: whether its role is not up yet, or cannot be reached."""
    name, address = link.name, link.address
    error = links.why_not_reached(address)
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        found = f"{address}: no {link.server} is up"
        return Check(name, "warn", found, f"start apex-{link.server}, or mend the address")
    remedy = "run this as the user of the run"
    if address.startswith("tcp://"):
        remedy = f"see that its host is up, and that firewalls let port {links.port_of(address)} through"
    return Check(name, "fail", f"{address} cannot be reached: {error.strerror or error}", remedy)
