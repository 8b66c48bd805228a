from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_zmq.replay.governor import Governor


@given(
    min_size=st.integers(0, 300),
    samples_per_insert=st.floats(0.01, 40),
    slack=st.sampled_from([1.0, 1.0000001, 1.3, 4.0]),
    batch_size=st.integers(1, 200),
    max_segment=st.integers(1, 64),
    samples_first=st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=20, max_size=300),
)
@settings(deadline=None)
def test_governor_never_deadlocks_and_keeps_the_tolerance(
    min_size: int,
    samples_per_insert: float,
    slack: float,
    batch_size: int,
    max_segment: int,
    samples_first: list[tuple[bool, float]],
) -> None:
    governor = Governor(
        min_size=min_size,
        samples_per_insert=samples_per_insert,
        tolerance=slack * (batch_size + samples_per_insert * max_segment) / 2,
        batch_size=batch_size,
        max_segment=max_segment,
    )
    rounding = 1e-9 * (1 + governor.tolerance)
    lowest = -max(governor.tolerance, samples_per_insert * (max_segment - 1))
    for prefers_sample, share in samples_first:
        may_sample, may_insert = governor.may_sample(), governor.may_insert()
        assert may_sample or may_insert
        if may_sample and (prefers_sample or not may_insert):
            governor.samples += batch_size
        else:
            governor.inserts += 1 + int(share * (max_segment - 1))
        if governor.inserts < min_size:
            assert governor.samples == 0
        else:
            assert lowest - rounding <= governor.surplus <= governor.tolerance + rounding


@pytest.mark.parametrize("greedy_side", ["sample", "insert"])
def test_the_ratio_approaches_samples_per_insert(greedy_side: str) -> None:
    governor = Governor(min_size=1000, samples_per_insert=8.0, tolerance=1000.0, batch_size=512, max_segment=32)
    for _ in range(5000):
        if governor.may_sample() and (greedy_side == "sample" or not governor.may_insert()):
            governor.samples += 512
        else:
            governor.inserts += 32
    assert governor.samples / (governor.inserts - 1000) == pytest.approx(8, rel=0.02)


def test_inserts_and_samples_wait_for_each_other() -> None:
    governor = Governor(min_size=100, samples_per_insert=4.0, tolerance=128.0, batch_size=64, max_segment=32)
    governor.inserts = 99
    assert not governor.may_sample()
    assert governor.may_insert()
    governor.inserts = 100
    assert governor.may_sample()
    governor.samples = 65
    assert not governor.may_sample()
    governor.samples, governor.inserts = 0, 101
    assert not governor.may_insert()


def test_free_running_waits_only_for_min_size() -> None:
    governor = Governor(min_size=100, samples_per_insert=None, tolerance=0.0, batch_size=64, max_segment=32)
    governor.inserts = 99
    assert not governor.may_sample()
    governor.inserts = 100
    governor.samples = 10**9
    assert governor.may_sample()
    assert governor.may_insert()
    assert governor.surplus == 0


@pytest.mark.parametrize(("before", "after"), [(8.0, 1.0), (1.0, 8.0), (None, 8.0)])
def test_resume_with_another_ratio_stays_within_tolerance(before: float | None, after: float) -> None:
    governor = Governor(min_size=1000, samples_per_insert=after, tolerance=1000.0, batch_size=512, max_segment=32)
    governor.resume(1_000_000, round((before or 0.1) * 999_000), 320)
    assert abs(governor.surplus) <= governor.tolerance + 1
    assert governor.inserts == 1_000_320


@given(st.floats(-1000, 1000), st.integers(0, 10_000))
def test_resume_restores_the_surplus(surplus: float, newer: int) -> None:
    governor = Governor(min_size=1000, samples_per_insert=8.0, tolerance=1000.0, batch_size=512, max_segment=32)
    governor.resume(50_000, round(8 * 49_000 + surplus), newer)
    assert governor.surplus == pytest.approx(surplus, abs=1)


def test_refuses_a_tolerance_that_can_deadlock() -> None:
    with pytest.raises(ValueError, match="must reach 192"):
        Governor(min_size=0, samples_per_insert=4.0, tolerance=95.9, batch_size=64, max_segment=32)


def test_rounding_leaves_no_gap_at_the_smallest_tolerance() -> None:
    governor = Governor(min_size=0, samples_per_insert=1.8, tolerance=75.6, batch_size=135, max_segment=9)
    governor.inserts = 33  # a surplus between the two thresholds, 1e-14 apart
    assert governor.may_sample() or governor.may_insert()
