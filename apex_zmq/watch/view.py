"""The state of a run as plain data for rules, tables and JSON, derived from the statuses that the learner relays."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from apex_zmq.watch.metrics import SHARES, rates
from apex_zmq.watch.stats import EPSILON_BOUNDS, MAX_SOURCES, SILENT_S
from apex_zmq.wire.messages import StageArchive, Status

WINDOW_S = 10.0  # interval over which rates and shares are measured
FORGET_S = 300.0  # seconds without a status after which an actor or forwarder is dropped
STUCK_S = 10.0  # seconds without progress after which a process that does not wait is stuck
WAITING = 0.5  # share of time from which a process is shown as waiting

State = Literal["working", "throttled", "blocked", "waiting for batches", "no parameters", "filling", "stuck", "silent"]
ORDER = ("learner", "replay", "actor", "forwarder")


@dataclass(frozen=True, slots=True)
class Refused:
    """Number of segments of an actor that a shard has refused since it started, and the reason of the last refusal."""

    actor: str
    segments: int
    reason: str


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the run.

    age_s: seconds since its start. silent_s: seconds since its last status.
    numbers: metrics of its newest status (docs/PROTOCOL.md), and derived numbers; unknown ones are absent. A counter X
        also has X_per_s, its growth per second; a counter of seconds X_s has X, the share of time (cpu: cores). Shards
        also have samples_per_insert and sample_age_s, actors parameter_age_updates.
    refusals: of a shard; the newest is last.
    """

    role: str
    name: str
    host: str
    pid: int
    age_s: float
    silent_s: float
    state: State
    numbers: Mapping[str, float]
    refusals: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class Bucket:
    """Statistics of the episodes in one range of epsilon.

    up_to: upper bound of the range, inclusive; the lower one is the next smaller bound. episodes: number since the
    learner started. mean_return, clear_rate: of the newest episodes. clear_rate: None if the environment has none.
    """

    up_to: float
    episodes: int
    mean_return: float
    clear_rate: float | None


@dataclass(frozen=True, slots=True)
class Stage:
    """Histograms of restarts in one stage, summed over actors, with the fields of StageArchive (docs/PROTOCOL.md)."""

    stage: str
    width: float
    frontier: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Restarts:
    """Episodes begun from saved states, of all actors.

    share: of all decisions, 0 to 1.
    begun, passes: episodes since the learner started, and those that passed; those that repeat a path never pass.
    cells, bytes: of the archives of the live actors.
    """

    share: float
    begun: int
    passes: int
    cells: int
    bytes: int
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Snapshot of a run.

    run: the learner's curves, by TensorBoard tag, and `decisions`. processes: by role, the learner first.
    restarts: None: not in use.
    """

    run: Mapping[str, float]
    processes: tuple[Process, ...]
    buckets: tuple[Bucket, ...]
    restarts: Restarts | None = None

    @property
    def learner(self) -> Process | None:
        """The learner; None before its first status."""
        return next((process for process in self.processes if process.role == "learner"), None)

    def live(self, role: str) -> list[Process]:
        """The processes of a role that are not silent."""
        return [process for process in self.processes if process.role == role and process.state != "silent"]


def mean(processes: Iterable[Process], number: str) -> float:
    """Mean over the processes that report the number; 0 if none does."""
    known = [process.numbers[number] for process in processes if number in process.numbers]
    return sum(known) / len(known) if known else 0.0


def total(processes: Iterable[Process], number: str) -> float:
    """Sum over the processes that report the number."""
    return sum(process.numbers.get(number, 0.0) for process in processes)


@dataclass
class Watch:
    """Keeps the statuses of the last `WINDOW_S` seconds, by process name, with their times of arrival.

    since: monotonic seconds at which the subscription started.
    """

    since: float
    _statuses: dict[str, deque[tuple[float, Status]]] = field(default_factory=dict)

    def add(self, status: Status, now: float) -> None:
        """Add a relayed status. Of several processes with one name, the one started last is kept.

        now: monotonic seconds.
        """
        past = self._statuses.get(status.name)
        if past is None:
            if len(self._statuses) >= MAX_SOURCES:
                del self._statuses[min(self._statuses, key=lambda name: self._statuses[name][-1][0])]
            past = self._statuses[status.name] = deque()
        if past and past[-1][1].incarnation != status.incarnation:
            received_at, newest = past[-1]
            if status.start_time < newest.start_time and now - received_at <= SILENT_S:
                return  # a late status of the predecessor
            past.clear()
        past.append((now, status))
        while len(past) > 2 and past[1][0] <= now - WINDOW_S:
            past.popleft()

    def complete(self, seconds: float) -> bool:
        """Whether every process that the learner counts has two statuses, and the learner's are `seconds` apart."""
        past = self._learner()
        if past is None or past[-1][0] - past[0][0] < seconds:
            return False
        learner = past[-1][1]
        known = sum(round(value) for name, value in learner.metrics.items() if name.startswith("live_"))
        measured = sum(len(past) > 1 for past in self._statuses.values() if past[-1][1].role != "learner")
        return measured >= known

    def _learner(self) -> deque[tuple[float, Status]] | None:
        """The learner's statuses; None before the first."""
        return next((past for past in self._statuses.values() if past[-1][1].role == "learner"), None)

    def view(self, now: float) -> View:
        """Snapshot of the run. now: monotonic seconds."""
        processes = {
            name: _process(past, now)
            for name, past in self._statuses.items()
            if now - past[-1][0] <= FORGET_S or past[-1][1].role in ("learner", "replay")
        }
        learner = next((process for process in processes.values() if process.role == "learner"), None)
        reported = learner.numbers if learner is not None else {}
        processes |= {name: _missing(name, now - self.since) for name in _missing_shards(reported, processes)}
        run = {name: value for name, value in reported.items() if "/" in name or name == "decisions"}
        ordered = sorted(processes.values(), key=_sort_key)
        return View(
            run=run,
            processes=tuple(_with_relations(each, run, ordered) for each in ordered),
            buckets=tuple(_buckets(run)),
            restarts=_restarts(run, past[-1][1].archive if (past := self._learner()) is not None else ()),
        )


def _sort_key(process: Process) -> tuple[int, str, int, str]:
    """Sort by role, then by name, with the number at its end as a number."""
    prefix, _, number = process.name.rpartition("-")
    return ORDER.index(process.role), prefix, int(number) if number.isdecimal() else 0, process.name


def _process(past: deque[tuple[float, Status]], now: float) -> Process:
    received_at, newest = past[-1]
    first = past[0][1]
    growth = rates(first.metrics, newest.metrics, newest.time - first.time)  # by the sender's own clock
    # A share exceeds 1 slightly if a wait began before the first of the two statuses was sent.
    shares = {name: min(1.0, growth[name]) for name in SHARES & growth.keys()}
    numbers = {**newest.metrics, **growth, **shares}
    if numbers.get("inserts"):
        numbers["samples_per_insert"] = numbers.get("samples", 0.0) / numbers["inserts"]
    if numbers.get("samples") and numbers.get("inserts_per_s"):
        numbers["sample_age_s"] = numbers.get("sample_age", 0.0) / numbers["inserts_per_s"]
    silent_s = now - received_at
    return Process(
        role=newest.role,
        name=newest.name,
        host=newest.host,
        pid=newest.pid,
        age_s=newest.time - newest.start_time,
        silent_s=silent_s,
        state="silent" if silent_s > SILENT_S else _state(newest, numbers),
        numbers=numbers,
        refusals=tuple(Refused(each.actor, each.segments, each.reason) for each in newest.refusals),
    )


def _state(status: Status, numbers: Mapping[str, float]) -> State:
    """The state of a live process, from its own status."""
    if status.role == "actor" and "parameter_update" not in numbers:
        return "no parameters"
    if status.role == "replay" and numbers.get("min_size_left", 0.0) > 0:
        return "filling"
    if status.role == "learner" and numbers.get("waited", 0.0) >= WAITING:
        return "waiting for batches"
    if status.role == "actor" and numbers.get("blocked", 0.0) >= WAITING:
        return "blocked"
    if status.role in ("actor", "learner") and status.time - status.progress_time > STUCK_S:
        return "stuck"
    return "working"


def _missing_shards(reported: Mapping[str, float], known: Mapping[str, Process]) -> list[str]:
    """Names of configured shards without any status; empty while the learner counts more live shards than are known.

    reported: numbers of the learner. known: processes by name.
    """
    names = [f"replay-{shard}" for shard in range(min(round(reported.get("shards", 0.0)), MAX_SOURCES))]
    live = sum(name in known and known[name].state != "silent" for name in names)
    return [name for name in names if name not in known] if live >= reported.get("live_replay", math.inf) else []


def _missing(name: str, silent_s: float) -> Process:
    return Process("replay", name, host="", pid=0, age_s=0.0, silent_s=silent_s, state="silent", numbers={})


def _with_relations(process: Process, run: Mapping[str, float], processes: Iterable[Process]) -> Process:
    """Add what depends on other processes: the state throttled of an actor, and its parameters' age in updates."""
    if process.role != "actor" or process.state == "silent":
        return process
    numbers, state = dict(process.numbers), process.state
    if "parameter_update" in numbers and "train/updates" in run:
        numbers["parameter_age_updates"] = max(0.0, run["train/updates"] - numbers["parameter_update"])
    shards = [each for each in processes if each.role == "replay" and each.state != "silent"]
    if state == "blocked" and mean(shards, "insert_blocked") >= numbers["blocked"] / 2:
        state = "throttled"
    return replace(process, state=state, numbers=numbers)


def _buckets(run: Mapping[str, float]) -> Iterable[Bucket]:
    for bound in EPSILON_BOUNDS:
        suffix = f"_by_epsilon/to_{bound:g}"
        if f"rollout/ep_rew_mean{suffix}" in run:
            yield Bucket(
                up_to=bound,
                episodes=round(run.get(f"rollout/episodes{suffix}", 0.0)),
                mean_return=run[f"rollout/ep_rew_mean{suffix}"],
                clear_rate=run.get(f"rollout/clear_rate{suffix}"),
            )


def _restarts(run: Mapping[str, float], archive: Sequence[StageArchive]) -> Restarts | None:
    """The restarts of all actors, as the learner reports them; None: no actor has begun one or saved a state."""
    begun = run.get("restarts/episodes", 0.0) + run.get("restarts/explorations", 0.0)
    cells = run.get("restarts/cells", 0.0)
    if not begun and not cells:
        return None
    decisions_per_s = run.get("time/decisions_per_s", 0.0)
    return Restarts(
        share=min(1.0, run.get("restarts/decisions_per_s", 0.0) / decisions_per_s) if decisions_per_s else 0.0,
        begun=round(begun),
        passes=round(run.get("restarts/passes", 0.0)),
        cells=round(cells),
        bytes=round(run.get("restarts/bytes", 0.0)),
        stages=tuple(Stage(each.stage, each.width, each.frontier, each.ends) for each in archive),
    )
