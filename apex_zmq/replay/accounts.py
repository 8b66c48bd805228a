"""What became of the segments that actors sent to a shard: received, lost, duplicate, refused."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

WINDOW = 1024  # sequence numbers that may arrive out of order, per actor process
MAX_JUMP = 1 << 16  # no connection loses so many segments at once: a number so far ahead is made up
MAX_ACCOUNTS = 4096
MAX_REFUSED = 16  # actors whose refusals are remembered


@dataclass(slots=True)
class Counts:
    """received: stored, each once. lost: never came. duplicate: came again. refused: contradict themselves."""

    received: int = 0
    lost: int = 0
    duplicate: int = 0
    refused: int = 0

    def add(self, *, received: int = 0, lost: int = 0, duplicate: int = 0, refused: int = 0) -> None:
        """Change the counts by so many."""
        self.received += received
        self.lost += lost
        self.duplicate += duplicate
        self.refused += refused


@dataclass(slots=True)
class _Account:
    """first .. next - 1: the sequence numbers judged so far; bit i of seen: next - 1 - i has come."""

    first: int
    next: int
    seen: int = 0
    counts: Counts = field(default_factory=Counts)

    def advance(self, sequence: int) -> None:
        self.seen = self.seen << (sequence - self.next) & ((1 << WINDOW) - 1)
        self.next = sequence


class Accounts:
    """One account per actor process, by the sequence numbers of its segments.

    A gap counts as lost from the moment it shows, and no more once it is filled: the connections of one actor may
    overtake each other. Numbers are remembered over a sliding window, as against replayed packets in RFC 4303,
    sec. 3.4.3; what is older counts as a duplicate. What came before the first number seen is another incarnation's.
    Of the accounts that were heard longest ago only the totals are kept.

    totals: over all actor processes.
    """

    def __init__(self, max_accounts: int = MAX_ACCOUNTS) -> None:
        self.totals = Counts()
        self.refusals = Refusals()
        self._max_accounts = max_accounts
        self._accounts: OrderedDict[tuple[str, int], _Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def take(self, actor: str, incarnation: int, sequence: int) -> bool:
        """Whether a segment that has come is to be stored; it then counts as received."""
        account = self._find(actor, incarnation, sequence)
        if sequence - account.next > MAX_JUMP or account.first - sequence > MAX_JUMP:
            self._count(account, refused=1)
            self.refusals.add(actor, f"sequence {sequence} is more than {MAX_JUMP} away from the others")
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
        """Count a segment that was just taken as refused: it could not be stored."""
        self._count(self._accounts[actor, incarnation], received=-1, refused=1)
        self.refusals.add(actor, reason)

    def goodbye(self, actor: str, incarnation: int, count: int) -> Counts | None:
        """The actor process ends, having sent `count` segments: what became of them; None: nothing of it ever came."""
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
    """Refused segments by the name of their actor, over all its processes, the latest last.

    Bounded: of more than `max_actors` those refused longest ago are forgotten.
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
