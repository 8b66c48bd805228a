"""A sum tree with eight children per node, sampled in batches.

Proportional prioritized sampling (Schaul et al. 2016, arXiv 1511.05952, section
3.3 and appendix B.2.1). Eight float64 children fill one cache line, so the tree
is a third as deep as a binary one. All samples of a batch descend one level before
any descends the next, so that their cache misses overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from apex_zmq.types import Float64s, Int64s

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_CACHE_LINE_BYTES = 64


def kernel(signature: Any) -> Callable[[Kernel], Kernel]:
    """Decorator that compiles for one Numba signature on import, or loads from the cache; releases the GIL."""
    return cast("Callable[[Kernel], Kernel]", numba.njit(signature, nogil=True, cache=True))


class SumTree:
    """`capacity` leaves >= 0 and their sums; not thread-safe."""

    def __init__(self, capacity: int) -> None:
        """Make a tree whose leaves are all 0.

        Raises:
            ValueError: capacity < 1.
        """
        if capacity < 1:
            raise ValueError(f"a sum tree needs at least one leaf, not {capacity}")
        self.capacity = capacity
        nodes = [-(-capacity // 8)]  # per inner level, leaves' parents first
        while nodes[-1] > 1:
            nodes.append(-(-nodes[-1] // 8))
        # The root, then each level's nodes as whole groups of eight siblings.
        sizes = [8] + [8 * count for count in reversed(nodes)]
        self._starts: Int64s = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        self._nodes = _aligned_zeros(sum(sizes))
        self._leaves = self._nodes[self._starts[-1] :][:capacity]

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self._nodes[0])

    def get(self, indices: npt.ArrayLike) -> Float64s:
        """Return the values, float64[B], of the leaves at int64[B] indices."""
        return self._leaves[np.asarray(indices, np.int64)]

    def get_range(self, start: int, stop: int) -> Float64s:
        """Return a copy, float64[stop - start], of the leaves start .. stop - 1."""
        return self._leaves[start:stop].copy()

    def set(self, indices: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Set the leaves at int64[B] indices to float64[B] (or one value); the last value of a repeated index wins.

        Raises:
            ValueError: an index outside [0, capacity), a value negative or not finite.
        """
        changed = np.array(indices, np.int64)
        if changed.size == 0:
            return
        if changed.min() < 0 or changed.max() >= self.capacity:
            raise ValueError(f"leaf index outside [0, {self.capacity})")
        self._leaves[changed] = _checked(values)
        _refresh(self._nodes, self._starts, changed)

    def set_range(self, start: int, stop: int, values: npt.ArrayLike) -> None:
        """Set the leaves start .. stop - 1 to float64[stop - start] (or one value).

        Raises:
            ValueError: a range outside [0, capacity], a value negative or not finite.
        """
        if not 0 <= start <= stop <= self.capacity:
            raise ValueError(f"leaf range [{start}, {stop}) outside [0, {self.capacity}]")
        self._leaves[start:stop] = _checked(values)
        _refresh(self._nodes, self._starts, np.arange(start, stop))

    def sample(self, uniforms: Float64s) -> Int64s:
        """Return the leaves, int64[B], at the fractions uniforms[B] of the total, in [0, 1]; never a leaf of 0.

        Raises:
            ValueError: the total is 0.
        """
        if not self.total > 0:
            raise ValueError("cannot sample: all priorities are 0")
        index = np.zeros(len(uniforms), np.int64)
        _descend(self._nodes, self._starts, np.multiply(uniforms, self.total, dtype=np.float64), index)
        return index

    def stratified(self, batch_size: int, rng: np.random.Generator) -> Int64s:
        """Sample one leaf from each of B equal shares of the total: at the fractions (j + U_j)/B, U_j uniform.

        Raises:
            ValueError: the total is 0.
        """
        return self.sample((np.arange(batch_size) + rng.random(batch_size)) / batch_size)

    def check_valid(self) -> None:
        """Verify every sum.

        Raises:
            AssertionError: a node differs from the sum of its children, or a leaf is negative or not finite.
        """
        assert np.all((self._leaves >= 0) & np.isfinite(self._leaves)), "a leaf is negative or not finite"
        assert not self._nodes[self._starts[-1] + self.capacity :].any(), "a padding leaf is not 0"
        bounds = [*self._starts, len(self._nodes)]
        for level in range(len(self._starts) - 1):
            children = self._nodes[bounds[level + 1] : bounds[level + 2]].reshape(-1, 8)
            sums = np.add.accumulate(children, axis=1)[:, -1]  # left to right, as the kernel adds
            nodes = self._nodes[bounds[level] :][: len(sums)]
            assert np.array_equal(nodes, sums), f"level {level} differs from the sums of its children"


def _aligned_zeros(size: int) -> Float64s:
    """Return float64[size] aligned to a cache line, so that eight siblings share one."""
    padded = np.zeros(size + _CACHE_LINE_BYTES // 8)
    skip = -padded.ctypes.data % _CACHE_LINE_BYTES // 8
    return padded[skip : skip + size]


def _checked(values: npt.ArrayLike) -> Float64s:
    floats = np.asarray(values, np.float64)
    if not ((floats >= 0) & (floats < np.inf)).all():
        raise ValueError("priorities must be finite and >= 0")
    return floats


@kernel("void(float64[::1], int64[::1], int64[::1])")
def _refresh(nodes: Float64s, starts: Int64s, changed: Int64s) -> None:
    """Recompute the ancestors of changed[B] leaves, level by level; overwrites `changed`.

    Each sum is recomputed from its children, not adjusted by differences, so that
    rounding errors do not accumulate. Consecutive leaves with the same parent cost
    one sum, so ranges and stratified samples, which are sorted, visit no parent twice.
    """
    count = len(changed)
    for level in range(len(starts) - 1, 0, -1):
        kept = 0
        for j in range(count):
            parent = changed[j] >> 3
            if kept > 0 and changed[kept - 1] == parent:
                continue
            changed[kept] = parent
            kept += 1
            child = starts[level] + 8 * parent
            total = 0.0
            for i in range(8):
                total += nodes[child + i]
            nodes[starts[level - 1] + parent] = total
        count = kept


@kernel("void(float64[::1], int64[::1], float64[::1], int64[::1])")
def _descend(nodes: Float64s, starts: Int64s, mass: Float64s, index: Int64s) -> None:
    """Descend from the root (index[B] = 0) to the leaves that contain mass[B]; overwrites both.

    Each step selects the last child with a positive value that begins at or before
    the mass. A positive node always has one, even if rounding puts the mass at or
    beyond the node's end. The inner loop has no branches to mispredict. A separate
    short loop loads the first children, because it overlaps more cache misses.
    """
    first = np.empty(len(index))
    for level in range(1, len(starts)):
        for j in range(len(index)):
            first[j] = nodes[starts[level] + 8 * index[j]]
        for j in range(len(index)):
            child = starts[level] + 8 * index[j]
            choice, begin, before = 0, 0.0, first[j]
            for i in range(1, 8):
                value = nodes[child + i]
                if value > 0.0 and before <= mass[j]:
                    choice, begin = i, before
                before += value
            mass[j] -= begin
            index[j] = 8 * index[j] + choice
