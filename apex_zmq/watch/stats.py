"""Statistics of a run for TensorBoard and the progress line, aggregated from the statuses of all roles."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from apex_zmq.envs.info import ENDS, STATISTICS
from apex_zmq.watch import archive
from apex_zmq.watch.metrics import COUNTERS, METRICS, ROLES, Metric, rates
from apex_zmq.wire.messages import Episode, StageArchive, Status

EPISODE_WINDOW = 100  # episodes averaged, as in Stable-Baselines3's rollout/ep_rew_mean
LOW_EPSILON = 0.01  # upper bound of epsilon of the episodes under rollout/low_epsilon
LOW_EPSILON_WINDOW = 20
EPSILON_BOUNDS = (0.001, 0.01, 0.1, 1.0)  # upper bounds of the ranges of epsilon that are averaged separately
EPSILON_WINDOW = 20
BY_EPSILON = {
    "rollout/ep_rew_mean",
    "rollout/episodes",
    *(f"rollout/{statistic.window}" for statistic in STATISTICS if statistic.is_rate),
}
TOTALS = {statistic.total: statistic for statistic in STATISTICS if statistic.total}
STARTED_TOGETHER_S = 60.0  # a process at most this much older than the learner was started with it
MAX_SOURCES = 4096  # limit on remembered processes, and on stages
MAX_NUMBER = float(1 << 53)  # limit on reported values; TensorBoard's axis ends at 2^63
PROGRESS_LOG = "apex_zmq.progress"  # logger of the progress lines
SILENT_S = 10.0  # seconds without a status after which a process is silent


@dataclass
class RunStats:
    """Aggregates the statuses of all roles. Sums of counters continue when a process restarts and counts from 0.

    since: monotonic seconds at which this learner started; counts of older processes up to then are excluded.
    episodes, decisions: of the whole run, including the part before a resume. info: likewise, totals of `envs.info` by
    name. restarts: number of processes that replaced one of the same name.
    """

    since: float = -math.inf
    episodes: int = 0
    decisions: int = 0
    info: dict[str, float] = field(default_factory=dict)
    restarts: int = 0
    _last: dict[tuple[str, int], Status] = field(default_factory=dict)
    _received_at: dict[tuple[str, int], float] = field(default_factory=dict)
    _counters: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0.0))
    _at_summary: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0.0))
    _summary_time: float = field(default_factory=time.monotonic)
    _recent: deque[Episode] = field(default_factory=lambda: deque(maxlen=EPISODE_WINDOW))
    _recent_low: deque[Episode] = field(default_factory=lambda: deque(maxlen=LOW_EPSILON_WINDOW))
    _by_epsilon: dict[float, deque[Episode]] = field(
        default_factory=lambda: {bound: deque(maxlen=EPSILON_WINDOW) for bound in EPSILON_BOUNDS}
    )
    _count_by_epsilon: dict[float, int] = field(default_factory=lambda: dict.fromkeys(EPSILON_BOUNDS, 0))
    _ends: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, status: Status, now: float) -> None:
        """Add one status. now: monotonic seconds."""
        status = _bounded(status)
        key = (status.name, status.incarnation)
        before: dict[str, float] = {}
        if key in self._last:
            before = self._last[key].metrics
            status = replace(status, archive=status.archive or self._last[key].archive)
        elif status.time - status.start_time > now - self.since + STARTED_TOGETHER_S:
            before = status.metrics
        grown = {name: status.metrics.get(name, 0.0) - before.get(name, 0.0) for name in COUNTERS}
        for name, value in grown.items():
            self._counters[name] += value
        self.decisions = min(self.decisions + round(grown["decisions"]), int(MAX_NUMBER))
        if key not in self._last:
            self.restarts += any(name == status.name for name, _ in self._last)
            if len(self._last) >= MAX_SOURCES:
                oldest = min(self._received_at, key=self._received_at.__getitem__)
                del self._last[oldest], self._received_at[oldest]
        self._last[key], self._received_at[key] = status, now
        for episode in status.episodes:
            self.episodes += 1
            for name, statistic in TOTALS.items():
                so_far = [{statistic.entry: self.info[name]}] if name in self.info else []
                if (total := statistic.of([*so_far, episode.info])) is not None:
                    self.info[name] = _clipped(total)
            self._recent.append(episode)
            if episode.epsilon <= LOW_EPSILON:
                self._recent_low.append(episode)
            bucket = next(bound for bound in EPSILON_BOUNDS if episode.epsilon <= bound)
            self._by_epsilon[bucket].append(episode)
            self._count_by_epsilon[bucket] += 1
            known = episode.stage in self._ends or len(self._ends) < MAX_SOURCES
            if episode.stage and known and ENDS.entry in episode.info and not episode.info.get(ENDS.success):
                self._ends.setdefault(episode.stage, deque(maxlen=EPISODE_WINDOW)).append(episode.info[ENDS.entry])

    @property
    def low_epsilon_return(self) -> float | None:
        """Mean return of the newest low-epsilon episodes; None: fewer than `LOW_EPSILON_WINDOW` have ended."""
        recent = list(self._recent_low)  # copied, because another thread may append
        if len(recent) < LOW_EPSILON_WINDOW:
            return None
        return float(np.mean([episode.episode_return for episode in recent]))

    def live(self, role: str, now: float) -> list[Status]:
        """The newest status of each live process of a role; of several with one name, that of the newest process."""
        latest = {key[0]: key for key in sorted(self._received_at, key=self._received_at.__getitem__)}
        return [
            self._last[key]
            for key in latest.values()
            if self._last[key].role == role and now - self._received_at[key] <= SILENT_S
        ]

    def summary(self, now: float, update: int) -> dict[str, float]:
        """The run's curves by TensorBoard tag; rates are measured since the last call. now: monotonic seconds."""
        rate = rates(self._at_summary, self._counters, max(now - self._summary_time, 1e-9))
        self._at_summary, self._summary_time = dict(self._counters), now
        actors = self.live("actor", now)
        numbers = {
            "train/updates": float(update),
            "rollout/episodes": self.episodes,
            "actors/count": len(actors),
            "time/restarts": self.restarts,
        }
        for metric in METRICS:
            if metric.curve is not None:
                value = self._curve(metric, rate, self.live(metric.roles[0], now))
                if value is not None:
                    numbers[metric.curve.tag] = value
        numbers |= {f"rollout/{name}": total for name, total in self.info.items()}
        if self._counters["inserts"]:
            numbers["replay/samples_per_insert"] = self._counters["samples"] / self._counters["inserts"]
        if actors:
            ages = [update - actor.metrics.get("parameter_update", update) for actor in actors]
            numbers["actors/parameter_age_updates"] = float(np.mean(ages))
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

    def _curve(self, metric: Metric, rate: Mapping[str, float], live: Sequence[Status]) -> float | None:
        """The value of `Metric.curve`; None: no live process reports the metric.

        rate: growth per second of each counter, summed over processes. live: statuses of the metric's role.
        """
        assert metric.curve is not None
        values = [status.metrics[metric.name] for status in live if metric.name in status.metrics]
        match metric.curve.how:
            case "rate":
                return rate[metric.rate]
            case "share":
                return min(1.0, rate[metric.rate] / len(live)) if live else None
            case "growth":
                return self._counters[metric.name]
            case "sum":
                return sum(values)
            case "mean":
                return float(np.mean(values)) if values else None

    def archive(self, now: float) -> tuple[StageArchive, ...]:
        """The newest histograms of restarts by stage, summed over live actors. now: monotonic seconds."""
        return archive.total(each for actor in self.live("actor", now) for each in actor.archive)

    def ends(self) -> dict[str, npt.NDArray[np.float64]]:
        """`ENDS.entry` (for Mario: largest x) of the newest unsuccessful episodes, by TensorBoard tag of the stage."""
        return {f"{ENDS.tag}/{stage}": np.array(ends) for stage, ends in self._ends.items()}


def _bounded(status: Status) -> Status:
    """Clip the values of a status, so that sums and means neither overflow nor exceed the range of a checkpoint."""
    episodes = (
        replace(
            each,
            episode_return=_clipped(each.episode_return),
            info={name: _clipped(value) for name, value in each.info.items()},
        )
        for each in status.episodes
    )
    metrics = {name: _clipped(value) for name, value in status.metrics.items()}
    archive = tuple(replace(each, width=_clipped(each.width)) for each in status.archive)
    return replace(status, metrics=metrics, episodes=tuple(episodes), archive=archive)


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
    for statistic in STATISTICS:
        value = statistic.of(episode.info for episode in episodes) if statistic.window else None
        if value is not None:
            numbers[f"{prefix}/{statistic.window}"] = value
    return numbers


class Meter:
    """Means of named numbers; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, numbers: Mapping[str, float]) -> None:
        """Add one value of each number."""
        with self._lock:
            for name, value in numbers.items():
                self._sums[name] += value
                self._counts[name] += 1

    def take(self) -> dict[str, float]:
        """Return the means of the values added since the last call."""
        with self._lock:
            means = {name: self._sums[name] / self._counts[name] for name in self._sums}
            self._sums.clear()
            self._counts.clear()
        return means


def progress_line(numbers: Mapping[str, float]) -> str:
    """Format the main numbers of a run as one line.

    numbers: by TensorBoard tag, from a summary or from the learner's status; absent ones are omitted.
    """
    shown: list[tuple[str, str, Callable[[float], str]]] = [
        ("episodes", "rollout/episodes", lambda x: f"{x:.0f}"),
        ("decisions/s", "time/decisions_per_s", lambda x: f"{x:.0f}"),
        ("updates", "train/updates", lambda x: f"{x:.0f}"),
        ("updates/s", "time/updates_per_s", lambda x: f"{x:.1f}"),
        ("replay", "replay/size", lambda x: f"{x:.0f}"),
        ("return", "rollout/ep_rew_mean", lambda x: f"{x:.1f}"),
        ("low-eps return", "rollout/low_epsilon/ep_rew_mean", lambda x: f"{x:.1f}"),
        *((each.label, f"rollout/{name}", lambda x: f"{x:.0f}") for name, each in TOTALS.items() if each.label),
        ("loss", "train/loss", lambda x: f"{x:.4f}"),
    ]
    return "  ".join(f"{label} {form(numbers[tag])}" for label, tag, form in shown if tag in numbers)
