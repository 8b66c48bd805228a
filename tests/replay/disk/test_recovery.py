"""Recovery from an arena with damaged bytes: what verifies is recovered, and nothing else."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.replay import record
from apex_zmq.replay.disk.recovery import Recovery, recover
from apex_zmq.replay.store import Store
from apex_zmq.types import UInt8s

from ..test_store import make_shipment, make_store

ALL = 10**6  # a capacity that nothing reaches


@dataclass
class Written:
    """One record as it was written; oldest_key: of the store at that time."""

    first_key: int
    next_key: int
    start: int
    content: bytes  # without padding
    oldest_key: int

    def verifies(self, arena: UInt8s) -> bool:
        return arena[self.start : self.start + len(self.content)].tobytes() == self.content


def written_log(lengths: list[int], arena_bytes: int) -> tuple[Store, dict[int, Written]]:
    """A store after segments of these lengths, and every record that it ever wrote, by first key."""
    store, records = make_store(ALL, arena_bytes), dict[int, Written]()
    rng = np.random.default_rng(0)
    for length in lengths:
        key = store.append(make_shipment(rng, [length]))
        start = int(store._records[key % store.capacity])
        stored = store._arena[start : store._head]
        at = record.layout_of(stored)
        frame_bytes = int(stored[at.ends : at.crcs].view("<u4")[-1])
        content = stored[: at.frames + frame_bytes].tobytes()
        records[key] = Written(key, store.next_key, start, content, store.first_key)
    return store, records


def recovered(store: Store, arena: UInt8s, capacity: int = ALL) -> Recovery:
    return recover(arena, [(0, len(arena))], store._log_id, range(store.first_key, store.next_key), capacity)


logs = st.lists(st.integers(1, 12), min_size=1, max_size=25)


@given(logs, st.integers(2500, 9000), st.data())
@settings(max_examples=60)
def test_only_records_with_valid_checksums_are_recovered(
    lengths: list[int], arena_bytes: int, data: st.DataObject
) -> None:
    store, records = written_log(lengths, arena_bytes)
    arena = store._arena.copy()
    headers = st.sampled_from(sorted(each.start for each in records.values()))
    places = st.integers(0, len(arena) - 1) | st.builds(int.__add__, headers, st.integers(0, record.UNIT - 1))
    for place, flipped in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), max_size=6)):
        arena[place] ^= flipped
    whole = {key: each for key, each in records.items() if each.verifies(arena)}
    recovery = recovered(store, arena.copy())
    if not whole:
        assert recovery == Recovery([], 0, store.num_transitions)
        return
    newest = whole[max(whole)]
    stored = {key: each for key, each in records.items() if newest.oldest_key <= key <= newest.first_key}
    expected = {key for key in stored if key in whole}

    found = {span.first_key: span for span in recovery.spans if not span.tombstone}
    assert {*found} <= expected
    for key, span in found.items():
        assert (span.next_key, span.start) == (records[key].next_key, records[key].start)
    spans = recovery.spans
    assert spans[-1].next_key == newest.next_key
    assert all(before.next_key == after.first_key for before, after in itertools.pairwise(spans))
    ordered = sorted((span.start, span.stop) for span in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered)), "overlap"
    assert recovery.recovered == sum(span.next_key - span.first_key for span in found.values())
    assert recovery.recovered + recovery.dropped == store.next_key - newest.oldest_key

    beyond = sorted(expected - {*found})
    if beyond:  # only what lies behind a gap on both sides of the ring's end, where one tombstone may not fit
        assert beyond[-1] < spans[0].first_key
        gap = [each.start for key, each in stored.items() if beyond[-1] < key < spans[0].first_key]
        assert gap != sorted(gap) or records[beyond[-1]].start > spans[0].start


@given(logs, st.integers(2500, 9000), st.data())
@settings(max_examples=25)
def test_corrupted_record_is_replaced_by_a_tombstone(lengths: list[int], arena_bytes: int, data: st.DataObject) -> None:
    store, records = written_log(lengths, arena_bytes)
    arena = store._arena.copy()
    stored = [each for key, each in records.items() if key >= store.first_key]
    victim = data.draw(st.sampled_from(stored))
    arena[victim.start + data.draw(st.integers(0, len(victim.content) - 1))] ^= 1
    recovery = recovered(store, arena)
    spans = {(span.first_key, span.next_key): span.tombstone for span in recovery.spans}
    if victim is stored[0] and victim is not stored[-1]:
        assert spans == {(each.first_key, each.next_key): False for each in stored[1:]}
    elif victim is not stored[-1]:
        assert spans == {(each.first_key, each.next_key): each is victim for each in stored}
    if victim is not stored[-1]:
        assert recovery.dropped == victim.next_key - victim.first_key


def test_header_after_the_newest_valid_record_is_wiped() -> None:
    """Its keys are given out again, so it must not be found by the next recovery."""
    store, records = written_log([5, 5, 5], 1 << 14)
    newest = records[max(records)]
    arena = store._arena.copy()
    arena[newest.start + len(newest.content) - 1] ^= 1
    first = recovered(store, arena)
    assert (first.recovered, first.dropped) == (10, 5)
    assert not arena[newest.start : newest.start + record.UNIT].any()
    second = recover(arena, [(0, len(arena))], store._log_id, range(10), ALL)
    assert (second.recovered, second.dropped) == (10, 0)


@pytest.mark.parametrize("capacity", [1, 5, 12, 15, 20])
def test_the_newest_records_that_fit_the_capacity_are_kept(capacity: int) -> None:
    store, _ = written_log([5, 5, 5], 1 << 14)
    kept = recovered(store, store._arena.copy(), capacity)
    assert kept.recovered == min(15, capacity // 5 * 5)
    assert [span.next_key for span in kept.spans] == [5, 10, 15][3 - len(kept.spans) :]
    assert kept.dropped == 0


def test_evicted_records_in_the_arena_are_not_recovered() -> None:
    store, rng = make_store(10, 1 << 14), np.random.default_rng(0)
    for _ in range(4):
        store.append(make_shipment(rng, [5]))
    assert record.at(store._arena, 0) is not None
    recovery = recovered(store, store._arena.copy())
    assert [span.first_key for span in recovery.spans] == [10, 15]
    assert (recovery.recovered, recovery.dropped) == (10, 0)


def test_records_of_other_logs_or_unwritten_ranges_are_ignored() -> None:
    store, records = written_log([5, 5], 1 << 14)
    arena = store._arena.copy()
    stored = range(10)
    assert recover(arena, [(0, len(arena))], store._log_id ^ 1, stored, ALL) == Recovery([], 0, 10)
    second = records[5].start
    assert recover(arena, [], store._log_id, stored, ALL) == Recovery([], 0, 10)
    assert [span.first_key for span in recover(arena, [(second, len(arena))], store._log_id, stored, ALL).spans] == [5]


@given(st.binary(min_size=1, max_size=900), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_random_bytes_hold_no_records(content: bytes, seed: int) -> None:
    """Headers with the right magic and log too, whatever sizes they claim."""
    store, _ = written_log([1], 4096)
    arena = np.random.default_rng(seed).integers(0, 256, 4096).astype(np.uint8)
    arena[: len(content)] = np.frombuffer(content, np.uint8)
    for start in range(0, len(arena), 2 * record.UNIT):
        arena[start : start + 8] = store._arena[:8]
    assert recover(arena, [(0, len(arena))], store._log_id, range(0), ALL) == Recovery([], 0, 0)
