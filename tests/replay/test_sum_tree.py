from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from apex_zmq.replay.sum_tree import SumTree
from apex_zmq.types import Float64s

capacities = st.integers(1, 600)
seeds = st.integers(0, 2**32 - 1)
UNIFORM_EDGES = [0.0, np.nextafter(0.5, 0), 0.5, np.nextafter(1.0, 0), 1.0]


def filled(leaves: Float64s) -> SumTree:
    tree = SumTree(len(leaves))
    tree.set_range(0, len(leaves), leaves)
    return tree


@given(capacities, seeds)
@settings(deadline=None)
def test_sampling_matches_a_search_in_the_cumulative_sum(capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaves = rng.integers(0, 3, capacity).astype(np.float64)  # whole numbers: sums are exact
    leaves[rng.integers(capacity)] = 1
    uniforms = np.append(rng.random(50), UNIFORM_EDGES[:-1])
    expected = np.searchsorted(np.cumsum(leaves), uniforms * leaves.sum(), side="right")
    assert np.array_equal(filled(leaves).sample(uniforms), expected)


@given(capacities, seeds, st.lists(st.booleans(), max_size=30))
@settings(deadline=None)
def test_total_is_the_sum_of_leaves_after_any_writes(capacity: int, seed: int, ranges: list[bool]) -> None:
    rng = np.random.default_rng(seed)
    tree, leaves = SumTree(capacity), np.zeros(capacity)
    for is_range in ranges:
        if is_range:
            start, stop = np.sort(rng.integers(0, capacity + 1, 2))
            values = rng.random(stop - start) * 10.0 ** rng.integers(-8, 9) * rng.integers(0, 2)
            tree.set_range(int(start), int(stop), values)
            leaves[start:stop] = values
        else:
            indices = rng.integers(0, capacity, rng.integers(0, 40))
            values = rng.random(len(indices)) * rng.integers(0, 2, len(indices))
            tree.set(indices, values)
            for index, value in zip(indices, values, strict=True):
                leaves[index] = value
        tree.check_valid()
        assert np.array_equal(tree.get(np.arange(capacity)), leaves)
        assert tree.total == pytest.approx(math.fsum(leaves), rel=1e-12, abs=0)


def test_total_does_not_drift() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    for _ in range(2000):
        tree.set(rng.integers(0, 1000, 64), rng.random(64) * 1e6)
    tree.set(np.arange(1000), 0.0)
    assert tree.total == 0


@given(st.lists(st.sampled_from([0.0, 1e-300, 1e-16, 0.1, 0.3, 1.0, 1e16, 1e300]), min_size=1, max_size=100), seeds)
@settings(deadline=None)
def test_an_empty_leaf_is_never_drawn(values: list[float], seed: int) -> None:
    leaves = np.array([*values, 0.7, 0.0])
    uniforms = np.random.default_rng(seed).random(30)
    borders = np.clip(np.cumsum(leaves) / leaves.sum(), 0, 1)
    for points in (uniforms, borders, np.nextafter(borders, 0), np.array(UNIFORM_EDGES)):
        assert np.all(leaves[filled(leaves).sample(points)] > 0)


def test_last_write_wins() -> None:
    tree = SumTree(20)
    tree.set([3, 5, 3], [1.0, 2.0, 4.0])
    assert tree.get([3, 5]).tolist() == [4, 2]
    assert tree.total == 6


def test_frequencies_match_the_leaves() -> None:
    rng = np.random.default_rng(1)
    leaves = rng.random(300) ** 3
    leaves[::7] = 0
    draws = filled(leaves).sample(rng.random(200_000))
    counts = np.bincount(draws, minlength=300)
    assert not counts[leaves == 0].any()
    expected = leaves / leaves.sum() * 200_000
    assert chisquare(counts[leaves > 0], expected[leaves > 0]).pvalue > 0.01


def test_stratified_draws_one_sample_per_equal_share() -> None:
    rng = np.random.default_rng(2)
    leaves = rng.random(200)
    tree = filled(leaves)
    counts = np.zeros(200)
    for _ in range(50):
        batch = np.bincount(tree.stratified(400, rng), minlength=200)
        # A leaf of e shares contains at least e - 2 whole ones and meets at most e + 2.
        assert np.all(np.abs(batch - 400 * leaves / leaves.sum()) < 2)
        counts += batch
    assert chisquare(counts, 50 * 400 * leaves / leaves.sum()).pvalue > 0.01


def test_stratified_sampling_is_reproducible() -> None:
    tree = filled(np.arange(100.0))
    first, second = (tree.stratified(64, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)


def test_refused_writes_leave_the_tree_unchanged() -> None:
    tree = filled(np.ones(10))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            tree.set([1, 2], [5.0, bad])
        with pytest.raises(ValueError, match="finite"):
            tree.set_range(0, 2, [5.0, bad])
    for index in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            tree.set([0, index], 5.0)
    with pytest.raises(ValueError, match="outside"):
        tree.set_range(5, 11, 5.0)
    tree.check_valid()
    assert tree.get(np.arange(10)).tolist() == [1] * 10


def test_tree_without_priorities_or_leaves_is_an_error() -> None:
    with pytest.raises(ValueError, match="all priorities are 0"):
        SumTree(5).stratified(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least one leaf"):
        SumTree(0)


def test_check_valid_notices_a_wrong_sum() -> None:
    tree = filled(np.ones(100))
    tree._leaves[40] = 2
    with pytest.raises(AssertionError, match="differs"):
        tree.check_valid()
