"""Accounts against what a plain set remembers."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.replay.accounts import MAX_JUMP, WINDOW, Accounts, Counts, Refusals, Refused

# What happens to each segment on its way: how often it comes, and how many later ones overtake it.
journeys = st.lists(st.tuples(st.sampled_from([0, 1, 1, 1, 2, 3]), st.integers(0, 20)), min_size=1, max_size=80)


@settings(max_examples=200)
@given(journeys, st.integers(0, 1000), st.booleans())
def test_segments_are_counted_in_any_order_of_arrival(
    journey: list[tuple[int, int]], start: int, says_bye: bool
) -> None:
    """start: of a replay that began when the actor had sent so many to its predecessor."""
    arrivals = sorted(
        (sequence + delay * repeat, sequence)
        for sequence, (times, delay) in enumerate(journey, start=start)
        for repeat in range(1, times + 1)
    )
    accounts, stored = Accounts(), set[int]()
    for _, sequence in arrivals:
        assert accounts.admit("actor", 7, sequence) == (sequence not in stored)
        stored.add(sequence)
    sent = start + len(journey)
    if says_bye:
        counts = accounts.finish("actor", 7, sent)
        assert (counts is None) == (not stored)
    end = sent if says_bye else max(stored, default=0) + 1
    span = range(min(stored), end) if stored else range(0)
    totals = accounts.totals
    assert totals.received == len(stored)
    assert totals.lost == len(set(span) - stored)
    assert totals.duplicate == len(arrivals) - len(stored)
    assert totals.refused == 0


def test_a_bye_that_overtakes_segments_is_corrected() -> None:
    accounts = Accounts()
    assert accounts.finish("actor", 1, 9) is None
    assert accounts.admit("actor", 1, 0)
    assert accounts.finish("actor", 1, 3) == Counts(received=1, lost=2)
    assert accounts.admit("actor", 1, 2)
    assert not accounts.admit("actor", 1, 2)
    assert accounts.finish("actor", 1, 3) == Counts(received=2, lost=1, duplicate=1)
    assert accounts.finish("actor", 1, 0) == accounts.totals == Counts(received=2, lost=1, duplicate=1)


def test_invalid_sequences_change_only_the_refused_count() -> None:
    accounts = Accounts()
    for sequence in range(2 * WINDOW):
        assert accounts.admit("actor", 1, sequence)
    assert not accounts.admit("actor", 1, 2**62)
    assert not accounts.admit("actor", 1, 2 * WINDOW + MAX_JUMP + 1)
    assert accounts.finish("actor", 1, 2**62) == Counts(received=2 * WINDOW, refused=2)
    assert not accounts.admit("actor", 1, 0)  # too old to tell; every number this far back has come
    assert accounts.admit("actor", 1, 2 * WINDOW)
    assert accounts.totals == Counts(received=2 * WINDOW + 1, duplicate=1, refused=2)


def test_sequence_far_behind_allocates_no_memory() -> None:
    accounts = Accounts()
    assert accounts.admit("actor", 1, 0)
    for count in range(MAX_JUMP, 2000 * MAX_JUMP, MAX_JUMP):
        accounts.finish("actor", 1, count)
    tracemalloc.start()
    assert not accounts.admit("actor", 1, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000
    assert accounts.totals.duplicate == 1


def test_unstorable_segment_counts_as_refused_not_received() -> None:
    accounts = Accounts()
    assert accounts.admit("actor", 1, 0)
    accounts.refuse("actor", 1, "another frame")
    assert not accounts.admit("actor", 1, 0)
    assert accounts.totals == Counts(duplicate=1, refused=1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=60))
def test_the_number_of_accounts_is_bounded_and_totals_stay(arrivals: list[tuple[int, int]]) -> None:
    accounts = Accounts(max_accounts=3)
    taken = 0
    for incarnation, sequence in arrivals:
        taken += accounts.admit("actor", incarnation, sequence)
        assert len(accounts) <= 3
    assert accounts.totals.received == taken
    assert taken + accounts.totals.duplicate == len(arrivals)


def test_refusals_are_kept_of_the_latest_actors() -> None:
    refusals = Refusals(max_actors=2)
    for actor, reason in (("a", "one"), ("b", "two"), ("a", "three"), ("c", "four")):
        refusals.add(actor, reason)
    assert [(actor, each.segments, each.reason) for actor, each in refusals.by_actor.items()] == [
        ("a", 2, "three"),
        ("c", 1, "four"),
    ]


def test_a_refused_segment_has_a_reason() -> None:
    accounts = Accounts()
    assert accounts.admit("actor", 1, 5)
    assert not accounts.admit("actor", 1, 5 + 2 * MAX_JUMP)
    assert accounts.admit("actor", 1, 6)
    accounts.refuse("actor", 1, "another frame")
    assert accounts.refusals.by_actor["actor"] == Refused(2, "another frame")
    assert accounts.totals.refused == 2
