"""What a run tells of itself: statuses of all roles, summed up, as TensorBoard and the progress line show them."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from apex_zmq.wire.messages import Episode, Status

LOW_EPSILON = 0.01
EPISODE_WINDOW = 100  # as in Stable-Baselines3's rollout/ep_rew_mean
LOW_EPSILON_WINDOW = 20
# Returns are averaged per bucket of epsilon too, over the last episodes of each: up to 0.001, up to 0.01, ...
EPSILON_BOUNDS = (0.001, 0.01, 0.1, 1.0)
EPSILON_WINDOW = 20
BY_EPSILON = {"rollout/ep_rew_mean", "rollout/clear_rate", "rollout/episodes"}
# Metrics that only grow while their process lives, and of which the run's sums are made.
COUNTERS = (
    "decisions",
    "blocked_s",
    "inserts",
    "samples",
    "insert_blocked_s",
    "sample_blocked_s",
    "updates",
    "waited_s",
    "dropped_segments",
    "segments_lost",
    "segments_duplicate",
    "segments_refused",
    "corrupted_windows",
    "bad_steps",
)
# All that only grow; the other metrics are momentary.
GROWING = {
    *COUNTERS,
    "cpu_s",
    "segments",
    "segments_received",
    "idle_s",
    "link_blocked_s",
    "decode_s",
    "refused_messages",
    "refused_batches",
    "refused_statuses",
    "refused_peers",
    "failed_handshakes",
    "stale_updates",
    "evicted_updates",
    "retired",
    "snapshots",
    "forwarded",
}
# Counters of what should stay 0, or nearly, shown as they stand.
FAULTS = {
    "actors/dropped_segments": "dropped_segments",
    "replay/segments_lost": "segments_lost",
    "replay/segments_duplicate": "segments_duplicate",
    "replay/segments_refused": "segments_refused",
    "train/corrupted_windows": "corrupted_windows",
    "train/bad_steps": "bad_steps",
}
STARTED_TOGETHER_S = 60.0  # a process older than the learner by no more has done nothing for its predecessor
ROLES = ("actor", "replay", "learner", "forwarder")
MAX_SOURCES = 4096  # processes remembered, and stages; whoever may report could invent more
MAX_NUMBER = float(1 << 53)  # of what a process may say; TensorBoard's axis ends at 2^63
PROGRESS_LOG = "apex_zmq.progress"  # logger of the progress lines
AWAY_S = 10.0  # a role that has not reported for so long no longer counts


@dataclass
class RunStats:
    """Sums the statuses of all roles; counters survive restarts of their roles.

    since: monotonic seconds at which this learner began; what older processes counted before is not taken in.
    episodes, decisions: of the whole run, resumed ones included.
    restarts: processes that took the place of one of their name.
    """

    since: float = -math.inf
    episodes: int = 0
    decisions: int = 0
    clears: int = 0
    best_x: int = 0
    restarts: int = 0
    _last: dict[tuple[str, int], Status] = field(default_factory=dict)
    _heard_at: dict[tuple[str, int], float] = field(default_factory=dict)
    _counters: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _at_summary: dict[str, float] = field(default_factory=dict)
    _summary_time: float = field(default_factory=time.monotonic)
    _recent: deque[Episode] = field(default_factory=lambda: deque(maxlen=EPISODE_WINDOW))
    _recent_low: deque[Episode] = field(default_factory=lambda: deque(maxlen=LOW_EPSILON_WINDOW))
    _by_epsilon: dict[float, deque[Episode]] = field(
        default_factory=lambda: {bound: deque(maxlen=EPSILON_WINDOW) for bound in EPSILON_BOUNDS}
    )
    _count_by_epsilon: dict[float, int] = field(default_factory=lambda: dict.fromkeys(EPSILON_BOUNDS, 0))
    _ends: dict[str, deque[int]] = field(default_factory=dict)

    def hear(self, status: Status, now: float) -> None:
        """Take in one status; now: monotonic seconds."""
        status = _bounded(status)
        key = (status.name, status.incarnation)
        before: dict[str, float] = {}
        if key in self._last:
            before = self._last[key].metrics
        elif status.time - status.start_time > now - self.since + STARTED_TOGETHER_S:
            before = status.metrics
        grown = {name: status.metrics.get(name, 0.0) - before.get(name, 0.0) for name in COUNTERS}
        for name, value in grown.items():
            self._counters[name] += value
        self.decisions = min(self.decisions + round(grown["decisions"]), int(MAX_NUMBER))
        if key not in self._last:
            self.restarts += any(name == status.name for name, _ in self._last)
            if len(self._last) >= MAX_SOURCES:
                silent = min(self._heard_at, key=self._heard_at.__getitem__)
                del self._last[silent], self._heard_at[silent]
        self._last[key], self._heard_at[key] = status, now
        for episode in status.episodes:
            self.episodes += 1
            self.clears += episode.cleared
            self.best_x = max(self.best_x, episode.max_x)
            self._recent.append(episode)
            if episode.epsilon <= LOW_EPSILON:
                self._recent_low.append(episode)
            bucket = next(bound for bound in EPSILON_BOUNDS if episode.epsilon <= bound)
            self._by_epsilon[bucket].append(episode)
            self._count_by_epsilon[bucket] += 1
            known = episode.stage in self._ends or len(self._ends) < MAX_SOURCES
            if episode.stage and known and not episode.cleared:
                self._ends.setdefault(episode.stage, deque(maxlen=EPISODE_WINDOW)).append(episode.max_x)

    @property
    def low_epsilon_return(self) -> float | None:
        """Mean return of the last low-epsilon episodes, once there are enough of them."""
        recent = list(self._recent_low)  # at once: another thread may be adding
        if len(recent) < LOW_EPSILON_WINDOW:
            return None
        return float(np.mean([episode.episode_return for episode in recent]))

    def live(self, role: str, now: float) -> list[Status]:
        """The last status of each process of a role that is not away; of several of one name only the latest heard."""
        latest = {key[0]: key for key in sorted(self._heard_at, key=self._heard_at.__getitem__)}
        return [
            self._last[key]
            for key in latest.values()
            if self._last[key].role == role and now - self._heard_at[key] <= AWAY_S
        ]

    def summary(self, now: float, update: int) -> dict[str, float]:
        """Numbers since the last summary, by TensorBoard tag."""
        elapsed = max(now - self._summary_time, 1e-9)
        rate = {name: (self._counters[name] - self._at_summary.get(name, 0.0)) / elapsed for name in COUNTERS}
        self._at_summary, self._summary_time = dict(self._counters), now
        actors, shards = self.live("actor", now), self.live("replay", now)
        numbers = {
            "train/updates": float(update),
            "time/decisions_per_s": rate["decisions"],
            "time/inserts_per_s": rate["inserts"],
            "time/updates_per_s": rate["updates"],
            "wait/learner": min(1.0, rate["waited_s"]),
            "replay/size": _total(shards, "size"),
            "replay/bytes": _total(shards, "bytes"),
            "rollout/episodes": self.episodes,
            "actors/count": len(actors),
            "time/restarts": self.restarts,
            **{tag: self._counters[name] for tag, name in FAULTS.items()},
        }
        if self.best_x:  # Mario
            numbers |= {"rollout/clears": self.clears, "rollout/best_x": self.best_x}
        inserts = self._counters["inserts"]
        if inserts:
            numbers["replay/samples_per_insert"] = self._counters["samples"] / inserts
        if actors:
            numbers["wait/actors"] = min(1.0, rate["blocked_s"] / len(actors))
            numbers["actors/parameter_age_updates"] = float(
                np.mean([update - actor.metrics.get("parameter_update", update) for actor in actors])
            )
            numbers["actors/parameter_age_s"] = float(
                np.mean([actor.metrics.get("parameter_age_s", 0.0) for actor in actors])
            )
        if shards:
            numbers["wait/replay_insert"] = min(1.0, rate["insert_blocked_s"] / len(shards))
            numbers["wait/replay_sample"] = min(1.0, rate["sample_blocked_s"] / len(shards))
        numbers |= _rollout("rollout", self._recent)
        numbers |= _rollout("rollout/low_epsilon", self._recent_low)
        for bound, recent in self._by_epsilon.items():
            bucket = _rollout("rollout", recent)
            if bucket:
                bucket["rollout/episodes"] = self._count_by_epsilon[bound]
            for tag in BY_EPSILON & bucket.keys():
                numbers[f"{tag}_by_epsilon/to_{bound:g}"] = bucket[tag]
        for role in ROLES:
            if alive := self.live(role, now):
                numbers[f"memory/{role}_bytes"] = _total(alive, "rss_bytes")
        return numbers

    def ends(self) -> dict[str, npt.NDArray[np.int64]]:
        """Where Mario's last episodes that did not clear ended: largest x, pixels, by TensorBoard tag of the stage."""
        return {f"rollout/end_x/{stage}": np.array(ends) for stage, ends in self._ends.items()}


def _bounded(status: Status) -> Status:
    """With no number so large that sums and means overflow, and no checkpoint can hold them."""
    episodes = (replace(each, episode_return=_clipped(each.episode_return)) for each in status.episodes)
    metrics = {name: _clipped(value) for name, value in status.metrics.items()}
    return replace(status, metrics=metrics, episodes=tuple(episodes))


def _clipped(number: float) -> float:
    return max(-MAX_NUMBER, min(number, MAX_NUMBER))


def _total(statuses: Iterable[Status], metric: str) -> float:
    return sum(status.metrics.get(metric, 0.0) for status in statuses)


def _rollout(prefix: str, episodes: Iterable[Episode]) -> dict[str, float]:
    episodes = list(episodes)
    if not episodes:
        return {}
    numbers = {
        f"{prefix}/ep_rew_mean": float(np.mean([episode.episode_return for episode in episodes])),
        f"{prefix}/ep_len_mean": float(np.mean([episode.length for episode in episodes])),
    }
    if any(episode.stage for episode in episodes):
        numbers[f"{prefix}/max_x_mean"] = float(np.mean([episode.max_x for episode in episodes]))
        numbers[f"{prefix}/max_x"] = max(episode.max_x for episode in episodes)
        numbers[f"{prefix}/clear_rate"] = float(np.mean([episode.cleared for episode in episodes]))
        numbers[f"{prefix}/stages_cleared_mean"] = float(np.mean([episode.stages_cleared for episode in episodes]))
    return numbers


class Meter:
    """Means of numbers that one thread adds and another takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, numbers: Mapping[str, float]) -> None:
        """One more value of each."""
        with self._lock:
            for name, value in numbers.items():
                self._sums[name] += value
                self._counts[name] += 1

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        with self._lock:
            means = {name: self._sums[name] / self._counts[name] for name in self._sums}
            self._sums.clear()
            self._counts.clear()
        return means


def progress_line(numbers: Mapping[str, float]) -> str:
    """The run in one line, from the same numbers that TensorBoard shows."""
    shown: list[tuple[str, str, Callable[[float], str]]] = [
        ("episodes", "rollout/episodes", lambda x: f"{x:.0f}"),
        ("decisions/s", "time/decisions_per_s", lambda x: f"{x:.0f}"),
        ("updates", "train/updates", lambda x: f"{x:.0f}"),
        ("updates/s", "time/updates_per_s", lambda x: f"{x:.1f}"),
        ("replay", "replay/size", lambda x: f"{x:.0f}"),
        ("return", "rollout/ep_rew_mean", lambda x: f"{x:.1f}"),
        ("low-eps return", "rollout/low_epsilon/ep_rew_mean", lambda x: f"{x:.1f}"),
        ("best x", "rollout/best_x", lambda x: f"{x:.0f}"),
        ("clears", "rollout/clears", lambda x: f"{x:.0f}"),
        ("loss", "train/loss", lambda x: f"{x:.4f}"),
    ]
    return "  ".join(f"{label} {form(numbers[tag])}" for label, tag, form in shown if tag in numbers)
