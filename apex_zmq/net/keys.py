"""Keys on disk: a process's own key, its servers' keys, and its clients' keys (docs/SECURITY.md).

A keys directory (0700) belongs to one holder: a process, or the processes of one host. Each link has one channel, of
the same name:

* `identity.key_secret` (0600) and `identity.key`: the holder's CurveZMQ certificate (format of czmq and zmq.auth);
* `servers`: a line `channel public-key` for each channel that the holder connects to;
* `allowed/<channel>`: for each channel that the holder binds, a line `name public-key` for each client it accepts.

Public keys are Z85 text of 40 characters. A line that begins with # is a comment.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth

from apex_zmq.config.settings import Addresses
from apex_zmq.errors import ConfigError
from apex_zmq.net.links import LINKS, ROLES
from apex_zmq.rundir.files import replacing

# Channels that the keys of each role connect to and bind.
OPENS = {role: tuple(link.name for link in LINKS.values() if role in link.connects) for role in ROLES}
SERVES = {role: tuple(link.name for link in LINKS.values() if role in link.binds) for role in ROLES}
SERVERS = ("replay", "learner")  # holders named after their role, one of each
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PUBLIC_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
IDENTITY = "identity"


@dataclass(frozen=True)
class ClientKeys:
    """Keys of a connecting socket: its own pair and its server's public key, in Z85."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes


@dataclass(frozen=True)
class ServerKeys:
    """Keys of a bound socket: its own secret key, in Z85, and the file that lists the clients it accepts."""

    channel: str
    secret: bytes = field(repr=False)
    allowed: Path


def client_keys(addresses: Addresses, channel: str) -> ClientKeys | None:
    """Read the keys to connect to a channel; None if the run has no keys.

    Raises:
        ConfigError: keys are missing, damaged or readable by other users; `servers` does not list the channel.
    """
    if addresses.keys is None:
        return None
    directory = Path(addresses.keys)
    public, secret = _identity(directory)
    path = directory / "servers"
    entries, broken = _read_list(path)
    servers = dict(entries)
    if broken or channel not in servers:
        *most, last = [role for role, channels in OPENS.items() if channel in channels]
        holders = f"{', '.join(most)} or {last}" if most else last
        raise ConfigError(
            f"{path} must hold a line `{channel} PUBLIC-KEY`, which apex-keys writes into the keys of {holders}"
        )
    return ClientKeys(public=public, secret=secret, server=servers[channel].encode())


def server_keys(addresses: Addresses, channel: str) -> ServerKeys | None:
    """Read the keys to bind a channel; None if the run has no keys.

    Raises:
        ConfigError: keys are missing, damaged or readable by other users; their holder does not bind the channel.
    """
    if addresses.keys is None:
        return None
    directory = Path(addresses.keys)
    _, secret = _identity(directory)
    allowed = directory / "allowed" / channel
    if not allowed.is_file():
        holders = " or ".join(role for role, channels in SERVES.items() if channel in channels)
        raise ConfigError(
            f"{allowed} is missing: {channel} is bound with the keys of a {holders}; give that directory as --keys"
        )
    return ServerKeys(channel=channel, secret=secret, allowed=allowed)


def read_allowed(path: Path) -> tuple[dict[str, str], list[int]]:
    """Read an allow-list: names by public key, and numbers of malformed lines; a missing list is empty.

    Raises:
        OSError: the file cannot be read.
    """
    entries, broken = _read_list(path)
    return {key: name for name, key in entries}, broken


def role_of(directory: Path) -> str | None:
    """Return the role of keys, from the channels they connect to and bind; None: unknown or unreadable."""
    try:
        opens = {channel for channel, _ in _read_list(directory / "servers")[0]}
        serves = {path.name for path in (directory / "allowed").glob("[!.]*")}
    except OSError:
        return None
    return next((role for role in OPENS if {*OPENS[role]} == opens and {*SERVES[role]} == serves), None)


def _read_list(path: Path) -> tuple[list[tuple[str, str]], list[int]]:
    found, broken = [], []
    try:
        text = path.read_text("ascii", errors="replace")
    except FileNotFoundError:
        text = ""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) == 2 and NAME.fullmatch(words[0]) and PUBLIC_KEY.fullmatch(words[1]):
            found.append((words[0], words[1]))
        else:
            broken.append(number)
    return found, broken


def _identity(directory: Path) -> tuple[bytes, bytes]:
    """Read the holder's public and secret key."""
    _require_curve()
    path = directory / f"{IDENTITY}.key_secret"
    try:
        mode = path.stat().st_mode
        public, secret = zmq.auth.load_certificate(path)
        fits = secret is not None and zmq.curve_public(secret) == public
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or 'no such file'}; give --keys a directory made by apex-keys"
        ) from None
    except (ValueError, zmq.ZMQError):
        fits = False
    if not fits or secret is None:
        raise ConfigError(f"{path} does not hold a key pair; make a new one with apex-keys")
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by other users (mode {mode & 0o777:o}); chmod 600 {path}")
    return public, secret


def _require_curve() -> None:
    if not zmq.has("curve"):
        raise ConfigError("this libzmq was built without CURVE; install the pyzmq wheel from PyPI, which includes it")


# Making keys (apex-keys): one root directory holds a directory per holder, which is copied to the holder's host.


def make_servers(root: Path) -> list[Path]:
    """Make the keys of replay and learner, and list each in the other's directory.

    Returns:
        Their directories.

    Raises:
        ConfigError: the keys exist already, or the directory cannot be written.
    """
    _require_curve()
    for name in SERVERS:
        if (root / name).exists():
            raise ConfigError(f"{root / name} exists already; add clients with apex-keys {root} NAME --role ROLE")
    public: dict[str, str] = {}
    try:
        for name in SERVERS:
            public[name] = _make_holder(root, name, name)
        for name in SERVERS:
            _register(root, name, name, public[name], {})
    except ConfigError:
        for name in public:
            shutil.rmtree(root / name, ignore_errors=True)
        raise
    return [root / name for name in SERVERS]


def make_client(root: Path, name: str, role: str, forwarder: str | None = None) -> Path:
    """Make the keys of a client, and add it to the allow-lists of the channels that its role connects to.

    forwarder: name of the forwarder that sends parameters to the client; None: the learner sends them.

    Returns:
        The client's directory.

    Raises:
        ConfigError: the name is taken or malformed, the servers or the forwarder have no keys, or the directory cannot
            be written.
    """
    _require_curve()
    for server in SERVERS:
        if not (root / server).is_dir():
            raise ConfigError(f"{root} has no keys of a {server}; make them first with apex-keys {root}")
    if not NAME.fullmatch(name):
        raise ConfigError(f"invalid name {name!r}; use at most 64 letters, digits, dots, dashes and underscores")
    if (root / name).exists():
        raise ConfigError(f"{root / name} exists already; choose another name, or --remove it first")
    sources = {} if forwarder is None else {"parameters": forwarder}
    if forwarder is not None and (forwarder in SERVERS or not (root / forwarder / "allowed" / "parameters").is_file()):
        raise ConfigError(f"{root} has no keys of a forwarder {forwarder}; make them first with --role forwarder")
    public = _make_holder(root, name, role)
    _register(root, name, role, public, sources)
    return root / name


def remove(root: Path, name: str) -> None:
    """Remove a client from every allow-list and delete its keys.

    Raises:
        ConfigError: no client has this name, or files cannot be written.
    """
    if name in SERVERS or not NAME.fullmatch(name) or not (root / name).is_dir():
        raise ConfigError(f"{root} has no client {name}; its clients are the directories beside replay/ and learner/")
    try:
        for path in root.glob("*/allowed/*"):
            kept = [line for line in path.read_text().splitlines(keepends=True) if line.split()[:1] != [name]]
            _replace(path, "".join(kept))
        shutil.rmtree(root / name)
    except OSError as error:
        raise ConfigError(f"cannot remove {name}: {error}; make {root} writable and try again") from None


def _make_holder(root: Path, name: str, role: str) -> str:
    """Atomically make a directory with a certificate and empty lists.

    Returns:
        The public key.
    """
    before = os.umask(0o077)
    try:
        root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        try:
            zmq.auth.create_certificates(made, IDENTITY)
            (made / f"{IDENTITY}.key").chmod(0o644)
            (made / "servers").touch()
            for channel in SERVES.get(role, ()):
                (made / "allowed").mkdir(exist_ok=True)
                (made / "allowed" / channel).touch()
            public, _ = zmq.auth.load_certificate(made / f"{IDENTITY}.key")
            made.rename(root / name)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write keys to {root}: {error.strerror}; choose another directory") from None
    finally:
        os.umask(before)
    return public.decode()


def _register(root: Path, name: str, role: str, public: str, sources: dict[str, str]) -> None:
    """Write a holder's list of servers, and add its key to their allow-lists.

    sources: servers by channel, where they are not the default ones.
    """
    usual = {channel: server for server in SERVERS for channel in SERVES[server]}
    lines = []
    try:
        for channel in OPENS[role]:
            server = sources.get(channel, usual[channel])
            key, _ = zmq.auth.load_certificate(root / server / f"{IDENTITY}.key")
            lines.append(f"{channel} {key.decode()}\n")
            allowed = root / server / "allowed" / channel
            text = allowed.read_text()
            _replace(allowed, text + "\n" * (text[-1:] not in ("", "\n")) + f"{name} {public}\n")
        _replace(root / name / "servers", "".join(lines))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{root / name} is incomplete: {error}; --remove it, check the files in {root}, and make it again"
        ) from None


def _replace(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)
        temporary.chmod(0o600)
