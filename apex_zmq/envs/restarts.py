"""Where episodes begin: at the environment's start, or from a saved state of an earlier episode.

Most decisions of a hard stage are spent on its easy beginning. An archive of saved states by cell, as in Go-Explore
(Ecoffet et al. 2021, arXiv 2004.12919), lets lanes begin near the places where episodes end. Off-policy targets do not
depend on where an episode begins; evaluations and statistics are of real starts only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from apex_zmq.config.settings import Restarts
from apex_zmq.envs.interface import EnvError, Lanes, Step

LOW_EPSILON = 0.01  # lanes of at most this epsilon always take the real start
SAVE_EVERY = 2  # decisions
SURVIVED = 8  # decisions that a lane must survive before a saved state enters the archive
SNAPSHOTS = 4  # per cell
CELLS_MIN = 4  # of a stage, before lanes begin there
EXPLORATION = 64  # decisions of an explorer's episode
UNIFORM = 0.3  # share of draws that ignore what is known of the cells
ADVANCE = 1.1  # growth of the low-epsilon lanes' progress that counts as learning
WINDOW = 16  # their episodes by which it is judged


@runtime_checkable
class RestartableLanes(Lanes, Protocol):
    """Lanes whose episodes can be saved, and continued by any lane.

    stride: progress by which a restart counts as passed.
    """

    stride: float

    def next_stage(self, lane: int) -> str:
        """Return the stage at which the next `reset` of a lane begins."""

    def save(self, lane: int) -> tuple[Any, int]:
        """Return the state of a lane's episode and its size in bytes; the lane was the last to be reset or stepped."""

    def restore(self, lane: int, state: Any) -> None:
        """Continue a saved episode in a lane; its next call is `step`."""

    def cell(self, lane: int) -> Hashable | None:
        """Return the cell of a lane's position; states of one cell are taken for similar. None: not worth a restart."""

    def progress(self, lane: int) -> float:
        """Return how far a lane's episode has got, also right after its end; it never decreases."""


class Snapshot(NamedTuple):
    """A moment of an episode.

    state: as of `RestartableLanes.save`. observation: [s, *frame shape]. progress: by then. size: in bytes.
    """

    state: Any
    observation: npt.NDArray[Any]
    progress: float
    size: int


@dataclass(slots=True)
class Cell:
    """Statistics of a cell: restarts in it, those that passed, and up to `SNAPSHOTS` snapshots."""

    starts: int = 0
    passes: int = 0
    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """Preference for beginning here: passes neither certain nor impossible, and few starts so far."""
        rate = self.passes / max(self.starts, 1)
        return float((rate * (1 - rate) + 0.05) / np.sqrt(self.starts + 1))


class Archive:
    """Snapshots by stage and cell, at most `max_bytes` of them.

    Once full it drops the snapshots of cells with the least weight.
    """

    def __init__(self, max_bytes: int, rng: np.random.Generator) -> None:
        self.size = 0  # bytes
        self._max_bytes = max_bytes
        self._rng = rng
        self._stages: dict[str, dict[Hashable, Cell]] = {}

    def cells(self, stage: str) -> dict[Hashable, Cell]:
        """The cells of a stage."""
        return self._stages.setdefault(stage, {})

    @property
    def num_cells(self) -> int:
        """Number of cells of all stages."""
        return sum(map(len, self._stages.values()))

    def add(self, stage: str, name: Hashable, snapshot: Snapshot) -> None:
        """Add a snapshot to a cell; in a full cell it replaces one drawn at random."""
        snapshots = self.cells(stage).setdefault(name, Cell()).snapshots
        if len(snapshots) < SNAPSHOTS:
            snapshots.append(snapshot)
        else:
            index = int(self._rng.integers(SNAPSHOTS))
            self.size -= snapshots[index].size
            snapshots[index] = snapshot
        self.size += snapshot.size
        while self.size > self._max_bytes:
            self._drop_one()

    def _drop_one(self) -> None:
        cells, name = min(
            ((cells, name) for cells in self._stages.values() for name in cells),
            key=lambda place: place[0][place[1]].weight,
        )
        self.size -= sum(snapshot.size for snapshot in cells.pop(name).snapshots)

    def draw(self, stage: str) -> tuple[Cell, Snapshot] | None:
        """A cell of a stage, by weight or at random, and one of its snapshots; None: too few cells."""
        cells = list(self.cells(stage).values())
        if len(cells) < CELLS_MIN:
            return None
        weights = np.ones(len(cells)) if self._rng.random() < UNIFORM else np.array([each.weight for each in cells])
        cell = cells[self._rng.choice(len(cells), p=weights / weights.sum())]
        return cell, cell.snapshots[self._rng.integers(len(cell.snapshots))]


class Kind(Enum):
    """Start of an episode: the environment's own, the archive, or the archive with random actions."""

    REAL = 0
    RESTART = 1
    EXPLORER = 2


class Start(NamedTuple):
    """The beginning of an episode. observation: [s, *frame shape]."""

    observation: npt.NDArray[Any]
    kind: Kind


@dataclass(slots=True)
class _Track:
    """One lane's episode. saved: moments that have not survived long enough yet, with their decision and cell."""

    kind: Kind
    stage: str
    epsilon: float
    cell: Cell | None = None  # where it began
    goal: float = 0.0  # progress at which the restart has passed
    decisions: int = 0
    saved: deque[tuple[int, Hashable, Snapshot]] = field(default_factory=deque)


def need(episodes: Iterable[float]) -> float:
    """Return the need for restarts, 0 to 1, given the progress of real low-epsilon episodes, oldest first.

    The need is small while they advance, because their own experience then teaches more.
    """
    progress = list(episodes)
    half = len(progress) // 2
    if half == 0:
        return 1.0
    before, now = float(np.mean(progress[:half])), float(np.mean(progress[half:]))
    return 0.25 if now > ADVANCE * before else 1.0


class Starts:
    """Begins the episodes of an actor's lanes, and archives their states.

    Raises:
        EnvError: `actor.restarts` is on, and the environment has no states to save.
    """

    def __init__(self, lanes: Lanes, restarts: Restarts, rng: np.random.Generator) -> None:
        if restarts.share and not isinstance(lanes, RestartableLanes):
            raise EnvError(
                "actor.restarts needs an environment whose state can be saved: Mario on FCEUmm or an ALE game, without "
                "env.sticky; set actor.restarts.share to 0"
            )
        self.counts = {"restarts": 0, "explorations": 0, "restart_decisions": 0, "restart_passes": 0}
        self.archive = Archive(restarts.max_bytes, rng)
        self._lanes = lanes
        self._restartable = lanes if restarts.share and isinstance(lanes, RestartableLanes) else None
        self._restarts = restarts
        self._rng = rng
        self._tracks = [_Track(Kind.REAL, "", 1.0) for _ in range(lanes.num_lanes)]
        self._low: dict[str, deque[float]] = {}

    def begin(self, lane: int, epsilon: float) -> Start:
        """Begin an episode of a lane whose own exploration rate is `epsilon`."""
        lanes = self._restartable
        if lanes is None:
            return Start(self._lanes.spec.frame.observation_of(self._lanes.reset(lane)), Kind.REAL)
        stage = lanes.next_stage(lane)
        drawn = self.archive.draw(stage) if self._takes_restart(stage, epsilon) else None
        if drawn is None:
            self._tracks[lane] = _Track(Kind.REAL, stage, epsilon)
            return Start(lanes.spec.frame.observation_of(lanes.reset(lane)), Kind.REAL)
        cell, snapshot = drawn
        kind = Kind.EXPLORER if self._rng.random() < self._restarts.explorers else Kind.RESTART
        lanes.restore(lane, snapshot.state)
        cell.starts += 1
        self.counts["explorations" if kind is Kind.EXPLORER else "restarts"] += 1
        self._tracks[lane] = _Track(kind, stage, epsilon, cell, snapshot.progress + lanes.stride)
        return Start(snapshot.observation.copy(), kind)

    def _takes_restart(self, stage: str, epsilon: float) -> bool:
        """Whether an episode begins from the archive, provided that the archive has enough cells."""
        share = self._restarts.share * need(self._low.get(stage, ()))
        return epsilon > LOW_EPSILON and self._rng.random() < share

    def follow(self, lane: int, step: Step, observation: npt.NDArray[Any]) -> bool:
        """Account for a decision, archive surviving states, and return whether to truncate a restart.

        observation: [s, *frame shape], after the step.
        """
        lanes = self._restartable
        if lanes is None:
            return False
        track = self._tracks[lane]
        track.decisions += 1
        progress = lanes.progress(lane)
        if track.cell is not None:
            self.counts["restart_decisions"] += 1
            if progress >= track.goal:
                track.cell.passes += 1
                self.counts["restart_passes"] += 1
                track.goal = float("inf")
        over = step.terminated or step.truncated
        if not over:
            self._archive(lanes, lane, track, observation)
        if over and track.kind is Kind.REAL and track.epsilon <= LOW_EPSILON:
            self._low.setdefault(track.stage, deque(maxlen=WINDOW)).append(progress)
        longest = {Kind.REAL: None, Kind.RESTART: self._restarts.length, Kind.EXPLORER: EXPLORATION}[track.kind]
        return longest is not None and track.decisions >= longest

    def _archive(self, lanes: RestartableLanes, lane: int, track: _Track, observation: npt.NDArray[Any]) -> None:
        while track.saved and track.decisions - track.saved[0][0] >= SURVIVED:
            _, name, snapshot = track.saved.popleft()
            self.archive.add(track.stage, name, snapshot)
        if track.decisions % SAVE_EVERY == 0 and (name := lanes.cell(lane)) is not None:
            state, size = lanes.save(lane)
            snapshot = Snapshot(state, observation.copy(), lanes.progress(lane), size + observation.nbytes)
            track.saved.append((track.decisions, name, snapshot))
