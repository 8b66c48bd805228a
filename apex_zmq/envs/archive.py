"""The archive of saved moments of play: a tree of them, by cell, and the paths in it that lead furthest.

As in the first phase of Go-Explore (Ecoffet et al. 2021, arXiv 2004.12919), a cell stands for similar states, one saved
moment is kept of each, and exploration begins from those tried least. The moments of the paths that led furthest are
starts from which a policy can learn a stage from all its places at once (as the backward algorithm does from the end to
the start: Salimans and Chen 2018, arXiv 1812.03381).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PLACES_MIN = 4  # cells of a stage, or moments of a path, before episodes begin there
PATHS = 4  # kept per stage
NEARLY = 0.98  # share of the best progress with which a path that reaches the goal is kept
UNIFORM = 0.3  # share of the draws along a path that ignore what is known of its nodes
BUCKETS = 64  # of a histogram, at most
DROP_FROM = 32  # cells of which a full archive drops the one explored most


class Snapshot(NamedTuple):
    """A moment of an episode.

    state: of the lane. observation: [s, *frame shape]. progress: by then. size: in bytes.
    """

    state: Any
    observation: npt.NDArray[Any]
    progress: float
    size: int


@dataclass(slots=True, eq=False)
class Node:
    """A saved moment and how it was reached.

    parent: the node before it; None: it is the environment's own start. actions: those that lead from there to here.
    snapshot: None at the environment's own start, and once the archive has dropped it. children: nodes reached next.
    explorations: begun in this cell; fresh: none of them here. starts: restarts here; passes: those that made progress.
    """

    parent: Node | None = None
    actions: tuple[int, ...] = ()
    snapshot: Snapshot | None = None
    children: int = 0
    explorations: int = 0
    fresh: bool = True
    starts: int = 0
    passes: int = 0

    @property
    def weight(self) -> float:
        """Preference for a restart here: passes neither certain nor impossible, and few starts so far."""
        rate = self.passes / max(self.starts, 1)
        return float((rate * (1 - rate) + 0.05) / np.sqrt(self.starts + 1))


class Path(NamedTuple):
    """The way from the environment's own start to an amount of progress.

    nodes: N nodes in their order. taken: [N] number of actions before each. actions: all of them.
    """

    nodes: list[Node]
    taken: list[int]
    actions: list[int]
    progress: float


def path_through(node: Node, then: Sequence[int], progress: float) -> Path:
    """Return the path that leads to a node, takes the actions `then`, and has made `progress` by its end."""
    nodes, each = [node], node
    while each.parent is not None:
        each = each.parent
        nodes.append(each)
    nodes.reverse()
    actions: list[int] = []
    taken = []
    for each in nodes:
        actions += each.actions
        taken.append(len(actions))
    return Path(nodes, taken, [*actions, *then], progress)


class Archive:
    """A saved moment per cell of each stage, together at most `max_bytes`, and up to `PATHS` paths per stage.

    A newer moment replaces that of a cell if explorations from there have reached no other cell: death may have been
    inevitable.
    """

    def __init__(self, max_bytes: int, rng: np.random.Generator) -> None:
        self.size = 0  # bytes
        self._max_bytes = max_bytes
        self._rng = rng
        self._cells: dict[str, dict[Hashable, Node]] = {}
        self._paths: dict[str, deque[Path]] = {}

    @property
    def num_cells(self) -> int:
        """Number of cells of all stages."""
        return sum(map(len, self._cells.values()))

    def frontier(self) -> dict[str, list[float]]:
        """The progress of each cell's moment, by stage; stages without any are absent."""
        return {
            stage: [node.snapshot.progress for node in cells.values() if node.snapshot is not None]
            for stage, cells in self._cells.items()
            if cells
        }

    def cells(self, stage: str) -> dict[Hashable, Node]:
        """The cells of a stage."""
        return self._cells.setdefault(stage, {})

    def paths(self, stage: str) -> deque[Path]:
        """The paths of a stage."""
        return self._paths.setdefault(stage, deque(maxlen=PATHS))

    def best(self, stage: str) -> float:
        """The most progress in a stage; 0: none."""
        return max((path.progress for path in self.paths(stage)), default=0.0)

    def wants(self, stage: str, cell: Hashable) -> bool:
        """Whether a moment in this cell would be kept."""
        known = self.cells(stage).get(cell)
        return known is None or (known.children == 0 and not known.fresh)

    def add(self, stage: str, cell: Hashable, node: Node) -> None:
        """Set the moment of a cell; if the archive is full, drop the moments of other cells."""
        assert node.snapshot is not None
        cells = self.cells(stage)
        if cell in cells:
            node.explorations = cells[cell].explorations
            self._drop(stage, cell)
        cells[cell] = node
        self.size += node.snapshot.size
        if node.parent is not None:
            node.parent.children += 1
        while self.size > self._max_bytes:
            self._drop(*self._dispensable())

    def _dispensable(self) -> tuple[str, Hashable]:
        places = [(stage, cell) for stage, cells in self._cells.items() for cell in cells]
        drawn = self._rng.integers(len(places), size=DROP_FROM)

        def explorations(index: int) -> int:
            stage, cell = places[index]
            return self._cells[stage][cell].explorations

        return places[max(map(int, drawn), key=explorations)]

    def _drop(self, stage: str, cell: Hashable) -> None:
        node = self._cells[stage].pop(cell)
        assert node.snapshot is not None
        self.size -= node.snapshot.size
        node.snapshot = None  # its descendants and the paths still refer to the node

    def record(self, stage: str, node: Node, then: Sequence[int], progress: float, *, succeeded: bool) -> None:
        """Keep the path through a node if it made more progress than any, or reached the goal with about as much."""
        best, paths = self.best(stage), self.paths(stage)
        if progress > best or (succeeded and progress > NEARLY * best):
            paths.append(path_through(node, then, progress))
            for outdone in [path for path in paths if path.progress < NEARLY * progress]:
                paths.remove(outdone)

    def draw_cell(self, stage: str) -> Node | None:
        """A node to begin an exploration from, preferably one explored seldom; None: too few cells."""
        nodes = list(self.cells(stage).values())
        if len(nodes) < PLACES_MIN:
            return None
        weights = 1 / np.sqrt(np.array([node.explorations for node in nodes]) + 1)
        node = nodes[self._rng.choice(len(nodes), p=weights / weights.sum())]
        node.explorations += 1
        node.fresh = False
        return node

    def draw_from_path(self, stage: str, near: tuple[float, float] | None) -> tuple[Node, list[int]] | None:
        """A node of a path to restart from, and the path's actions from there on.

        Args:
            stage: the stage.
            near: bounds of progress; a node between them, or the nearest, is drawn. None: any, by weight or at random.

        Returns:
            None: no path with enough saved moments.
        """
        paths = self.paths(stage)
        if not paths:
            return None
        path = paths[self._rng.integers(len(paths))]
        saved = {index: node.snapshot.progress for index, node in enumerate(path.nodes) if node.snapshot is not None}
        if len(saved) < PLACES_MIN:
            return None
        if near is not None:
            progress = np.array(list(saved.values()))
            distance = np.maximum(near[0] - progress, 0) + np.maximum(progress - near[1], 0)
            weights = (distance == distance.min()).astype(float)
        elif self._rng.random() < UNIFORM:
            weights = np.ones(len(saved))
        else:
            weights = np.array([path.nodes[index].weight for index in saved])
        place = int(self._rng.choice(list(saved), p=weights / weights.sum()))
        return path.nodes[place], path.actions[path.taken[place] :]


class Histograms(NamedTuple):
    """Counts over progress, of one stage; bucket i covers progress from `i * width` up to `(i + 1) * width`.

    width: the lanes' stride times a power of two, in the unit of `RestartableLanes.progress` (Mario: pixels of new
        ground; ALE: score).
    frontier: cells of the archive, by the progress of their moments.
    ends: the newest ends of real low-epsilon episodes. As many buckets as `frontier`, 1 to `BUCKETS`.
    """

    width: float
    frontier: tuple[int, ...]
    ends: tuple[int, ...]


def histograms(frontier: Sequence[float], ends: Sequence[float], stride: float) -> Histograms:
    """Count progress, >= 0, in the narrowest buckets of which at most `BUCKETS` are needed."""
    furthest, width = max((*frontier, *ends), default=0.0), stride
    while furthest >= BUCKETS * width:
        width *= 2
    num_buckets = int(furthest // width) + 1

    def count(progress: Sequence[float]) -> tuple[int, ...]:
        buckets = (np.asarray(progress) // width).astype(np.int64)
        return tuple(np.bincount(buckets, minlength=num_buckets).tolist())

    return Histograms(width, count(frontier), count(ends))
