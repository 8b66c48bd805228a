"""Histograms of restarts: pooling of buckets, sums over actors, curves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from apex_zmq.envs.archive import histograms
from apex_zmq.watch.archive import Buckets, curves, pooled, total
from apex_zmq.wire.messages import MAX_COUNT, MAX_STAGES, StageArchive

PROGRESS = st.lists(st.integers(0, 20_000), max_size=30)
COUNTS = st.lists(st.integers(0, MAX_COUNT), min_size=1, max_size=64)


@given(COUNTS, st.integers(1, 70))
def test_pooling_adds_neighbours(counts: list[int], factor: int) -> None:
    expected = [sum(counts[begin : begin + factor]) for begin in range(0, len(counts), factor)]
    assert pooled(counts, factor) == expected


@given(st.lists(st.tuples(PROGRESS, PROGRESS), min_size=1, max_size=4))
def test_the_sum_over_actors_is_the_histogram_of_all_their_progress(actors: list[tuple[list[int], list[int]]]) -> None:
    (found,) = total(StageArchive("1-1", *histograms(frontier, ends, 128.0)) for frontier, ends in actors)
    expected = histograms([x for frontier, _ in actors for x in frontier], [x for _, ends in actors for x in ends], 128)
    assert (found.width, found.frontier, found.ends) == expected


@given(st.lists(st.tuples(st.floats(0, 1e300, exclude_min=True), COUNTS), min_size=1, max_size=5))
def test_sums_of_arbitrary_widths_stay_within_the_limits(parts: list[tuple[float, list[int]]]) -> None:
    (found,) = total(StageArchive("", width, tuple(counts), tuple(counts)) for width, counts in parts)
    assert found.width == max(width for width, _ in parts)
    assert found.frontier == found.ends
    assert 1 <= len(found.frontier) <= 64
    assert sum(found.frontier) <= sum(sum(counts) for _, counts in parts)
    assert max(found.frontier) <= MAX_COUNT


def test_stages_are_summed_separately_up_to_a_limit() -> None:
    parts = [StageArchive(stage, 1.0, (1, 2), (0, 1)) for stage in ("2-1", "1-2", "2-1")]
    assert total(parts) == (StageArchive("1-2", 1.0, (1, 2), (0, 1)), StageArchive("2-1", 1.0, (2, 4), (0, 2)))
    assert len(total(StageArchive(str(number), 1.0, (1,), (1,)) for number in range(MAX_STAGES + 1))) == MAX_STAGES
    assert total([]) == ()


def test_curves_are_named_by_stage_and_leave_out_empty_histograms() -> None:
    archive = StageArchive("1-1", 128.0, (3, 1), (0, 9)), StageArchive("", 1.0, (5,), (0,))
    assert dict(curves(archive)) == {
        "restarts/frontier/1-1": Buckets(128.0, (3, 1)),
        "restarts/ends/1-1": Buckets(128.0, (0, 9)),
        "restarts/frontier": Buckets(1.0, (5,)),
    }
