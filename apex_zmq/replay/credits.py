"""Batches in flight to the ranks of a learner."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Credits:
    """Batches in flight to one rank of the learner: what may still be dealt, and what got lost.

    A batch is in flight from dealing until a priority message acknowledges its
    number or a later one, or until it is older than the timeout.
    """

    limit: int
    timeout_s: float
    next_number: int = 0
    lost: int = 0
    _in_flight: deque[tuple[int, float]] = field(default_factory=deque)

    def available(self, now: float) -> bool:
        """Whether one more batch may be dealt; returns credits older than the timeout."""
        while self._in_flight and now - self._in_flight[0][1] > self.timeout_s:
            self._in_flight.popleft()
            self.lost += 1
        return self.in_flight < self.limit

    @property
    def in_flight(self) -> int:
        """Batches on their way, or being learned from."""
        return len(self._in_flight)

    def deal(self, now: float) -> int:
        """Spend a credit; the number of the batch."""
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
    """The learner that batches are dealt to.

    heard: when any of its ranks last greeted (monotonic seconds).
    credits: of the ranks that have greeted.
    """

    learner_incarnation: int
    heard: float
    credits: dict[int, Credits] = field(default_factory=dict)
