"""Rate-limited log lines about peers."""

from __future__ import annotations

import logging
import time
from collections import Counter

log = logging.getLogger(__name__)

COMPLAINT_INTERVAL_S = 10.0
MAX_PEERS = 1000  # whose complaints are remembered


class Complaints:
    """Counts complaints and logs those about each peer at a limited rate.

    what: how the line begins, up to the peer. newest: the reason of the last one; empty before the first.
    """

    def __init__(self, what: str) -> None:
        self.total = 0
        self.newest = ""
        self._what = what
        self._suppressed: Counter[str] = Counter()
        self._next_log: dict[str, float] = {}

    def add(self, peer: str, reason: str) -> None:
        """One more, about this peer."""
        self.total += 1
        self.newest = reason
        now = time.monotonic()
        if now < self._next_log.get(peer, 0.0):
            self._suppressed[peer] += 1
            return
        more = self._suppressed.pop(peer, 0)
        # A reason may quote the message: as a repr and cut short, it cannot forge or flood the log.
        log.warning("%s %s: %.300r%s", self._what, peer, reason, f" (and {more} more before)" if more else "")
        if len(self._next_log) > MAX_PEERS:
            self._next_log.clear()
            self._suppressed.clear()
        self._next_log[peer] = now + COMPLAINT_INTERVAL_S
