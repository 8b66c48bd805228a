"""ZeroMQ sockets, their options, and typed receiving; who may connect to them is `guard`'s.

A socket belongs to the thread that made it. Only PUSH/PULL and PUB/SUB
(as XPUB, for its welcome message) are used. Bad messages are counted, logged
at a limited rate with the peer's address, and dropped; they never raise.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import zmq

from apex_zmq.errors import ConfigError
from apex_zmq.net import access
from apex_zmq.net.complaints import Complaints
from apex_zmq.net.keys import ClientKeys, ServerKeys
from apex_zmq.rundir.files import FileLock
from apex_zmq.types import Buffer
from apex_zmq.wire.body import Parts
from apex_zmq.wire.codec import LIMITS, Kind, WireError, kind_of

T = TypeVar("T")

KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 3
# Keepalive does not act while data are unacknowledged; this bounds that case.
MAX_RETRANSMIT_MS = 30_000
RECONNECT_MS = 100
RECONNECT_MAX_MS = 5_000
SUBSCRIPTIONS_PER_CALL = 1000  # read at most, so that a flood of them cannot hold the publisher
MAX_PARTS = 4  # kept of a message; no kind has more than two
# Of a connection from an actor to a shard, at both ends.
EXPERIENCE_HWM = 4  # segments
EXPERIENCE_KERNEL_BYTES = 1 << 18  # by itself the kernel would let megabytes grow old between the queues
IN_USE_REMEDY = "stop the other process or choose another"


def _socket(kind: int, *, hwm: int, max_bytes: int) -> zmq.Socket[bytes]:
    """A socket with every option that matters, set before it binds or connects."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    options = {
        zmq.SNDHWM: hwm,
        zmq.RCVHWM: hwm,
        zmq.LINGER: 0,
        zmq.MAXMSGSIZE: max_bytes,
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: KEEPALIVE_IDLE_S,
        zmq.TCP_KEEPALIVE_INTVL: KEEPALIVE_INTERVAL_S,
        zmq.TCP_KEEPALIVE_CNT: KEEPALIVE_COUNT,
        zmq.TCP_MAXRT: MAX_RETRANSMIT_MS,
        zmq.RECONNECT_IVL: RECONNECT_MS,
        zmq.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
    }
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket


def max_message_bytes(kinds: Iterable[Kind]) -> int:
    """ZMQ_MAXMSGSIZE of a socket that receives these kinds (libzmq checks each part)."""
    return max(max(LIMITS[kind]) for kind in kinds) + 4096


def is_local(address: str) -> bool:
    """Whether only processes of this machine can reach a bound address."""
    if address.startswith("ipc://"):
        return True
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Bound:
    """Holds what a bound address needs: for ipc, a lock, or a second bind would silently steal the address.

    guard: who may come in; None: everybody. Closes the socket when it cannot be bound.
    """

    def __init__(self, socket: zmq.Socket[bytes], address: str, insecure: bool, keys: ServerKeys | None) -> None:
        self.guard = access.admit_by(socket, keys) if keys is not None else None
        self.socket = socket
        self._lock: FileLock | None = None
        try:
            self._bind(address, insecure)
        except ConfigError:
            self.close()
            raise

    def _bind(self, address: str, insecure: bool) -> None:
        if not (insecure or self.guard is not None or is_local(address)):
            raise ConfigError(
                f"{address} can be reached by other hosts: give --keys (apex-keys makes them), bind to 127.0.0.1, "
                "or let everybody in with --insecure"
            )
        if address.startswith("ipc://"):
            self._lock = _lock_ipc(address)
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise ConfigError(f"address {address} is in use; {IN_USE_REMEDY}") from None
            raise ConfigError(f"cannot bind {address}: {error.strerror}; give an address of this host") from None

    def close(self) -> None:
        if self.guard is not None:
            access.release(self.socket)
        self.socket.close()
        if self._lock is not None:
            self._lock.release()


class _Connected:
    """A connecting socket, made anew once libzmq has given its connection up.

    make: the socket, before it connects.
    """

    def __init__(self, make: Callable[[], zmq.Socket[bytes]], address: str, keys: ClientKeys | None) -> None:
        self._make, self._address, self._keys = make, address, keys
        self._complaints = Complaints("no access to")
        self._connect()

    def _connect(self) -> None:
        self._socket = self._make()
        self._line = access.attend(self._socket, self._keys, self._address, self._complaints)
        try:
            self._socket.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot connect to {self._address}: {error.strerror}; name a host to reach") from None

    @property
    def socket(self) -> zmq.Socket[bytes]:
        if self._line.given_up:
            self._line.bury()
            self.close()
            self._connect()
        return self._socket

    def close(self, linger_ms: int = 0) -> None:
        access.release(self._socket)
        self._socket.close(linger=linger_ms)


def _lock_ipc(address: str) -> FileLock:
    try:
        return FileLock(Path(address.removeprefix("ipc://") + ".lock"))
    except BlockingIOError:
        raise ConfigError(f"address {address} is in use; {IN_USE_REMEDY}") from None
    except OSError as error:
        raise ConfigError(
            f"cannot bind {address}: {error.strerror}; its directory must exist and be writable"
        ) from None


class Inbox(Generic[T]):
    """Receives typed messages on one PULL (bound) or SUB (connected) socket.

    decoders: what to do with each kind; a kind without one is refused.
    """

    def __init__(self, end: _Bound | _Connected, decoders: dict[Kind, Callable[[Parts], T]]) -> None:
        self._end = end
        self._decoders = decoders
        self._complaints = Complaints("refused a message from")

    @classmethod
    def bind(
        cls,
        address: str,
        decoders: dict[Kind, Callable[[Parts], T]],
        *,
        hwm: int,
        kernel_bytes: int | None = None,
        insecure: bool = False,
        keys: ServerKeys | None = None,
    ) -> Inbox[T]:
        """A bound PULL.

        kernel_bytes: of each connection that the kernel holds before they are read; None: as many as it likes.

        Raises:
            ConfigError: the address cannot be bound.
        """
        socket = _socket(zmq.PULL, hwm=hwm, max_bytes=max_message_bytes(decoders))
        if kernel_bytes is not None:
            socket.setsockopt(zmq.RCVBUF, kernel_bytes)
        return cls(_Bound(socket, address, insecure, keys), decoders)

    @classmethod
    def subscribe(
        cls, address: str, decoders: dict[Kind, Callable[[Parts], T]], *, keys: ClientKeys | None = None
    ) -> Inbox[T]:
        """A connected SUB. Subscribes before connecting, or the welcome message would be filtered out."""

        def make() -> zmq.Socket[bytes]:
            # libzmq sends the welcome, parameters, to everybody, whatever they subscribe to.
            socket = _socket(zmq.SUB, hwm=8, max_bytes=max_message_bytes({*decoders, Kind.PARAMETERS}))
            for kind in decoders:
                socket.subscribe(bytes([kind]))
            return socket

        return cls(_Connected(make, address, keys), decoders)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket, to be polled; not always the same."""
        return self._end.socket

    @property
    def refused(self) -> int:
        """Messages dropped for breaking the protocol, or because their sender has been struck off."""
        return self._complaints.total

    @property
    def complaint(self) -> str:
        """Why the last of them was; empty before the first."""
        return self._complaints.newest

    def receive(self, timeout_s: float = 0.0) -> T | None:
        """The next good message, or None when there is none in time.

        After the time is up one message at most is looked at, so that a flood of bad ones cannot hold the caller.
        """
        deadline = time.monotonic() + timeout_s
        remaining_s = timeout_s
        while (socket := self.socket).poll(max(0, round(1000 * remaining_s))):
            frames = _receive_parts(socket)
            try:
                self._check_sender(frames[0])
                # A view of a part keeps its libzmq buffer alive; nothing is copied.
                parts = [frame.buffer for frame in frames]
                decode = self._decoders.get(kind_of(parts[0]))
                if decode is None:
                    raise WireError(f"{kind_of(parts[0]).name} does not belong on this channel")
                return decode(parts)
            except WireError as error:
                self._complaints.add(_property(frames[0], "Peer-Address") or "a local peer", str(error))
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                break
        return None

    def _check_sender(self, frame: zmq.Frame) -> None:
        """Refuse who has been struck off since its handshake.

        Raises:
            WireError
        """
        if isinstance(self._end, _Bound) and self._end.guard is not None:
            key = _property(frame, "User-Id")
            if not self._end.guard.allows(key):
                raise WireError(f"its key {key} has been struck off")

    def close(self) -> None:
        """Close the socket and free its address."""
        self._end.close()


def _receive_parts(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """The parts of a message; of one with too many only the first few are kept."""
    frames = [socket.recv(copy=False)]
    more = frames[0].more
    while more:
        frame = socket.recv(copy=False)
        more = frame.more
        if len(frames) < MAX_PARTS:
            frames.append(frame)
    return frames


def _property(frame: zmq.Frame, name: str) -> str:
    """A property of the connection that a frame has come from; empty where there is none."""
    try:
        return str(frame.get(name))
    except (zmq.ZMQError, KeyError):
        return ""


class Outbox:
    """One connected PUSH. Messages wait only for a peer that is there (IMMEDIATE=1).

    patient: the peer may take nothing for long and be well. TCP_MAXRT ends a connection whose window stays closed,
        and what was on the way with it; without, only one whose host is gone is ended, in the kernel's own time.
    kernel_bytes: that the kernel holds before the peer's has them; None: as many as it likes.
    """

    def __init__(
        self,
        address: str,
        *,
        hwm: int,
        linger_s: float = 0.0,
        patient: bool = False,
        kernel_bytes: int | None = None,
        keys: ClientKeys | None = None,
    ) -> None:
        def make() -> zmq.Socket[bytes]:
            socket = _socket(zmq.PUSH, hwm=hwm, max_bytes=-1)
            socket.setsockopt(zmq.IMMEDIATE, 1)
            if patient:
                socket.setsockopt(zmq.TCP_MAXRT, 0)
            if kernel_bytes is not None:
                socket.setsockopt(zmq.SNDBUF, kernel_bytes)
            return socket

        self._end = _Connected(make, address, keys)
        self._linger_ms = round(1000 * linger_s)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket, to be polled; not always the same."""
        return self._end.socket

    @property
    def ready(self) -> bool:
        """Whether a message can be sent now."""
        return bool(self.socket.poll(0, zmq.POLLOUT))

    def send(self, parts: Parts) -> bool:
        """Send without waiting; False when no peer can take it. Large parts are not copied: leave them alone."""
        try:
            self.socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close, giving what was sent a moment to leave."""
        self._end.close(self._linger_ms)


def wait(inboxes: Iterable[Inbox[Any]], outboxes: Iterable[Outbox], timeout_s: float) -> None:
    """Return when one inbox has something to receive or one outbox has room, or after the timeout."""
    poller = zmq.Poller()
    for inbox in inboxes:
        poller.register(inbox.socket, zmq.POLLIN)
    for outbox in outboxes:
        poller.register(outbox.socket, zmq.POLLOUT)
    poller.poll(round(1000 * timeout_s))


class Publisher:
    """A bound XPUB: newest wins, and whoever connects is welcomed with the newest.

    Call `serve` at least every 100 ms: the welcome leaves only while the
    subscriptions are being read.
    """

    def __init__(self, address: str, *, insecure: bool = False, keys: ServerKeys | None = None) -> None:
        self._address, self._insecure, self._keys = address, insecure, keys
        self._welcome: bytes | None = None
        self._bound: _Bound | None = self._bind()

    def _bind(self) -> _Bound:
        socket = _socket(zmq.XPUB, hwm=8, max_bytes=4096)
        if self._welcome is not None:
            socket.setsockopt(zmq.XPUB_WELCOME_MSG, self._welcome)
        return _Bound(socket, self._address, self._insecure, self._keys)

    def welcome(self, part: Buffer) -> None:
        """Send to all, and from now on to every new subscriber."""
        self._welcome = bytes(part)
        if self._bound is not None:
            self._bound.socket.setsockopt(zmq.XPUB_WELCOME_MSG, self._welcome)
        self.send([part])

    def send(self, parts: Parts) -> None:
        """Send to all; dropped for those who lag."""
        if self._bound is not None:
            self._bound.socket.send_multipart(parts, copy=False)

    def serve(self) -> None:
        """Read the subscriptions that have come in, once those are gone who have been struck off."""
        self._shut_out()
        for _ in range(SUBSCRIPTIONS_PER_CALL):
            if self._bound is None or not self._bound.socket.poll(0):
                break
            self._bound.socket.recv_multipart()

    def _shut_out(self) -> None:
        """Bind anew when somebody has been struck off: nothing else ends a connection, or names who is at its end.

        libzmq frees a TCP port some time after the socket has been closed; until then each call tries once.
        """
        if self._bound is not None and self._bound.guard is not None and self._bound.guard.struck:
            self._bound.close()
            self._bound = None
        if self._bound is None:
            with contextlib.suppress(ConfigError):
                self._bound = self._bind()

    def close(self) -> None:
        """Close the socket and free its address."""
        if self._bound is not None:
            self._bound.close()
