"""ZeroMQ sockets: options, opening by link, and receiving of typed messages.

One thread uses a socket. Only PUSH/PULL and PUB/SUB (as XPUB, for its welcome message) are used. Bad messages are
counted, logged at a limited rate with the peer's address, and dropped; they never raise.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import zmq

from apex_zmq.config.settings import Config, addresses_of
from apex_zmq.errors import ConfigError, MismatchError
from apex_zmq.net import access
from apex_zmq.net.keys import ClientKeys, ServerKeys, client_keys, server_keys
from apex_zmq.net.links import LINKS, Link
from apex_zmq.net.rate_limited_log import RateLimitedLog
from apex_zmq.rundir.files import FileLock
from apex_zmq.wire.body import Parts
from apex_zmq.wire.codec import LIMITS, Kind, VersionError, WireError, kind_of, version_text

T = TypeVar("T")
Decoders = Mapping[Kind, Callable[[Parts], T]]

KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 3
# Timeout for unacknowledged data, during which keepalive does not act.
MAX_RETRANSMIT_MS = 30_000
RECONNECT_MS = 100
RECONNECT_MAX_MS = 5_000
OVERHEAD_BYTES = 4096  # of a part, above the limits of its kind; also the limit of a subscription
MAX_PARTS = 4  # parts of a message that are kept; no kind has more than two
FOREIGN_VERSION_S = 5.0  # time of receiving only another major version before a bound socket's owner ends


class Links:
    """Opens the sockets of one process by the name of their link.

    Queues and options are taken from the table of links, addresses and keys from the settings. The keys of a channel
    are read once, when its first socket is opened.
    """

    def __init__(self, config: Config) -> None:
        self._addresses = config.addresses
        self._queues = {"replay.credits": config.replay.credits}
        self._client_keys = functools.cache(functools.partial(client_keys, config.addresses))
        self._server_keys = functools.cache(functools.partial(server_keys, config.addresses))

    def address(self, name: str, number: int = 0) -> str:
        """Return an address of a link. number: shard or rank."""
        return addresses_of(self._addresses, name)[number]

    def bind(self, name: str, decoders: Decoders[T], number: int = 0) -> Inbox[T]:
        """Bind the PULL of a link. number: shard or rank.

        Raises:
            ConfigError: the address cannot be bound; keys are missing, or of a role that does not bind it.
        """
        return Inbox(self._bind(LINKS[name], zmq.PULL, self.address(name, number)), decoders)

    def connect(self, name: str, number: int = 0) -> Outbox:
        """Connect the PUSH of a link. number: shard or rank.

        Raises:
            ConfigError: the address is malformed; keys are missing, or of a role that does not connect to it.
        """
        link = LINKS[name]
        make = functools.partial(_make_socket, zmq.PUSH, link, self._connected_queue(link))
        return Outbox(ConnectedSocket(make, self.address(name, number), self._client_keys(name)), link.linger_s)

    def subscribe(self, name: str, decoders: Decoders[T]) -> Inbox[T]:
        """Connect the SUB of a link, and subscribe to the kinds with a decoder.

        Raises:
            ConfigError: as `connect`.
        """
        link = LINKS[name]

        def make() -> zmq.Socket[bytes]:
            socket = _make_socket(zmq.SUB, link, self._connected_queue(link))
            for kind in decoders:  # before connecting, else the welcome message is filtered out
                socket.subscribe(bytes([kind]))
            return socket

        return Inbox(ConnectedSocket(make, self.address(name), self._client_keys(name)), decoders)

    def publish(self, name: str, welcome: bytes | None = None, address: str | None = None) -> BoundSocket:
        """Bind the XPUB of a link.

        welcome: first message to every new subscriber, of one part. address: address to bind; None: the link's.

        Raises:
            ConfigError: as `bind`.
        """
        return self._bind(LINKS[name], zmq.XPUB, address or self.address(name), welcome)

    def _bind(self, link: Link, kind: int, address: str, welcome: bytes | None = None) -> BoundSocket:
        keys = self._server_keys(link.name)
        socket = _make_socket(kind, link, link.bound_queue)
        if welcome is not None:
            socket.setsockopt(zmq.XPUB_WELCOME_MSG, welcome)
        return BoundSocket(socket, address, self._addresses.insecure, keys)

    def _connected_queue(self, link: Link) -> int:
        queue = link.connected_queue
        return queue if isinstance(queue, int) else self._queues[queue]


def _make_socket(kind: int, link: Link, queue: int) -> zmq.Socket[bytes]:
    """Make a socket of a link and set all its options, which must precede binding or connecting.

    kind: zmq.PUSH, PULL, XPUB or SUB. queue: high-water mark in messages.
    """
    options = {
        zmq.SNDHWM: queue,
        zmq.RCVHWM: queue,
        zmq.LINGER: 0,
        zmq.MAXMSGSIZE: OVERHEAD_BYTES,
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: KEEPALIVE_IDLE_S,
        zmq.TCP_KEEPALIVE_INTVL: KEEPALIVE_INTERVAL_S,
        zmq.TCP_KEEPALIVE_CNT: KEEPALIVE_COUNT,
        zmq.TCP_MAXRT: MAX_RETRANSMIT_MS,
        zmq.RECONNECT_IVL: RECONNECT_MS,
        zmq.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
    }
    if kind in (zmq.PULL, zmq.SUB):
        options[zmq.MAXMSGSIZE] = max_message_bytes(link)
    if kind == zmq.PUSH:
        options[zmq.IMMEDIATE] = 1  # no messages are queued for a peer that is not connected
        if link.patient:
            options[zmq.TCP_MAXRT] = 0
    if link.kernel_bytes is not None:
        options[zmq.SNDBUF if kind == zmq.PUSH else zmq.RCVBUF] = link.kernel_bytes
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket


def max_message_bytes(link: Link) -> int:
    """Return ZMQ_MAXMSGSIZE of a link's receiver, in bytes; libzmq checks each part before allocating memory."""
    return max(max(LIMITS[kind]) for kind in link.kinds) + OVERHEAD_BYTES


def is_local(address: str) -> bool:
    """Return whether a bound address can be reached from this machine only."""
    if address.startswith("ipc://"):
        return True
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class BoundSocket:
    """A bound socket, with its allow-list and, for ipc, the lock of its path.

    Without the lock, a second process could bind the same ipc path and silently take it over.
    authenticator: None if the run has no keys.

    Raises:
        ConfigError: the address cannot be bound; the socket is closed.
    """

    def __init__(self, socket: zmq.Socket[bytes], address: str, insecure: bool, keys: ServerKeys | None) -> None:
        self.authenticator = access.require_keys(socket, keys) if keys is not None else None
        self.socket = socket
        self._lock: FileLock | None = None
        try:
            self._bind(address, insecure)
        except ConfigError:
            self.close()
            raise

    def _bind(self, address: str, insecure: bool) -> None:
        if not (insecure or self.authenticator is not None or is_local(address)):
            raise ConfigError(
                f"{address} can be reached by other hosts; give --keys (apex-keys makes them), bind to 127.0.0.1, "
                "or accept every peer with --insecure"
            )
        if address.startswith("ipc://"):
            self._lock = _lock_ipc(address)
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise _in_use(address) from None
            raise ConfigError(f"cannot bind {address}: {error.strerror}; give an address of this host") from None

    def close(self) -> None:
        """Close the socket and release its address."""
        if self.authenticator is not None:
            access.unwatch(self.socket)
        self.socket.close()
        if self._lock is not None:
            self._lock.release()


def _in_use(address: str) -> ConfigError:
    return ConfigError(f"address {address} is in use; stop the other process or choose another address")


def _lock_ipc(address: str) -> FileLock:
    try:
        return FileLock(Path(address.removeprefix("ipc://") + ".lock"))
    except BlockingIOError:
        raise _in_use(address) from None
    except OSError as error:
        raise ConfigError(
            f"cannot bind {address}: {error.strerror}; its directory must exist and be writable"
        ) from None


class ConnectedSocket:
    """A socket that connects to an address, replaced when libzmq has given up its connection.

    make: function that makes the socket and sets its options.

    Raises:
        ConfigError: the address is malformed.
    """

    def __init__(self, make: Callable[[], zmq.Socket[bytes]], address: str, keys: ClientKeys | None) -> None:
        self._make, self._address, self._keys = make, address, keys
        self._failures = RateLimitedLog("no access to")
        self._connect()

    def _connect(self) -> None:
        self._socket = self._make()
        self._monitor = access.monitor_connection(self._socket, self._keys, self._address, self._failures)
        try:
            self._socket.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"cannot connect to {self._address}: {error.strerror}; give the address of a host that can be reached"
            ) from None

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The current socket; a new one after a refusal."""
        if self._monitor.given_up:
            self._monitor.report_loss()
            self.close()
            self._connect()
        return self._socket

    def close(self, linger_s: float = 0.0) -> None:
        """Close the socket; queued messages are sent for up to `linger_s` seconds."""
        access.unwatch(self._socket)
        self._socket.close(linger=round(1000 * linger_s))


class ForeignVersion(NamedTuple):
    """Consecutive messages of another major version, with no accepted message between them.

    version: major and minor of the newest. since, until: arrival of the first and the newest, in monotonic seconds.
    """

    version: tuple[int, int]
    since: float
    until: float


class Inbox(Generic[T]):
    """Receives typed messages on one PULL (bound) or SUB (connected) socket.

    decoders: decoders by kind; other kinds are refused.
    accepted: number of accepted messages. foreign: see `ForeignVersion`; None: the newest message has our version.
    """

    def __init__(self, end: BoundSocket | ConnectedSocket, decoders: Decoders[T]) -> None:
        self.accepted = 0
        self.foreign: ForeignVersion | None = None
        self._end = end
        self._decoders = decoders
        self._refusals = RateLimitedLog("refused a message from")

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket to poll; a new one after a refused connection."""
        return self._end.socket

    @property
    def refused(self) -> int:
        """Number of messages dropped because they break the protocol or their sender's key has been revoked."""
        return self._refusals.total

    @property
    def newest_refusal(self) -> str:
        """Reason of the newest refusal; empty before the first."""
        return self._refusals.newest

    def receive(self, timeout_s: float = 0.0) -> T | None:
        """Return the next valid message; None on timeout.

        After the timeout, at most one more message is read, so that a flood of bad messages cannot block the caller.
        """
        deadline = time.monotonic() + timeout_s
        remaining_s = timeout_s
        while (socket := self.socket).poll(max(0, round(1000 * remaining_s))):
            frames = _receive_parts(socket)
            try:
                self._check_sender(frames[0])
                # Views of parts keep their libzmq buffers alive, so no bytes are copied.
                parts = [frame.buffer for frame in frames]
                message = self._decode(parts)
            except WireError as error:
                self._refusals.add(_property(frames[0], "Peer-Address") or access.LOCAL_PEER, str(error))
            else:
                self.accepted += 1
                self.foreign = None
                return message
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                break
        return None

    def _decode(self, parts: Parts) -> T:
        """Decode a message.

        Raises:
            WireError: the message breaks the protocol, or is of another link.
        """
        try:
            kind = kind_of(parts[0])
        except VersionError as error:
            if parts[0][0] in self._decoders:
                now = time.monotonic()
                self.foreign = ForeignVersion(error.version, self.foreign.since if self.foreign else now, now)
            raise
        decode = self._decoders.get(kind)
        if decode is None:
            raise WireError(f"{kind.name} is not a kind of this link")
        return decode(parts)

    def _check_sender(self, frame: zmq.Frame) -> None:
        """Check that the sender's key has not been revoked since its handshake.

        Raises:
            WireError: the key has been revoked.
        """
        if isinstance(self._end, BoundSocket) and self._end.authenticator is not None:
            key = _property(frame, "User-Id")
            if not self._end.authenticator.allows(key):
                raise WireError(f"its key {key} has been revoked")

    def check_version(self, peer: str) -> None:
        """End this process if the run uses another major version. peer: role of the sender.

        A subscriber trusts the first message of its server. A bound socket may receive messages of any process; so its
        owner ends only if it has accepted no message, and messages of another version have arrived for
        `FOREIGN_VERSION_S`. Once it has accepted a message of its own version, no other peer can end it.

        Raises:
            MismatchError: the run uses another major version.
        """
        foreign = self.foreign
        if foreign is None:
            return
        bound = isinstance(self._end, BoundSocket)
        if bound and (self.accepted or foreign.until - foreign.since < FOREIGN_VERSION_S):
            return
        raise MismatchError(
            f"the {peer} speaks protocol {version_text(foreign.version)}, this program {version_text()}; install the "
            "same version of apex_zmq on every host of the run"
        )

    def close(self) -> None:
        """Close the socket and release its address."""
        self._end.close()


def _receive_parts(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """Receive the parts of a message; drop those beyond `MAX_PARTS`."""
    frames = [socket.recv(copy=False)]
    more = frames[0].more
    while more:
        frame = socket.recv(copy=False)
        more = frame.more
        if len(frames) < MAX_PARTS:
            frames.append(frame)
    return frames


def _property(frame: zmq.Frame, name: str) -> str:
    """Return a property of the connection that delivered a frame; empty if it has no such property."""
    try:
        return str(frame.get(name))
    except (zmq.ZMQError, KeyError):
        return ""


class Outbox:
    """Sends messages on one connected PUSH. Messages are queued only while the peer is connected.

    linger_s: seconds for which queued messages are sent after closing.
    """

    def __init__(self, end: ConnectedSocket, linger_s: float = 0.0) -> None:
        self._end = end
        self._linger_s = linger_s

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket to poll; a new one after a refused connection."""
        return self._end.socket

    @property
    def ready(self) -> bool:
        """Whether a message can be sent now."""
        return bool(self.socket.poll(0, zmq.POLLOUT))

    def send(self, parts: Parts) -> bool:
        """Send without blocking; return False if the queue is full or no peer is connected.

        Parts are not copied if large, so the caller must not change them afterwards.
        """
        try:
            self.socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._end.close(self._linger_s)


def wait(inboxes: Iterable[Inbox[Any]], outboxes: Iterable[Outbox], timeout_s: float) -> None:
    """Block until an inbox has a message or an outbox has room, or until the timeout."""
    poller = zmq.Poller()
    for inbox in inboxes:
        poller.register(inbox.socket, zmq.POLLIN)
    for outbox in outboxes:
        poller.register(outbox.socket, zmq.POLLOUT)
    poller.poll(round(1000 * timeout_s))
