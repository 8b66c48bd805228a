from __future__ import annotations

import itertools
import mmap
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scipy.stats import chisquare

from apex_zmq.replay import record
from apex_zmq.replay.disk import arena
from apex_zmq.replay.store import Store, UpdateCounts
from apex_zmq.types import FrameSpec, Segment, Shipment, UInt64s

from ..transitions import make_transitions, with_columns

STACK, N_STEP, ALPHA, EPSILON = 3, 2, 0.6, 0.01
WINDOW = STACK + N_STEP
SPEC = FrameSpec((84, 84), "uint8", STACK)


def make_store(capacity: int, arena_bytes: int = 1 << 20, seed: int | None = 0) -> Store:
    return Store(
        capacity=capacity, arena_bytes=arena_bytes, frame_window=WINDOW, alpha=ALPHA, epsilon=EPSILON, seed=seed
    )


def make_shipment(
    rng: np.random.Generator, episodes: list[int], max_frame_bytes: int = 40, sequence: int = 0
) -> Shipment:
    """Whole episodes of the given numbers of steps, frames of random bytes and sizes."""
    first: list[int] = []
    steps: list[int] = []
    num_frames = 0
    for length in episodes:
        first += range(num_frames, num_frames + length)
        steps += [min(N_STEP, length - t) for t in range(length)]
        num_frames += STACK + length
    frames = [rng.bytes(int(size)) for size in rng.integers(1, max_frame_bytes + 1, num_frames)]
    count = len(first)
    segment = Segment(
        frame=SPEC,
        frames=b"".join(frames),
        frame_sizes=np.array([len(frame) for frame in frames], np.uint32),
        frame_crcs=np.array([zlib.crc32(frame) for frame in frames], np.uint32),
        transitions=make_transitions(
            count,
            first=first,
            steps=steps,
            action=rng.integers(0, 2**16, count),
            reward=rng.normal(size=count),
            discount=rng.random(count),
            td_error=rng.random(count) * rng.integers(0, 2, count),
            window_crc=rng.integers(0, 2**32, count),
        ),
    )
    return Shipment(f"actor-{rng.integers(3)}", int(rng.integers(2**63)), sequence, segment)


def spoiled(segment: Segment, **columns: Any) -> Segment:
    return replace(segment, transitions=with_columns(segment.transitions, **columns))


def update(store: Store, keys: Iterable[int], td_error: Any, retired: Any = None) -> UpdateCounts:
    """retired: none by default."""
    flags = np.zeros(len(td_error), bool) if retired is None else np.array(retired, bool)
    return store.update(np.array([*keys], np.uint64), np.array(td_error, np.float32), flags)


def priority(td_error: float | np.float32) -> float:
    # Of an array: for these NumPy has vector instructions on some processors, and the last bit may differ.
    return float(((np.array([td_error], np.float64) + EPSILON) ** ALPHA)[0])


@dataclass
class Transition:
    """What a plain dictionary remembers of a transition."""

    actor: str
    row: np.void  # of TRANSITION
    window: list[bytes]
    priority: float


def transitions_of(shipment: Shipment) -> list[Transition]:
    segment = shipment.segment
    ends = itertools.accumulate(segment.frame_sizes.tolist(), initial=0)
    frames = [bytes(segment.frames)[start:stop] for start, stop in itertools.pairwise(ends)]
    return [
        Transition(
            shipment.actor,
            row,
            frames[int(row["first"]) : int(row["first"]) + STACK + int(row["steps"])],
            priority(row["td_error"]),
        )
        for row in segment.transitions
    ]


class StoreAgainstDict(RuleBasedStateMachine):
    """Random appends, samples and updates, late ones too, on the store and on a dictionary."""

    @initialize(capacity=st.integers(12, 80), arena_bytes=st.integers(1500, 6000), seed=st.integers(0, 2**32 - 1))
    def start(self, capacity: int, arena_bytes: int, seed: int) -> None:
        self.store = make_store(capacity, arena_bytes, seed)
        self.arena_bytes = arena_bytes
        self.rng = np.random.default_rng(seed)
        self.model: dict[int, Transition] = {}
        self.first_keys: list[int] = []
        self.dealt: list[UInt64s] = []

    @rule(episodes=st.lists(st.integers(1, 6), min_size=1, max_size=2), max_frame_bytes=st.sampled_from([1, 9, 60]))
    def append(self, episodes: list[int], max_frame_bytes: int) -> None:
        shipment = make_shipment(self.rng, episodes, max_frame_bytes, len(self.first_keys))
        try:
            key = self.store.append(shipment)
        except ValueError:
            assert len(shipment.segment.frames) + 600 > self.arena_bytes
            return
        assert key == (max(self.model, default=-1) + 1)
        self.first_keys.append(key)
        self.model.update(enumerate(transitions_of(shipment), start=key))
        for evicted in range(min(self.model), self.store.first_key):
            del self.model[evicted]

    @precondition(lambda self: self.store.mass > 0)
    @rule(batch_size=st.integers(1, 100))
    def sample(self, batch_size: int) -> None:
        sample = self.store.sample(batch_size)
        assert (sample.num_transitions, sample.mass, sample.frame) == (len(self.model), self.store.mass, SPEC)
        starts = itertools.accumulate(sample.frame_sizes.ravel().tolist(), initial=0)
        frames = [bytes(sample.frames[start:stop]) for start, stop in itertools.pairwise(starts)]
        assert len(sample.frames) == sample.frame_sizes.sum()
        assert sample.frame_sizes.shape == (batch_size, WINDOW)
        for row, key in enumerate(sample.keys.tolist()):
            expected = self.model[key]
            padding = [b""] * (WINDOW - len(expected.window))
            assert frames[row * WINDOW : (row + 1) * WINDOW] == expected.window + padding
            assert sample.transitions[row] == expected.row
            assert sample.priority[row] == expected.priority > 0
        self.dealt.append(sample.keys)

    @precondition(lambda self: self.dealt)
    @rule(age=st.integers(0, 10), retire=st.sampled_from([0.0, 0.0, 0.3, 1.0]), unknown=st.booleans())
    def update(self, age: int, retire: float, unknown: bool) -> None:
        keys = self.dealt[-1 - age % len(self.dealt)]
        if unknown:
            keys = np.append(keys, np.array([self.store.next_key, 2**64 - 1], np.uint64))
        td_error = self.rng.random(len(keys)).astype(np.float32)
        flags = self.rng.random(len(keys)) < retire
        counts = self.store.update(keys, td_error, flags)
        rows = list(zip(keys.tolist(), td_error, flags, strict=True))
        retired_before = {key for key, _, _ in rows if key in self.model and self.model[key].priority == 0}
        retired_rows = sum(key in retired_before or (key in self.model and flag) for key, _, flag in rows)
        retired = retired_before | {key for key, _, flag in rows if flag}
        for key, error, _ in rows:
            if key in self.model:
                self.model[key].priority = 0.0 if key in retired else priority(error)
        assert sum(counts) == len(keys)
        assert counts.unknown == 2 * unknown
        assert counts.evicted == sum(key < self.store.first_key for key, _, _ in rows)
        assert counts.retired == retired_rows

    @invariant()
    def agrees(self) -> None:
        store = self.store
        store.check_valid()
        assert store.num_transitions == len(self.model) <= store.capacity
        assert store.num_bytes <= self.arena_bytes
        assert list(self.model) == list(range(store.first_key, store.next_key))
        assert store.mass == pytest.approx(sum(row.priority for row in self.model.values()), rel=1e-12)
        assert store.first_key in {*self.first_keys, store.next_key}, "only whole segments are evicted"
        around = range(max(store.first_key - 2, 0), store.next_key + 2)
        assert store.actors_of(around) == sorted({row.actor for row in self.model.values()})
        for key in around:
            assert store.actors_of([key]) == ([self.model[key].actor] if key in self.model else [])


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)


def test_frequencies_match_the_priorities() -> None:
    rng = np.random.default_rng(4)
    store = make_store(100)
    store.append(make_shipment(rng, [30]))
    shipment = make_shipment(rng, [20, 30])
    store.append(shipment)
    update(store, range(0, 80, 3), rng.random(27) * 4)
    sample = store.sample(50_000)
    keys, rows, counts = np.unique(sample.keys, return_index=True, return_counts=True)
    assert len(keys) == 80
    assert sample.priority[rows].sum() == pytest.approx(store.mass)
    assert sample.priority[rows[79]] == priority(shipment.segment.transitions["td_error"][49])
    assert chisquare(counts, sample.priority[rows] / store.mass * 50_000).pvalue > 0.01


def test_evicts_no_more_than_the_capacity_needs() -> None:
    store = make_store(50)
    rng = np.random.default_rng(0)
    lengths = [int(length) for length in rng.integers(1, 20, 100)]
    for index, length in enumerate(lengths):
        store.append(make_shipment(rng, [length]))
        kept = next(i for i in range(index + 1) if sum(lengths[i : index + 1]) <= 50)
        assert store.first_key == sum(lengths[:kept])


def test_arena_holds_as_many_segments_as_fit_its_bytes() -> None:
    store = make_store(10_000, arena_bytes=64 * 100)
    shipment = make_shipment(np.random.default_rng(0), [8])
    store.append(shipment)
    fitting = 64 * 100 // store.num_bytes
    for _ in range(3 * fitting):
        store.append(shipment)
    assert store.num_transitions == 8 * fitting
    store.check_valid()


@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.sampled_from([60, 200, 10_000]))
@settings(max_examples=20, deadline=None)
def test_freed_memory_is_not_in_use(seed: int, pages: int, capacity: int) -> None:
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "PIECE", mmap.PAGESIZE)
        store = make_store(capacity, arena_bytes=pages * mmap.PAGESIZE)
        for _ in range(60):
            store.append(make_shipment(rng, [int(rng.integers(1, 12))], int(rng.integers(20, 400))))
            store.check_valid()


def test_only_memory_in_use_is_resident() -> None:
    rng = np.random.default_rng(0)
    shipments = [make_shipment(rng, [40], 2000) for _ in range(10)]
    store = make_store(capacity=4_000, arena_bytes=256 << 20)
    before = psutil.Process().memory_info().rss
    while store.next_key < 400_000:
        store.append(shipments[store.next_key // 40 % 10])
    assert store.num_transitions == 4_000
    in_use = store.num_bytes + 2 * arena.PIECE  # the pieces at its two ends
    assert in_use < 16 << 20
    assert store.num_bytes * 100 > 256 << 20  # the ring has turned
    assert psutil.Process().memory_info().rss - before < in_use + (8 << 20)  # for all else that a process does


def test_retired_stays_retired_until_evicted() -> None:
    store = make_store(10)
    rng = np.random.default_rng(0)
    store.append(make_shipment(rng, [10]))
    assert update(store, range(10), [0.0] * 10, [True] * 10).retired == 10
    assert update(store, range(10), [1.0] * 10) == (0, 10, 0, 0)
    assert store.mass == 0
    with pytest.raises(ValueError, match="all priorities are 0"):
        store.sample(1)
    store.append(make_shipment(rng, [10]))
    assert store.sample(64).keys.min() >= 10
    assert update(store, range(10), [1.0] * 10).evicted == 10


def test_a_repeated_key_takes_its_last_error_unless_retired() -> None:
    store = make_store(10)
    store.append(make_shipment(np.random.default_rng(0), [1]))
    update(store, [0, 0], [3.0, 5.0])
    assert store.mass == priority(5.0)
    update(store, [0, 0], [3.0, 5.0], [True, False])
    assert store.mass == 0


def test_stores_differ_in_incarnation_and_sample_by_seed() -> None:
    first, second = make_store(100, seed=7), make_store(100, seed=7)
    assert first.incarnation != second.incarnation
    shipment = make_shipment(np.random.default_rng(0), [40, 40])
    for store in (first, second):
        store.append(shipment)
    assert np.array_equal(first.sample(64).keys, second.sample(64).keys)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda s: replace(s, frame=FrameSpec((80, 80), "uint8", STACK)), "this store holds"),
        (lambda s: replace(s, frames=s.frames[1:]), "add up"),
        (lambda s: replace(s, frame_sizes=s.frame_sizes[1:]), "one CRC per frame"),
        (lambda s: spoiled(s, first=s.transitions["first"] + 1), "beyond the frames"),
        (lambda s: spoiled(s, steps=N_STEP + 1), "windows longer"),
        (lambda s: spoiled(s, td_error=np.nan), "td_error"),
        (lambda s: spoiled(s, td_error=np.inf), "td_error"),
        (lambda s: spoiled(s, td_error=-1), "td_error"),
        (lambda s: replace(s, transitions=s.transitions[:0]), "no transitions"),
        (lambda s: make_shipment(np.random.default_rng(0), [51]).segment, "exceeds the store"),
        (lambda s: make_shipment(np.random.default_rng(0), [40], max_frame_bytes=9000).segment, "exceeds the store"),
    ],
)
def test_refuses_segments_that_cannot_be_stored(spoil: Callable[[Segment], Segment], reason: str) -> None:
    store = make_store(50, arena_bytes=1 << 16)
    good = make_shipment(np.random.default_rng(0), [20])
    store.append(good)
    before = (store.num_transitions, store.num_bytes, store.mass, store.next_key)
    with pytest.raises(ValueError, match=reason):
        store.append(replace(good, segment=spoil(good.segment)))
    assert (store.num_transitions, store.num_bytes, store.mass, store.next_key) == before
    store.check_valid()


def test_refuses_updates_that_are_not_finite() -> None:
    store = make_store(10)
    store.append(make_shipment(np.random.default_rng(0), [5]))
    mass = store.mass
    for td_error in ([1.0, np.nan], [1.0, np.inf], [1.0, -1.0], [1.0]):
        with pytest.raises(ValueError, match="finite"):
            update(store, [0, 1], td_error, [False, True])
    with pytest.raises(ValueError, match="one flag per key"):
        update(store, [0, 1], [1.0, 1.0], [True])
    assert store.mass == mass


@pytest.mark.parametrize(("alpha", "epsilon"), [(1.1, 0.01), (-0.1, 0.01), (0.6, 0.0), (0.6, np.inf)])
def test_refuses_exponents_that_break_priorities(alpha: float, epsilon: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        Store(capacity=1, arena_bytes=64, frame_window=WINDOW, alpha=alpha, epsilon=epsilon, seed=0)


@given(data=st.data())
def test_check_valid_notices_a_flipped_bit(data: st.DataObject) -> None:
    store = make_store(10)
    shipment = make_shipment(np.random.default_rng(0), [5])
    store.append(shipment)
    segment = shipment.segment
    place = record.layout(segment.num_transitions, len(segment.frame_sizes), len(shipment.actor))
    byte = data.draw(st.integers(0, place.frames + memoryview(segment.frames).nbytes - 1))
    store._arena[byte] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(AssertionError):
        store.check_valid()
