"""The only module that touches ZeroMQ: sockets, their options, and typed receiving.

A socket belongs to the thread that made it. Only PUSH/PULL and PUB/SUB
(as XPUB, for its welcome message) are used. Bad messages are counted, logged
at a limited rate with the peer's address, and dropped; they never raise.
"""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import zmq

from apex_zmq.config import ConfigError
from apex_zmq.types import Buffer
from apex_zmq.wire.codec import LIMITS, Kind, WireError, kind_of

log = logging.getLogger(__name__)
T = TypeVar("T")
Parts = Sequence[Buffer]

KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_COUNT = 3
# Keepalive does not act while data are unacknowledged; this bounds that case.
MAX_RETRANSMIT_MS = 30_000
RECONNECT_MS = 100
RECONNECT_MAX_MS = 5_000
COMPLAINT_INTERVAL_S = 10.0


class AddressInUseError(ConfigError):
    """Somebody else has bound the address."""


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

    Closes the socket when it cannot be bound.
    """

    def __init__(self, socket: zmq.Socket[bytes], address: str, insecure: bool) -> None:
        self._lock: int | None = None
        try:
            self._bind(socket, address, insecure)
        except ConfigError:
            socket.close()
            self.release()
            raise

    def _bind(self, socket: zmq.Socket[bytes], address: str, insecure: bool) -> None:
        if not (insecure or is_local(address)):
            raise ConfigError(
                f"{address} can be reached by other hosts without keys; bind to 127.0.0.1, or accept it with --insecure"
            )
        if address.startswith("ipc://"):
            self._lock = _lock_ipc(address)
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise AddressInUseError(
                    f"address {address} is in use; stop the other process or choose another"
                ) from None
            raise ConfigError(f"cannot bind {address}: {error.strerror}; give an address of this host") from None

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock_ipc(address: str) -> int:
    path = address.removeprefix("ipc://") + ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot bind {address}: {error.strerror}; its directory must exist and be writable"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AddressInUseError(f"address {address} is in use; stop the other process or choose another") from None
    return descriptor


class Inbox(Generic[T]):
    """Receives typed messages on one PULL (bound) or SUB (connected) socket.

    decoders: what to do with each kind; a kind without one is refused.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        decoders: dict[Kind, Callable[[Parts], T]],
        bound: _Bound | None = None,
    ) -> None:
        self.socket = socket
        self._decoders = decoders
        self._bound = bound
        self._complaints = _Complaints()

    @classmethod
    def bind(
        cls, address: str, decoders: dict[Kind, Callable[[Parts], T]], *, hwm: int, insecure: bool = False
    ) -> Inbox[T]:
        """A bound PULL.

        Raises:
            AddressInUseError, ConfigError: the address cannot be bound.
        """
        socket = _socket(zmq.PULL, hwm=hwm, max_bytes=max_message_bytes(decoders))
        return cls(socket, decoders, _Bound(socket, address, insecure))

    @classmethod
    def subscribe(cls, address: str, decoders: dict[Kind, Callable[[Parts], T]]) -> Inbox[T]:
        """A connected SUB. Subscribes before connecting, or the welcome message would be filtered out."""
        socket = _socket(zmq.SUB, hwm=8, max_bytes=max_message_bytes(decoders))
        for kind in decoders:
            socket.subscribe(bytes([kind]))
        socket.connect(address)
        return cls(socket, decoders)

    @property
    def refused(self) -> int:
        """Messages dropped for breaking the protocol."""
        return self._complaints.total

    def receive(self, timeout_s: float = 0.0) -> T | None:
        """The next good message, or None when there is none in time.

        After the time is up one message at most is looked at, so that a flood of bad ones cannot hold the caller.
        """
        deadline = time.monotonic() + timeout_s
        remaining_s = timeout_s
        while self.socket.poll(max(0, round(1000 * remaining_s))):
            frames = self.socket.recv_multipart(copy=False)
            try:
                # A view of a part keeps its libzmq buffer alive; nothing is copied.
                parts = [frame.buffer for frame in frames]
                decode = self._decoders.get(kind_of(parts[0]))
                if decode is None:
                    raise WireError(f"{kind_of(parts[0]).name} does not belong on this channel")
                return decode(parts)
            except WireError as error:
                self._complaints.add(_peer_address(frames[0]), str(error))
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                break
        return None

    def close(self) -> None:
        """Close the socket and free its address."""
        self.socket.close()
        if self._bound is not None:
            self._bound.release()


def _peer_address(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except (zmq.ZMQError, KeyError):
        return "a local peer"


class _Complaints:
    """Counts refusals and logs those of each peer at a limited rate."""

    def __init__(self) -> None:
        self.total = 0
        self._suppressed: Counter[str] = Counter()
        self._next_log: dict[str, float] = {}

    def add(self, peer: str, reason: str) -> None:
        self.total += 1
        now = time.monotonic()
        if now < self._next_log.get(peer, 0.0):
            self._suppressed[peer] += 1
            return
        more = self._suppressed.pop(peer, 0)
        # A reason may quote the message: as a repr and cut short, it cannot forge or flood the log.
        log.warning("refused a message from %s: %.300r%s", peer, reason, f" (and {more} more before)" if more else "")
        if len(self._next_log) > 1000:
            self._next_log.clear()
        self._next_log[peer] = now + COMPLAINT_INTERVAL_S


class Outbox:
    """One connected PUSH. Messages wait only for a peer that is there (IMMEDIATE=1).

    patient: the peer may take nothing for long and be well. TCP_MAXRT ends a connection whose window stays closed,
        and what was on the way with it; without, only one whose host is gone is ended, in the kernel's own time.
    """

    def __init__(self, address: str, *, hwm: int, linger_s: float = 0.0, patient: bool = False) -> None:
        self.socket = _socket(zmq.PUSH, hwm=hwm, max_bytes=-1)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        if patient:
            self.socket.setsockopt(zmq.TCP_MAXRT, 0)
        self.socket.connect(address)
        self._linger_ms = round(1000 * linger_s)

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
        self.socket.close(linger=self._linger_ms)


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

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        self._socket = _socket(zmq.XPUB, hwm=8, max_bytes=4096)
        self._bound = _Bound(self._socket, address, insecure)

    def welcome(self, part: Buffer) -> None:
        """Send to all, and from now on to every new subscriber."""
        self._socket.setsockopt(zmq.XPUB_WELCOME_MSG, bytes(part))
        self.send([part])

    def send(self, parts: Parts) -> None:
        """Send to all; dropped for those who lag."""
        self._socket.send_multipart(parts, copy=False)

    def serve(self) -> None:
        """Read the subscriptions that have come in."""
        while self._socket.poll(0):
            self._socket.recv_multipart()

    def close(self) -> None:
        """Close the socket and free its address."""
        self._socket.close()
        self._bound.release()
