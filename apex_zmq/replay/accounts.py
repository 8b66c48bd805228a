"""Counts of the segments that actors sent to a shard: received, lost, duplicate, refused."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

WINDOW = 1024  # sequence numbers that may arrive out of order, per actor process
MAX_JUMP = 1 << 16  # segments; a sequence number further ahead is invalid, not a gap
MAX_ACCOUNTS = 4096  # actor processes
MAX_REFUSED = 16  # actors with a count of refused segments


@dataclass(slots=True)
class Counts:
    """Segments by outcome.

    received: stored, each counted once.
    lost: missing in the numbering so far.
    duplicate: arrived before, or older than the window.
    refused: invalid.
    """

    received: int = 0
    lost: int = 0
    duplicate: int = 0
    refused: int = 0

    def add(self, *, received: int = 0, lost: int = 0, duplicate: int = 0, refused: int = 0) -> None:
        """Add to the counts; a negative value corrects an earlier one."""
        self.received += received
        self.lost += lost
        self.duplicate += duplicate
        self.refused += refused


@dataclass(slots=True)
class _Account:
    """Sequence numbers of one actor process.

    first, next: the numbers first .. next - 1 are counted, as received or as lost.
    seen: bit i is set if number next - 1 - i has arrived, i < WINDOW.
    """

    first: int
    next: int
    seen: int = 0
    counts: Counts = field(default_factory=Counts)

    def advance(self, sequence: int) -> None:
        self.seen = self.seen << (sequence - self.next) & ((1 << WINDOW) - 1)
        self.next = sequence


class Accounts:
    """One account per actor process, based on the sequence numbers of its segments.

    The numbers of a gap count as lost when a later number arrives, until they arrive themselves: messages on two
    connections of one actor may be reordered. A sliding window records the numbers that have arrived, as the
    anti-replay window of RFC 4303, section 3.4.3; an older number counts as a duplicate. Numbers below the first one
    that arrived do not count as lost: they were sent to an earlier incarnation of the shard. Beyond the maximum number
    of accounts, the least recently used one is dropped; the totals keep its counts.

    totals: counts over all actor processes.
    """

    def __init__(self, max_accounts: int = MAX_ACCOUNTS) -> None:
        self.totals = Counts()
        self.refusals = Refusals()
        self._max_accounts = max_accounts
        self._accounts: OrderedDict[tuple[str, int], _Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def admit(self, actor: str, incarnation: int, sequence: int) -> bool:
        """Count an arrived segment; return whether it counts as received and must be stored."""
        account = self._find(actor, incarnation, sequence)
        if sequence - account.next > MAX_JUMP or account.first - sequence > MAX_JUMP:
            self._count(account, refused=1)
            self.refusals.add(actor, f"sequence {sequence} is more than {MAX_JUMP} away from the actor's others")
            return False
        if sequence >= account.next:
            self._count(account, received=1, lost=sequence - account.next)
            account.advance(sequence + 1)
            account.seen |= 1
            return True
        behind = account.next - 1 - sequence
        if behind >= WINDOW or account.seen >> behind & 1:
            self._count(account, duplicate=1)
            return False
        account.seen |= 1 << behind
        if sequence < account.first:
            self._count(account, received=1, lost=account.first - sequence - 1)
            account.first = sequence
        else:
            self._count(account, received=1, lost=-1)
        return True

    def refuse(self, actor: str, incarnation: int, reason: str) -> None:
        """Count a segment as refused instead of received, because it could not be stored after `admit`."""
        self._count(self._accounts[actor, incarnation], received=-1, refused=1)
        self.refusals.add(actor, reason)

    def finish(self, actor: str, incarnation: int, count: int) -> Counts | None:
        """Close the account of an actor process that has sent `count` segments.

        Returns:
            Their counts; None if no segment of this process has arrived.
        """
        account = self._accounts.get((actor, incarnation))
        if account is None:
            return None
        if 0 < count - account.next <= MAX_JUMP:
            self._count(account, lost=count - account.next)
            account.advance(count)
        return account.counts

    def _find(self, actor: str, incarnation: int, sequence: int) -> _Account:
        key = actor, incarnation
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account(sequence, sequence)
            if len(self._accounts) > self._max_accounts:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(key)
        return account

    def _count(self, account: _Account, **changes: int) -> None:
        account.counts.add(**changes)
        self.totals.add(**changes)


@dataclass(slots=True)
class Refused:
    """Segments of one actor that a shard has refused, and the reason of the last one."""

    segments: int
    reason: str


class Refusals:
    """Refused segments by actor name, over all processes of this name, in order of the latest refusal.

    Beyond `max_actors`, the actor with the oldest refusal is dropped.
    """

    def __init__(self, max_actors: int = MAX_REFUSED) -> None:
        self.by_actor: OrderedDict[str, Refused] = OrderedDict()
        self._max_actors = max_actors

    def add(self, actor: str, reason: str) -> None:
        """Count one more refused segment of an actor."""
        before = self.by_actor.pop(actor, None)
        self.by_actor[actor] = Refused(before.segments + 1 if before is not None else 1, reason)
        if len(self.by_actor) > self._max_actors:
            self.by_actor.popitem(last=False)
