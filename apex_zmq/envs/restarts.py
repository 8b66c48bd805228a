"""Where episodes begin: at the environment's start, or from a saved moment of an earlier episode.

Most decisions of a hard stage are spent on its easy beginning. With restarts some lanes begin elsewhere: explorers play
random actions from any cell of the archive, which finds a way through the stage; others begin on the way found, with
or without repeating some of its actions first, and play on with their own policy. Off-policy targets do not depend on
where an episode begins; evaluations and statistics are of real starts only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from apex_zmq.config.settings import Restarts
from apex_zmq.envs.archive import Archive, Histograms, Node, Snapshot, histograms
from apex_zmq.envs.info import ENDS
from apex_zmq.envs.interface import EnvError, Lanes, Step

LOW_EPSILON = 0.01  # lanes of at most this epsilon always take the real start
EXPLORATION = 25  # decisions of an explorer's episode
EXPLORERS_AFTER = 0.1  # share of explorers once a path reaches the goal
NEAR_ENDS = 0.7  # share of the restarts on a path that begin around the end of a low-epsilon episode
BEFORE = 2.0  # strides that they begin before it at most; after it: one
REPEATS = 0.5  # share of the restarts on a path that repeat its actions first
REPEAT_MAX = 64  # actions that they repeat
WINDOW = 16  # low-epsilon episodes by which the need for restarts is judged
ENDS_MAX = 256  # of their ends, per stage, that a histogram counts
DEBT_MAX = 500.0  # decisions


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


class Kind(Enum):
    """Start of an episode.

    REAL: the environment's own. RESTART: on a path of the archive. REPEAT: likewise, and it repeats the path's actions
    for a while. EXPLORER: in any cell, with random actions only.
    """

    REAL = 0
    RESTART = 1
    REPEAT = 2
    EXPLORER = 3


class Start(NamedTuple):
    """The beginning of an episode. observation: [s, *frame shape]."""

    observation: npt.NDArray[Any]
    kind: Kind


@dataclass(slots=True)
class _Track:
    """One lane's episode.

    node: the last one passed. actions: taken since. begun: the node of a restart that has not passed yet.
    goal: progress at which it has. script: actions to be repeated, the last one first.
    """

    kind: Kind
    stage: str
    epsilon: float
    node: Node
    begun: Node | None = None
    goal: float = 0.0
    script: list[int] = field(default_factory=list)
    decisions: int = 0
    actions: list[int] = field(default_factory=list)


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
        self._tracks = [_Track(Kind.REAL, "", 1.0, Node()) for _ in range(lanes.num_lanes)]
        self._ends: dict[str, deque[float]] = {}  # progress of the last low-epsilon episodes
        self._solved: set[str] = set()  # stages with a path that reaches the goal
        # Decisions by which the shares of the settings exceed what has been played.
        self._owed, self._owed_explorations = 0.0, 0.0

    def begin(self, lane: int, epsilon: float) -> Start:
        """Begin an episode of a lane whose own exploration rate is `epsilon`."""
        lanes = self._restartable
        if lanes is None:
            return Start(self._lanes.spec.frame.observation_of(self._lanes.reset(lane)), Kind.REAL)
        stage = lanes.next_stage(lane)
        track = self._draw(lanes, stage, epsilon) if epsilon > LOW_EPSILON and self._owed > 0 else None
        if track is None:
            self._tracks[lane] = _Track(Kind.REAL, stage, epsilon, Node())
            return Start(lanes.spec.frame.observation_of(lanes.reset(lane)), Kind.REAL)
        snapshot = track.node.snapshot
        assert snapshot is not None
        track.goal = snapshot.progress + lanes.stride
        self._tracks[lane] = track
        lanes.restore(lane, snapshot.state)
        self.counts["explorations" if track.kind is Kind.EXPLORER else "restarts"] += 1
        return Start(snapshot.observation.copy(), track.kind)

    def _draw(self, lanes: RestartableLanes, stage: str, epsilon: float) -> _Track | None:
        if self._owed_explorations > 0:
            node = self.archive.draw_cell(stage)
            return None if node is None else _Track(Kind.EXPLORER, stage, epsilon, node, begun=node)
        drawn = self.archive.draw_from_path(stage, self._near_an_end(stage, lanes.stride))
        if drawn is None:
            return None
        node, actions = drawn
        if self._rng.random() < REPEATS:
            repeated = actions[: self._rng.integers(1, REPEAT_MAX + 1)]
            return _Track(Kind.REPEAT, stage, epsilon, node, script=repeated[::-1])
        node.starts += 1
        return _Track(Kind.RESTART, stage, epsilon, node, begun=node)

    def _near_an_end(self, stage: str, stride: float) -> tuple[float, float] | None:
        """Bounds of progress around the end of a low-epsilon episode; None: anywhere."""
        ends = self._ends.get(stage)
        if not ends or self._rng.random() >= NEAR_ENDS:
            return None
        end = ends[-1 - int(self._rng.integers(min(WINDOW, len(ends))))]
        return end - BEFORE * stride, end + stride

    def choose(self, lane: int, action: int) -> int:
        """Return the action that a lane takes, given the one that its policy has chosen."""
        if self._restartable is not None:
            track = self._tracks[lane]
            if track.script:
                action = track.script.pop()
            track.actions.append(action)
        return action

    def follow(self, lane: int, step: Step, observation: npt.NDArray[Any]) -> bool:
        """Account for a decision, archive the state, and return whether to truncate a restart.

        observation: [s, *frame shape], after the step.
        """
        lanes = self._restartable
        if lanes is None:
            return False
        track = self._tracks[lane]
        track.decisions += 1
        progress = lanes.progress(lane)
        self._count(track, progress)
        over = step.terminated or step.truncated
        succeeded = over and bool(step.info.get(ENDS.success))
        self.archive.record(track.stage, track.node, track.actions, progress, succeeded=succeeded)
        if succeeded:
            self._solved.add(track.stage)
        if not over:
            self._archive(lanes, lane, track, observation)
        elif track.kind is Kind.REAL and track.epsilon <= LOW_EPSILON:
            self._ends.setdefault(track.stage, deque(maxlen=ENDS_MAX)).append(progress)
        longest = {Kind.REAL: None, Kind.EXPLORER: EXPLORATION}.get(track.kind, self._restarts.length)
        return longest is not None and track.decisions >= longest

    def _count(self, track: _Track, progress: float) -> None:
        restarted = track.kind is not Kind.REAL
        if track.epsilon > LOW_EPSILON:
            self._owed = _bounded(self._owed + self._restarts.share * self.need(track.stage) - restarted)
        if restarted:
            explorers = EXPLORERS_AFTER if track.stage in self._solved else self._restarts.explorers
            self._owed_explorations = _bounded(self._owed_explorations + explorers - (track.kind is Kind.EXPLORER))
            self.counts["restart_decisions"] += 1
        if track.begun is not None and progress >= track.goal:
            track.begun.passes += track.kind is Kind.RESTART
            track.begun = None
            self.counts["restart_passes"] += 1

    def need(self, stage: str) -> float:
        """Return the need for restarts: the share of the way to the goal that low-epsilon lanes lack by now.

        While no path reaches the goal, nobody knows how long the way is: 1.
        """
        ends, best = self._ends.get(stage), self.archive.best(stage)
        if stage not in self._solved or not ends:
            return 1.0
        last = [ends[index] for index in range(-min(WINDOW, len(ends)), 0)]
        return max(1.0 - float(np.mean(last)) / best, 0.0)

    def histograms(self) -> dict[str, Histograms]:
        """Progress of the archive's cells and of the newest low-epsilon ends, by stage; empty without restarts."""
        if self._restartable is None:
            return {}
        frontier, stride = self.archive.frontier(), self._restartable.stride
        return {
            stage: histograms(frontier.get(stage, ()), self._ends.get(stage, ()), stride)
            for stage in sorted(frontier.keys() | self._ends.keys())
        }

    def _archive(self, lanes: RestartableLanes, lane: int, track: _Track, observation: npt.NDArray[Any]) -> None:
        cell = lanes.cell(lane)
        if cell is None or not self.archive.wants(track.stage, cell):
            return
        state, size = lanes.save(lane)
        snapshot = Snapshot(state, observation.copy(), lanes.progress(lane), size + observation.nbytes)
        track.node = Node(track.node, tuple(track.actions), snapshot)
        track.actions = []
        self.archive.add(track.stage, cell, track.node)


def _bounded(debt: float) -> float:
    return min(max(debt, -DEBT_MAX), DEBT_MAX)
