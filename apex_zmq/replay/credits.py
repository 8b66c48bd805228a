"""Credits: a limit on the batches in flight from a shard to each rank of a learner."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Credits:
    """Batches in flight to one rank of the learner.

    A batch is in flight from `deal` until a priority message acknowledges its number or a later one, or until the
    timeout has passed.

    limit: maximum number of batches in flight.
    timeout_s: seconds after which a batch counts as lost.
    next_number: number of the next batch.
    lost: batches that were not acknowledged in time.
    """

    limit: int
    timeout_s: float
    next_number: int = 0
    lost: int = 0
    _in_flight: deque[tuple[int, float]] = field(default_factory=deque)

    def available(self, now: float) -> bool:
        """Whether one more batch may be dealt; batches older than the timeout are counted as lost first."""
        while self._in_flight and now - self._in_flight[0][1] > self.timeout_s:
            self._in_flight.popleft()
            self.lost += 1
        return self.in_flight < self.limit

    @property
    def in_flight(self) -> int:
        """Batches dealt, and neither acknowledged nor lost."""
        return len(self._in_flight)

    def deal(self, now: float) -> int:
        """Spend a credit; return the number of the batch."""
        number = self.next_number
        self._in_flight.append((number, now))
        self.next_number += 1
        return number

    def acknowledge(self, number: int) -> None:
        """Return the credits of all batches up to this number."""
        while self._in_flight and self._in_flight[0][0] <= number:
            self._in_flight.popleft()


@dataclass
class Dealing:
    """The learner that receives batches.

    last_hello: time of the last HELLO from any of its ranks, in monotonic seconds.
    credits: credits by rank, of the ranks that have sent HELLO.
    """

    learner_incarnation: int
    last_hello: float
    credits: dict[int, Credits] = field(default_factory=dict)
