"""The archive of saved moments: cells, paths, memory and draws."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_zmq.envs.archive import BUCKETS, PATHS, PLACES_MIN, Archive, Node, Snapshot, histograms, path_through

STAGES = ("1-1", "1-2")


def snapshot(size: int = 1, progress: float = 0.0) -> Snapshot:
    return Snapshot(object(), np.zeros(1), progress, size)


def archive(max_bytes: int = 10**6) -> Archive:
    return Archive(max_bytes, np.random.default_rng(0))


def chain(archive: Archive, length: int, stage: str = "1-1") -> list[Node]:
    """A real start, and nodes one action and one cell after the other."""
    nodes = [Node()]
    for cell in range(length):
        nodes.append(Node(nodes[-1], (cell,), snapshot(progress=cell + 1)))
        archive.add(stage, cell, nodes[-1])
    return nodes


@given(
    st.lists(st.tuples(st.sampled_from(STAGES), st.integers(0, 9), st.integers(1, 100)), max_size=200),
    st.integers(100, 1000),
)
def test_an_archive_keeps_within_its_memory(added: list[tuple[str, int, int]], max_bytes: int) -> None:
    moments = archive(max_bytes)
    last = Node()
    for stage, cell, size in added:
        last = Node(last, (0,), snapshot(size))
        moments.add(stage, cell, last)
        held = [node.snapshot for each in STAGES for node in moments.cells(each).values()]
        assert moments.size == sum(each.size for each in held if each is not None) <= max_bytes
        assert None not in held
    assert moments.num_cells == sum(len(moments.cells(stage)) for stage in STAGES)


def test_a_full_archive_keeps_the_moments_that_were_explored_seldom() -> None:
    moments = archive(max_bytes=40)
    chain(moments, 40)
    for cell in range(0, 40, 2):
        moments.cells("1-1")[cell].explorations = 5
    for cell in range(40, 50):
        moments.add("1-1", cell, Node(None, (), snapshot()))
    assert len({*range(1, 40, 2)} & {*moments.cells("1-1")}) >= 19  # of 20


def test_a_moment_is_replaced_if_explorations_from_it_led_nowhere() -> None:
    moments = archive()
    _, first, second = chain(moments, 2)
    assert moments.wants("1-1", 2)
    assert not moments.wants("1-1", 1)
    first.fresh = second.fresh = False
    second.explorations = 7
    assert not moments.wants("1-1", 0)  # the second came of it
    assert moments.wants("1-1", 1)
    newer = Node(first, (9,), snapshot())
    moments.add("1-1", 1, newer)
    assert moments.cells("1-1")[1] is newer
    assert (newer.explorations, newer.fresh) == (7, True)
    assert not moments.wants("1-1", 1)
    assert second.snapshot is None
    assert moments.num_cells == 2


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=10), st.lists(st.integers(0, 3)))
def test_a_path_holds_every_action_from_the_start(pieces: list[list[int]], then: list[int]) -> None:
    node = Node()
    for piece in pieces:
        node = Node(node, tuple(piece), snapshot())
    path = path_through(node, then, 1.0)
    assert path.nodes[-1] is node
    assert path.nodes[0].parent is None
    assert path.actions == [*itertools.chain(*pieces), *then]
    assert path.taken == [sum(map(len, pieces[:count])) for count in range(len(pieces) + 1)]


def test_the_paths_that_lead_furthest_are_kept() -> None:
    moments = archive()
    nodes = chain(moments, 3)
    moments.record("1-1", nodes[1], [5], 100.0, succeeded=False)
    moments.record("1-1", nodes[2], [6], 90.0, succeeded=True)  # less, although it reached the goal
    moments.record("1-1", nodes[2], [7], 100.0, succeeded=False)  # no more
    assert [path.actions for path in moments.paths("1-1")] == [[0, 5]]
    moments.record("1-1", nodes[2], [8], 99.0, succeeded=True)
    assert [path.progress for path in moments.paths("1-1")] == [100.0, 99.0]
    for count in range(2 * PATHS):
        moments.record("1-1", nodes[3], [count], 200.0, succeeded=True)
    assert [path.actions[-1] for path in moments.paths("1-1")] == list(range(PATHS, 2 * PATHS))
    assert moments.best("1-1") == 200.0
    assert moments.best("1-2") == 0.0


def test_cells_explored_seldom_are_drawn_more_often() -> None:
    moments = archive()
    nodes = chain(moments, PLACES_MIN - 1)
    assert moments.draw_cell("1-1") is None
    nodes = chain(moments, PLACES_MIN)
    nodes[1].explorations = 10**6
    drawn = Counter(id(moments.draw_cell("1-1")) for _ in range(1000))
    assert drawn[id(nodes[1])] < 50
    assert [node.explorations for node in nodes[2:]] == pytest.approx([333] * 3, abs=50)
    assert not nodes[2].fresh
    assert moments.draw_cell("1-2") is None


def test_nodes_neither_mastered_nor_hopeless_are_drawn_more_often() -> None:
    moments = archive()
    nodes = chain(moments, 4)
    assert moments.draw_from_path("1-1", None) is None
    moments.record("1-1", nodes[4], [8, 9], 10.0, succeeded=False)
    for node, passes in zip(nodes[1:], (100, 50, 0, 0), strict=True):
        node.starts, node.passes = 100, passes
    drawn: Counter[int] = Counter()
    for _ in range(2000):
        found = moments.draw_from_path("1-1", None)
        assert found is not None
        node, actions = found
        assert actions == [0, 1, 2, 3, 8, 9][nodes.index(node) :]
        drawn[nodes.index(node)] += 1
    # By weight in 70% of draws, 0.3 of 0.45 for the second; evenly in the others.
    assert drawn[2] / 2000 == pytest.approx(0.7 * 0.30 / 0.45 + 0.3 / 4, abs=0.04)
    assert set(drawn) == {1, 2, 3, 4}
    assert Node(starts=3).weight < Node().weight


@pytest.mark.parametrize(
    ("near", "expected"), [((2.0, 3.5), {2, 3}), ((2.2, 2.6), {2}), ((-5.0, 0.0), {1}), ((99.0, 100.0), {4})]
)
def test_a_node_near_some_progress_is_drawn(near: tuple[float, float], expected: set[int]) -> None:
    moments = archive()
    nodes = chain(moments, 4)  # of progress 1 to 4
    moments.record("1-1", nodes[4], [], 10.0, succeeded=False)
    drawn = {nodes.index(found[0]) for _ in range(40) if (found := moments.draw_from_path("1-1", near)) is not None}
    assert drawn == expected


def test_dropped_moments_of_a_path_are_passed_over() -> None:
    moments = archive()
    nodes = chain(moments, PLACES_MIN)
    moments.record("1-1", nodes[-1], [], 10.0, succeeded=False)
    moments.add("1-1", PLACES_MIN - 1, Node(nodes[-2], (3,), snapshot()))  # in place of the path's last
    assert moments.draw_from_path("1-1", None) is None


PROGRESS = st.lists(st.floats(0, 1e6), max_size=40)


@given(PROGRESS, PROGRESS, st.sampled_from([0.5, 1.0, 128.0]))
def test_histograms_count_all_progress_in_the_narrowest_buckets_that_suffice(
    frontier: list[float], ends: list[float], stride: float
) -> None:
    made = histograms(frontier, ends, stride)
    assert len(made.frontier) == len(made.ends) <= BUCKETS
    for values, counts in ((frontier, made.frontier), (ends, made.ends)):
        expected = Counter(int(value // made.width) for value in values)
        assert counts == tuple(expected[bucket] for bucket in range(len(counts)))
        assert sum(counts) == len(values)
    assert made.width == stride or max([*frontier, *ends]) >= BUCKETS * made.width / 2
    assert np.log2(made.width / stride).is_integer()  # buckets of several actors can be pooled


def test_the_frontier_is_the_progress_of_the_cells_that_are_kept() -> None:
    moments = archive(max_bytes=3)
    assert moments.frontier() == {}
    chain(moments, 2)
    assert moments.frontier() == {"1-1": [1.0, 2.0]}
    chain(moments, 1, "1-2")
    chain(moments, 4, "1-2")  # drops moments of other cells
    frontier = moments.frontier()
    assert sum(map(len, frontier.values())) == moments.num_cells == 3
    assert [] not in frontier.values()
