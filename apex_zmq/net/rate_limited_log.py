"""Rate-limited log lines about peers."""

from __future__ import annotations

import logging
import time
from collections import Counter

log = logging.getLogger(__name__)

INTERVAL_S = 10.0  # minimum interval between two lines about one peer
MAX_PEERS = 1000  # maximum number of peers with a time of the next line


class RateLimitedLog:
    """Counts events and logs those of each peer at most once in `INTERVAL_S`.

    event: beginning of each line, before the peer.
    total: number of events. newest: reason of the newest event; empty before the first.
    """

    def __init__(self, event: str) -> None:
        self.total = 0
        self.newest = ""
        self._event = event
        self._suppressed: Counter[str] = Counter()
        self._next_log: dict[str, float] = {}

    def add(self, peer: str, reason: str) -> None:
        """Count an event of a peer, and log it unless one was logged within the interval."""
        self.total += 1
        self.newest = reason
        now = time.monotonic()
        if now < self._next_log.get(peer, 0.0):
            self._suppressed[peer] += 1
            return
        more = self._suppressed.pop(peer, 0)
        # A reason may quote the message: a truncated repr cannot forge or flood the log.
        log.warning("%s %s: %.300r%s", self._event, peer, reason, f" (and {more} more before)" if more else "")
        if len(self._next_log) > MAX_PEERS:
            self._next_log.clear()
            self._suppressed.clear()
        self._next_log[peer] = now + INTERVAL_S
