"""Access to sockets: CURVE keys, the ZAP handler that checks them, and monitors that report failed handshakes.

libzmq asks the ZAP handler at each handshake whether to accept a client's key (rfc.zeromq.org/spec/27). It does not
ask again while the connection lasts; so when a key is revoked, receivers check the User-Id of each message, and
publishers close their socket and bind again. Peers that fail before they present a key are detected by socket
monitors. One thread per process handles both.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket as sockets
import threading
import time
from collections import Counter
from pathlib import Path

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from apex_zmq.net.keys import ClientKeys, ServerKeys, read_allowed
from apex_zmq.net.rate_limited_log import RateLimitedLog

log = logging.getLogger(__name__)

REFRESH_S = 0.25  # interval between two checks of an allow-list for changes
RETRY_S = 2.0  # delay before a new socket replaces a refused one, which libzmq does not reconnect
HANDSHAKE_MS = 5_000  # timeout after which libzmq restarts a handshake; its default is 30 s
POLL_MS = 100
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
UNKNOWN_ADDRESS = "an unknown address"
LOCAL_PEER = "a local peer"
# Reasons of failed handshakes.
NOT_LISTED = "our key is not on the server's allow-list"
NO_CURVE = "the server does not speak CURVE"
HUNG_UP = "the server's key does not match keys/servers; copy its new public key there"
NOT_ANSWERING = "no server answers"
SILENT = "the server accepts connections but does not respond: it hangs, or does not speak ZeroMQ"
KEYS_REQUIRED = "the server requires keys, or does not speak ZeroMQ"
WRONG_SOCKET_TYPE = "the server disconnected: the address is of another link, or it does not speak ZeroMQ"
REASONS: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: NOT_LISTED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: NO_CURVE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: HUNG_UP,
}
# Since the start of this process: connections refused by its servers, and handshakes of its clients that failed.
counts: Counter[str] = Counter(refused_peers=0, failed_handshakes=0)


class Authenticator:
    """The allow-list of one bound socket (one ZAP domain), reloaded when its file changes.

    revoked: whether a key has been removed from the list.
    """

    events = (
        zmq.EVENT_ACCEPTED
        | zmq.EVENT_DISCONNECTED
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    )
    _numbers = itertools.count()

    def __init__(self, keys: ServerKeys) -> None:
        # A number, because one process may bind a channel twice.
        self.domain = f"{keys.channel}.{next(self._numbers)}"
        self.revoked = False
        self._path = keys.allowed
        self._refusals = RateLimitedLog("refused a connection from")
        self._names: dict[str, str] = {}
        self._version = self._seen = _version_of(self._path)
        self._addresses: dict[int, str] = {}
        self._failed = False
        self._read()

    def allows(self, public_key: str) -> bool:
        """Return whether a public key, in Z85, is on the list."""
        return public_key in self._names

    def authenticate(self, address: str, public_key: str) -> bool:
        """Return whether a client's key is accepted; count and log refusals."""
        if self.allows(public_key):
            return True
        self._refuse(address, f"its key {public_key} is not in {self._path}")
        return False

    def refresh(self) -> None:
        """Reload the list if it has changed, but not since the last call: it may still be being written."""
        seen, self._seen = self._seen, _version_of(self._path)
        if self._seen == seen != self._version:
            self._version = seen
            self._read()

    def _read(self) -> None:
        """Read the list; no key is allowed if it cannot be read."""
        try:
            names, broken = read_allowed(self._path)
        except OSError as error:
            log.error("cannot read %s, so all clients are refused: %s", self._path, error.strerror)
            names, broken = {}, []
        if self._version is None:
            log.error("%s is missing, so all clients are refused", self._path)
        for number in broken:
            log.error("%s, line %d is ignored: write a name and a public key", self._path, number)
        removed = self._names.keys() - names.keys()
        if removed:
            log.info("revoked in %s: %s", self._path, ", ".join(sorted({self._names[key] for key in removed})))
        self._names = names
        self.revoked |= bool(removed)

    def handle_event(self, event: int, value: int) -> None:
        """Count peers that fail the handshake before presenting a key; value: as in zmq_socket_monitor(3).

        libzmq's I/O thread reports the end of the connection directly after its failure.
        """
        if event == zmq.EVENT_ACCEPTED:
            self._addresses[value] = _peer_of(value)
        elif event == zmq.EVENT_DISCONNECTED:
            address = self._addresses.pop(value, UNKNOWN_ADDRESS)
            if self._failed:
                self._failed = False
                self._refuse(address, "no CURVE handshake with the key of this server")
        else:
            self._failed = True

    def _refuse(self, address: str, reason: str) -> None:
        counts["refused_peers"] += 1
        self._refusals.add(address, reason)


def _version_of(path: Path) -> tuple[int, ...] | None:
    """Values that change with a file's content; None: the file is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _peer_of(descriptor: int) -> str:
    """Return the peer's address of a descriptor of libzmq, which may have closed it already.

    Only the duplicate is closed, exactly once: another thread may reuse its number as soon as it is closed.
    """
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return UNKNOWN_ADDRESS
    try:
        connection = sockets.socket(fileno=duplicate)
    except OSError:  # not a socket any more, so no socket object owns the duplicate
        os.close(duplicate)
        return UNKNOWN_ADDRESS
    with connection:
        try:
            peer = connection.getpeername()
        except OSError:
            return UNKNOWN_ADDRESS
    return str(peer[0]) if isinstance(peer, tuple) else LOCAL_PEER


class ConnectionMonitor:
    """The connection of one connecting socket, which libzmq does not restore after a refusal.

    address: of the server. with_keys: whether the socket uses CURVE. failures: log of failed handshakes.
    """

    events = (
        zmq.EVENT_CONNECTED
        | zmq.EVENT_CONNECT_DELAYED
        | zmq.EVENT_CONNECT_RETRIED
        | zmq.EVENT_DISCONNECTED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    )

    def __init__(self, address: str, with_keys: bool, failures: RateLimitedLog) -> None:
        self._address, self._with_keys = address, with_keys
        self._failures = failures
        self._lost_at: float | None = None
        self._explained = False

    @property
    def given_up(self) -> bool:
        """Whether libzmq has given up the connection, so that a new socket must be connected."""
        lost_at = self._lost_at
        return lost_at is not None and time.monotonic() - lost_at > RETRY_S

    def handle_event(self, event: int, value: int) -> None:
        """Track the connection; libzmq reports a retry directly after the end of a connection that it will restore."""
        if event in REASONS:
            self._explained = True
            self._fail(_reason(event, self._with_keys))
        elif event == zmq.EVENT_DISCONNECTED:
            self._lost_at = time.monotonic()
        else:
            self._lost_at = None

    def report_loss(self) -> None:
        """Count and log a given-up connection, unless its failed handshake has been logged."""
        if not self._explained:
            self._fail(WRONG_SOCKET_TYPE)

    def _fail(self, reason: str) -> None:
        counts["failed_handshakes"] += 1
        self._failures.add(self._address, reason)


def _reason(event: int, with_keys: bool) -> str:
    return REASONS[event] if with_keys else KEYS_REQUIRED


Monitored = Authenticator | ConnectionMonitor


class _ZapHandler(threading.Thread):
    """Answers ZAP requests and reads socket monitors while any socket is watched. `_lock` guards its state."""

    def __init__(self) -> None:
        super().__init__(name="zap-handler", daemon=True)
        self.watched: dict[zmq.Socket[bytes], Monitored] = {}
        self._zap: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP_ENDPOINT)

    def run(self) -> None:
        next_refresh = 0.0
        while watched := self._snapshot():
            poller = zmq.Poller()
            for channel in (self._zap, *watched):
                poller.register(channel, zmq.POLLIN)
            for channel, _ in poller.poll(POLL_MS):
                if channel is self._zap:
                    self._answer()
                else:
                    self._read_events(channel, watched[channel])
            now = time.monotonic()
            if now >= next_refresh:
                next_refresh = now + REFRESH_S
                for each in watched.values():
                    if isinstance(each, Authenticator):
                        each.refresh()

    def _snapshot(self) -> dict[zmq.Socket[bytes], Monitored]:
        """Return a copy of `watched`; if it is empty, release the ZAP endpoint, so that this thread ends."""
        global _handler
        with _lock:
            if not self.watched:
                self._zap.unbind(ZAP_ENDPOINT)  # immediately; closing frees the endpoint later
                self._zap.close()
                _handler = None
            return dict(self.watched)

    def _answer(self) -> None:
        with _lock:  # includes sockets added while this thread was polling
            watched = list(self.watched.values())
        version, request, domain, address, _, mechanism, *credentials = self._zap.recv_multipart()
        found = [each for each in watched if isinstance(each, Authenticator) and each.domain.encode() == domain]
        user_id = b""
        if found and mechanism == b"CURVE":
            key = z85.encode(credentials[0]).decode()
            if found[0].authenticate(address.decode() or LOCAL_PEER, key):
                user_id = key.encode()
        # A status of 300 would leave the peer hanging until its handshake times out; 400 is reported to it.
        status, text = (b"200", b"OK") if user_id else (b"400", b"key not allowed")
        self._zap.send_multipart([version, request, status, text, user_id, b""])

    def _read_events(self, monitor: zmq.Socket[bytes], watched: Monitored) -> None:
        while monitor.poll(0):
            message = recv_monitor_message(monitor)
            if message["event"] == zmq.EVENT_MONITOR_STOPPED:
                with _lock:
                    del self.watched[monitor]
                monitor.close()
                return
            watched.handle_event(message["event"], message["value"])


_lock = threading.Lock()
_handler: _ZapHandler | None = None
_monitors = itertools.count()


def _watch(socket: zmq.Socket[bytes], watched: Monitored) -> None:
    global _handler
    address = f"inproc://apex-monitor-{next(_monitors)}"
    monitor = socket.get_monitor_socket(watched.events | zmq.EVENT_MONITOR_STOPPED, address)
    with _lock:
        idle = _handler is None
        if _handler is None:
            _handler = _ZapHandler()
        _handler.watched[monitor] = watched
        if idle:
            _handler.start()


def unwatch(socket: zmq.Socket[bytes]) -> None:
    """Stop watching a socket before it is closed; no effect on a closed socket."""
    if not socket.closed:
        socket.disable_monitor()


def require_keys(socket: zmq.Socket[bytes], keys: ServerKeys) -> Authenticator:
    """Make a socket, before it is bound, a CURVE server that accepts the keys on its allow-list."""
    authenticator = Authenticator(keys)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, authenticator.domain.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a ZAP handler all clients are refused
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    _watch(socket, authenticator)
    return authenticator


def monitor_connection(
    socket: zmq.Socket[bytes], keys: ClientKeys | None, address: str, failures: RateLimitedLog
) -> ConnectionMonitor:
    """Watch a socket before it connects, and set its keys, if any, including its server's."""
    monitor = ConnectionMonitor(address, keys is not None, failures)
    if keys is not None:
        _set_keys(socket, keys)
    _watch(socket, monitor)
    return monitor


def _set_keys(socket: zmq.Socket[bytes], keys: ClientKeys) -> None:
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)


def probe(address: str, keys: ClientKeys | None, *, publishes: bool, timeout_s: float) -> str | None:
    """Make a handshake with the server at an address, then disconnect without sending a message.

    publishes: whether the server publishes (SUB connects to it); else it receives (PUSH connects to it).

    Returns:
        None if the server accepts the connection, else the reason; `NOT_ANSWERING` if no server is there.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB if publishes else zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 0)
    if keys is not None:
        _set_keys(socket, keys)
    monitor = socket.get_monitor_socket(ConnectionMonitor.events | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    deadline = time.monotonic() + timeout_s
    outcome = NOT_ANSWERING
    try:
        socket.connect(address)
        while monitor.poll(max(0, round(1000 * (deadline - time.monotonic())))):
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return None
            if event in REASONS:
                return _reason(event, keys is not None)
            if event == zmq.EVENT_CONNECTED:
                outcome = SILENT
            elif event == zmq.EVENT_DISCONNECTED:
                return WRONG_SOCKET_TYPE
            elif event != zmq.EVENT_CONNECT_DELAYED:
                break
    finally:
        socket.disable_monitor()
        monitor.close()
        socket.close()
    return outcome
