"""Connections: who is let in, who is turned away, by CURVE keys or without.

libzmq asks at each handshake whether to let a key in (ZAP, rfc.zeromq.org/spec/27); one thread per process answers.
It is not asked again while a connection lasts: receivers look at the User-Id of each message, publishers bind anew.
Who never comes so far as to show a key is heard of through the sockets' monitors, which the same thread reads.
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

from apex_zmq.net.complaints import Complaints
from apex_zmq.net.keys import ClientKeys, ServerKeys, read_allowed

log = logging.getLogger(__name__)

REFRESH_S = 0.25  # between two looks at the allow-lists
RETRY_S = 2.0  # libzmq gives up for good after a refusal; this much later the owner connects anew
HANDSHAKE_MS = 5_000  # one that libzmq leaves hanging is begun anew then; its own default is 30 s
POLL_MS = 100
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
GONE = "an address that was gone at once"
NOT_LISTED = "its allow-list does not name our key"
NO_CURVE = "it does not speak CURVE"
HUNG_UP = "it hung up; its key may be another than our list of servers says"
REASONS: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: NOT_LISTED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: NO_CURVE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: HUNG_UP,
}
NOBODY = "nobody answers"
MUTE = "it says nothing: it is frozen, or no ZeroMQ"
WANTS_KEYS = "it wants keys, or is no ZeroMQ"
WRONG_KIND = "it hung up, as another link of the run does, or no ZeroMQ"
# Of this process, since its start: connections turned away, and handshakes of its own that failed.
counts: Counter[str] = Counter(refused_peers=0, failed_handshakes=0)


class Guard:
    """The allow-list of one bound socket, read again when its file changes.

    struck: whether somebody who was let in has been struck off since.
    """

    events = (
        zmq.EVENT_ACCEPTED
        | zmq.EVENT_DISCONNECTED
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    )
    _numbers = itertools.count()

    def __init__(self, keys: ServerKeys) -> None:
        # A number, since one process may bind two of a kind.
        self.domain = f"{keys.channel}.{next(self._numbers)}"
        self.struck = False
        self._path = keys.allowed
        self._complaints = Complaints("refused a connection from")
        self._names: dict[str, str] = {}
        self._version = self._seen = _version_of(self._path)
        self._addresses: dict[int, str] = {}
        self._failed = False
        self._read()

    def allows(self, public_key: str) -> bool:
        """Whether the holder of a key, Z85, may come in, or stay."""
        return public_key in self._names

    def answer(self, address: str, public_key: str) -> bool:
        """Whether to let a key in; counts and logs whom it turns away."""
        if self.allows(public_key):
            return True
        self._turn_away(address, f"{self._path} does not name its key {public_key}")
        return False

    def refresh(self) -> None:
        """Read the list again once it has changed and has not since the last look: an editor may be writing it."""
        seen, self._seen = self._seen, _version_of(self._path)
        if self._seen == seen != self._version:
            self._version = seen
            self._read()

    def _read(self) -> None:
        """One that cannot be read lets nobody in."""
        try:
            names, broken = read_allowed(self._path)
        except OSError as error:
            log.error("cannot read %s, so nobody is let in: %s", self._path, error.strerror)
            names, broken = {}, []
        if self._version is None:
            log.error("%s is gone, so nobody is let in", self._path)
        for number in broken:
            log.error("%s, line %d is left out: write a name and a public key", self._path, number)
        gone = self._names.keys() - names.keys()
        if gone:
            log.info("struck off %s: %s", self._path, ", ".join(sorted({self._names[key] for key in gone})))
        self._names = names
        self.struck |= bool(gone)

    def hear(self, event: int, value: int) -> None:
        """Learn who fails in the handshake before its key is known; value: see zmq_socket_monitor(3).

        libzmq's I/O thread reports the failure, then the end of that connection, and nothing between.
        """
        if event == zmq.EVENT_ACCEPTED:
            self._addresses[value] = _peer_of(value)
        elif event == zmq.EVENT_DISCONNECTED:
            address = self._addresses.pop(value, GONE)
            if self._failed:
                self._failed = False
                self._turn_away(address, "no CURVE handshake with the key of this server")
        else:
            self._failed = True

    def _turn_away(self, address: str, reason: str) -> None:
        counts["refused_peers"] += 1
        self._complaints.add(address, reason)


def _version_of(path: Path) -> tuple[int, ...] | None:
    """What changes with a file; None: it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _peer_of(descriptor: int) -> str:
    """Return the address at the other end of a descriptor of libzmq, which may have closed it since.

    Only the duplicate made here is closed, and once: its number may belong to another thread as soon as it is closed.
    """
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return GONE
    try:
        connection = sockets.socket(fileno=duplicate)
    except OSError:  # the number is not a socket's any more, so no socket object owns the duplicate
        os.close(duplicate)
        return GONE
    with connection:
        try:
            peer = connection.getpeername()
        except OSError:
            return GONE
    return str(peer[0]) if isinstance(peer, tuple) else "a local peer"


class Line:
    """The connection of one connecting socket, which libzmq gives up for good when it is refused.

    with_keys: whether the socket shows any.
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

    def __init__(self, address: str, with_keys: bool, complaints: Complaints) -> None:
        self._address, self._with_keys = address, with_keys
        self._complaints = complaints
        self._lost_at: float | None = None
        self._explained = False

    @property
    def given_up(self) -> bool:
        """Whether it is time to connect anew."""
        lost_at = self._lost_at
        return lost_at is not None and time.monotonic() - lost_at > RETRY_S

    def hear(self, event: int, value: int) -> None:
        """Learn whether it stands; one that libzmq means to restore is tried again right after it ends."""
        if event in REASONS:
            self._explained = True
            self._complain(_reason(event, self._with_keys))
        elif event == zmq.EVENT_DISCONNECTED:
            self._lost_at = time.monotonic()
        else:
            self._lost_at = None

    def bury(self) -> None:
        """Count and log its end, where its handshake has told nothing."""
        if not self._explained:
            self._complain(WRONG_KIND)

    def _complain(self, reason: str) -> None:
        counts["failed_handshakes"] += 1
        self._complaints.add(self._address, reason)


def _reason(event: int, with_keys: bool) -> str:
    return REASONS[event] if with_keys else WANTS_KEYS


Watched = Guard | Line


class _Doorkeeper(threading.Thread):
    """Answers ZAP requests and reads monitors while there is a socket to watch. Its state is guarded by `_lock`."""

    def __init__(self) -> None:
        super().__init__(name="doorkeeper", daemon=True)
        self.watched: dict[zmq.Socket[bytes], Watched] = {}
        self._zap: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP_ENDPOINT)

    def run(self) -> None:
        next_refresh = 0.0
        while watched := self._watch():
            poller = zmq.Poller()
            for channel in (self._zap, *watched):
                poller.register(channel, zmq.POLLIN)
            for channel, _ in poller.poll(POLL_MS):
                if channel is self._zap:
                    self._answer()
                else:
                    self._hear(channel, watched[channel])
            now = time.monotonic()
            if now >= next_refresh:
                next_refresh = now + REFRESH_S
                for each in watched.values():
                    if isinstance(each, Guard):
                        each.refresh()

    def _watch(self) -> dict[zmq.Socket[bytes], Watched]:
        """What there is to watch; the end of this thread when that is nothing."""
        global _doorkeeper
        with _lock:
            if not self.watched:
                self._zap.unbind(ZAP_ENDPOINT)  # at once, where closing frees the endpoint later
                self._zap.close()
                _doorkeeper = None
            return dict(self.watched)

    def _answer(self) -> None:
        with _lock:  # who has been added while this thread was waiting is asked for at once
            watched = list(self.watched.values())
        version, request, domain, address, _, mechanism, *credentials = self._zap.recv_multipart()
        guards = [each for each in watched if isinstance(each, Guard) and each.domain.encode() == domain]
        user_id = b""
        if guards and mechanism == b"CURVE":
            key = z85.encode(credentials[0]).decode()
            if guards[0].answer(address.decode() or "a local peer", key):
                user_id = key.encode()
        # A status of 300 would leave the peer hanging until its handshake times out; 400 tells it.
        status, text = (b"200", b"OK") if user_id else (b"400", b"key not allowed")
        self._zap.send_multipart([version, request, status, text, user_id, b""])

    def _hear(self, monitor: zmq.Socket[bytes], watched: Watched) -> None:
        while monitor.poll(0):
            message = recv_monitor_message(monitor)
            if message["event"] == zmq.EVENT_MONITOR_STOPPED:
                with _lock:
                    del self.watched[monitor]
                monitor.close()
                return
            watched.hear(message["event"], message["value"])


_lock = threading.Lock()
_doorkeeper: _Doorkeeper | None = None
_monitors = itertools.count()


def _watch(socket: zmq.Socket[bytes], watched: Watched) -> None:
    global _doorkeeper
    address = f"inproc://apex-monitor-{next(_monitors)}"
    monitor = socket.get_monitor_socket(watched.events | zmq.EVENT_MONITOR_STOPPED, address)
    with _lock:
        idle = _doorkeeper is None
        if _doorkeeper is None:
            _doorkeeper = _Doorkeeper()
        _doorkeeper.watched[monitor] = watched
        if idle:
            _doorkeeper.start()


def release(socket: zmq.Socket[bytes]) -> None:
    """Watch a socket no longer; to be called before it is closed. One that is closed already is left alone."""
    if not socket.closed:
        socket.disable_monitor()


def admit_by(socket: zmq.Socket[bytes], keys: ServerKeys) -> Guard:
    """Make a socket, before it is bound, a CURVE server that lets in whom its allow-list names."""
    guard = Guard(keys)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, guard.domain.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an answer nobody comes in
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    _watch(socket, guard)
    return guard


def attend(socket: zmq.Socket[bytes], keys: ClientKeys | None, address: str, complaints: Complaints) -> Line:
    """Watch a socket, before it connects, and give it its own keys, if any, and that of the server it trusts."""
    line = Line(address, keys is not None, complaints)
    if keys is not None:
        _show(socket, keys)
    _watch(socket, line)
    return line


def _show(socket: zmq.Socket[bytes], keys: ClientKeys) -> None:
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)


def knock(address: str, keys: ClientKeys | None, *, publishes: bool, timeout_s: float) -> str | None:
    """Make one handshake with the server at an address, send nothing, and leave.

    publishes: whether one subscribes there; else one pushes.

    Returns:
        None when it lets us in, else why it does not; `NOBODY` when nothing answers there.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB if publishes else zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 0)
    if keys is not None:
        _show(socket, keys)
    monitor = socket.get_monitor_socket(Line.events | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    deadline = time.monotonic() + timeout_s
    outcome = NOBODY
    try:
        socket.connect(address)
        while monitor.poll(max(0, round(1000 * (deadline - time.monotonic())))):
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return None
            if event in REASONS:
                return _reason(event, keys is not None)
            if event == zmq.EVENT_CONNECTED:
                outcome = MUTE
            elif event == zmq.EVENT_DISCONNECTED:
                return WRONG_KIND
            elif event != zmq.EVENT_CONNECT_DELAYED:
                break
    finally:
        socket.disable_monitor()
        monitor.close()
        socket.close()
    return outcome
