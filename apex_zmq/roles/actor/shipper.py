"""An actor's side of the experience links: sends segments to any replay shard that can take them."""

from __future__ import annotations

import time
from collections import deque

from apex_zmq.net.sockets import Links, wait
from apex_zmq.types import Segment, Shipment
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.experience import encode_segment
from apex_zmq.wire.messages import Bye

QUEUED_SEGMENTS = 64  # kept while no shard can take one, with actor.when_blocked=drop_oldest
BYE_TIMEOUT_S = 0.5


class Shipper:
    """Sends segments to any replay shard that can take one, in rotation.

    shards: number of shards. drop_oldest: while none is ready, keep the newest `QUEUED_SEGMENTS` instead of waiting.
    waited_s, sent, dropped: seconds waited, segments sent and segments dropped so far.
    """

    def __init__(
        self, links: Links, shards: int, signature: str, actor: str, incarnation: int, *, drop_oldest: bool
    ) -> None:
        self.waited_s = 0.0
        self.sent = self.dropped = 0
        self._outboxes = [links.connect("experience", shard) for shard in range(shards)]
        self._sequences = [0] * shards
        self._signature = signature
        self._actor, self._incarnation = actor, incarnation
        self._drop_oldest = drop_oldest
        self._queue: deque[Segment] = deque()
        self._next = 0

    def ship(self, segment: Segment) -> None:
        """Queue a segment, and send queued ones in order as far as shards can take them."""
        self._queue.append(segment)
        self._send_queued()
        if self._drop_oldest and len(self._queue) > QUEUED_SEGMENTS:
            self._queue.popleft()
            self.dropped += 1

    @property
    def queued(self) -> int:
        """Number of segments that wait for a shard."""
        return len(self._queue)

    @property
    def blocked(self) -> bool:
        """Whether the caller must `wait` before shipping another segment."""
        return bool(self._queue) and not self._drop_oldest

    def wait(self, timeout_s: float) -> None:
        """Wait until a shard can take a segment, then send queued ones."""
        started = time.monotonic()
        wait([], self._outboxes, timeout_s)
        self._send_queued()
        self.waited_s += time.monotonic() - started

    def send_bye(self) -> None:
        """Send queued segments, then BYE with the count of segments to each shard; give up after `BYE_TIMEOUT_S`."""
        until = time.monotonic() + BYE_TIMEOUT_S
        pending = list(range(len(self._outboxes)))
        while pending and (left_s := until - time.monotonic()) > 0:
            wait([], [self._outboxes[shard] for shard in pending], left_s)
            self._send_queued()
            if not self._queue:
                pending = [shard for shard in pending if not self._try_send_bye(shard)]

    def _try_send_bye(self, shard: int) -> bool:
        count = self._sequences[shard]
        return not count or self._outboxes[shard].send(encode(Kind.BYE, Bye(self._actor, self._incarnation, count)))

    def _send_queued(self) -> None:
        while self._queue and self._try_ship(self._queue[0]):
            self._queue.popleft()

    def _try_ship(self, segment: Segment) -> bool:
        """Send to the next shard that can take the segment now; return False if none can."""
        count = len(self._outboxes)
        for shard in ((self._next + offset) % count for offset in range(count)):
            outbox = self._outboxes[shard]
            shipment = Shipment(self._actor, self._incarnation, self._sequences[shard], segment)
            if outbox.ready and outbox.send(encode_segment(shipment, self._signature)):
                self._sequences[shard] += 1
                self.sent += 1
                self._next = (shard + 1) % count
                return True
        return False

    def close(self) -> None:
        """Close all connections."""
        for outbox in self._outboxes:
            outbox.close()
