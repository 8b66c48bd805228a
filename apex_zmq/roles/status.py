"""Every role reports its state from a thread of its own, so that a stuck main loop shows."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence

import psutil

from apex_zmq.guard import counts
from apex_zmq.keys import ClientKeys
from apex_zmq.transport import Outbox
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Episode, Role, Status, encode

log = logging.getLogger(__name__)

MAX_PENDING_EPISODES = 4096


def rss_bytes() -> float:
    """Resident memory of this process."""
    return float(psutil.Process().memory_info().rss)


class StatusReporter(threading.Thread):
    """Sends the role's numbers to the learner at an interval.

    The main loop writes into `metrics` and calls `progress` and `episode`;
    while the learner is away, the newest episodes wait.
    """

    def __init__(
        self,
        role: Role,
        name: str,
        boot: int,
        address: str,
        interval_s: float,
        keys: ClientKeys | None = None,
    ) -> None:
        super().__init__(name="status", daemon=True)
        self.metrics: dict[str, float] = {}
        self._role: Role = role
        self._name = name
        self._boot = boot
        self._address = address
        self._interval_s = interval_s
        self._keys = keys
        self._episodes: list[Episode] = []
        self._lock = threading.Lock()
        self._start_time = self._progress_time = time.time()
        self._closing = threading.Event()

    def progress(self) -> None:
        """The main loop got something done."""
        self._progress_time = time.time()

    def episode(self, episode: Episode) -> None:
        """An episode has ended."""
        with self._lock:
            self._episodes.append(episode)
            del self._episodes[:-MAX_PENDING_EPISODES]

    def run(self) -> None:
        """Report until closed, and once more then."""
        outbox = Outbox(self._address, hwm=16, linger_s=1.0, keys=self._keys)
        while not self._closing.wait(self._interval_s):
            self._send(outbox)
        self._send(outbox)
        outbox.close()

    def _send(self, outbox: Outbox) -> None:
        with self._lock:
            episodes: Sequence[Episode] = tuple(self._episodes)
        status = Status(
            role=self._role,
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            boot=self._boot,
            start_time=self._start_time,
            time=time.time(),
            progress_time=self._progress_time,
            metrics=self.metrics | {"rss_bytes": rss_bytes(), **counts},
            episodes=tuple(episodes),
        )
        if outbox.send(encode(Kind.STATUS, status)):
            with self._lock:
                del self._episodes[: len(episodes)]

    def close(self) -> None:
        """Send the last numbers and end the thread."""
        self._closing.set()
        self.join()
