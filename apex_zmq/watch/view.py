"""The state of a run, derived from the statuses that its learner relays, as plain data for rules, tables and JSON."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from apex_zmq.watch.metrics import SHARES, rates
from apex_zmq.watch.stats import AWAY_S, EPSILON_BOUNDS, MAX_SOURCES
from apex_zmq.wire.messages import Status

WINDOW_S = 10.0  # over which rates and shares are taken
FORGET_S = 300.0  # after which an actor that is away is dropped
STUCK_S = 10.0  # without progress and without a known reason
HELD = 0.5  # share of time; a process that waits longer is shown as waiting

State = Literal["working", "throttled", "blocked", "waiting for batches", "no parameters", "filling", "stuck", "away"]
ORDER = ("learner", "replay", "actor", "forwarder")


@dataclass(frozen=True, slots=True)
class Refused:
    """Segments of an actor that a shard has refused since it started, and why it refused the last one."""

    actor: str
    segments: int
    reason: str


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the run.

    age_s: seconds since its start. silent_s: seconds since its last status.
    numbers: the metrics of its newest status (docs/PROTOCOL.md). For each metric X that counts, X_per_s is its growth
        per second; for one that counts seconds, X_s, there is X, a share of time (of cpu_s: cores). And sample_age_s,
        samples_per_insert of a shard; parameter_age_updates of an actor. What is not known yet is not there.
    refusals: of a shard, the latest last.
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
    """Episodes of an epsilon up to a bound, and above the next lower bound.

    episodes: since the learner began. mean_return, clear_rate: of the last ones; clear_rate None outside Mario.
    """

    up_to: float
    episodes: int
    mean_return: float
    clear_rate: float | None


@dataclass(frozen=True, slots=True)
class View:
    """The run now. run: the learner's own numbers, by TensorBoard tag. processes: the learner first."""

    run: Mapping[str, float]
    processes: tuple[Process, ...]
    buckets: tuple[Bucket, ...]

    @property
    def learner(self) -> Process | None:
        """The learner; None before its first status."""
        return next((process for process in self.processes if process.role == "learner"), None)

    def live(self, role: str) -> list[Process]:
        """The processes of a role that are not away."""
        return [process for process in self.processes if process.role == role and process.state != "away"]


def mean(processes: Iterable[Process], number: str) -> float:
    """Mean over the processes that report the number; 0 where none does."""
    known = [process.numbers[number] for process in processes if number in process.numbers]
    return sum(known) / len(known) if known else 0.0


def total(processes: Iterable[Process], number: str) -> float:
    """Sum over the processes that report the number."""
    return sum(process.numbers.get(number, 0.0) for process in processes)


@dataclass
class Watch:
    """The statuses of the last seconds, by process.

    since: monotonic seconds at which listening started.
    """

    since: float
    _heard: dict[str, deque[tuple[float, Status]]] = field(default_factory=dict)

    def add(self, status: Status, now: float) -> None:
        """Add a relayed status; of processes of one name the one started last counts. now: monotonic seconds."""
        past = self._heard.get(status.name)
        if past is None:
            if len(self._heard) >= MAX_SOURCES:
                del self._heard[min(self._heard, key=lambda name: self._heard[name][-1][0])]
            past = self._heard[status.name] = deque()
        if past and past[-1][1].incarnation != status.incarnation:
            heard_at, newest = past[-1]
            if status.start_time < newest.start_time and now - heard_at <= AWAY_S:
                return  # of the process before
            past.clear()
        past.append((now, status))
        while len(past) > 2 and past[1][0] <= now - WINDOW_S:
            past.popleft()

    def complete(self, seconds: float) -> bool:
        """Whether all processes that the learner counts have reported twice, and the learner over `seconds`."""
        past = next((past for past in self._heard.values() if past[-1][1].role == "learner"), None)
        if past is None or past[-1][0] - past[0][0] < seconds:
            return False
        learner = past[-1][1]
        known = sum(round(value) for name, value in learner.metrics.items() if name.startswith("live_"))
        measured = sum(len(past) > 1 for past in self._heard.values() if past[-1][1].role != "learner")
        return measured >= known

    def view(self, now: float) -> View:
        """The run now."""
        processes = {
            name: _process(past, now)
            for name, past in self._heard.items()
            if now - past[-1][0] <= FORGET_S or past[-1][1].role in ("learner", "replay")
        }
        learner = next((process for process in processes.values() if process.role == "learner"), None)
        told = learner.numbers if learner is not None else {}
        processes |= {name: _missing(name, now - self.since) for name in _lost_shards(told, processes)}
        run = {name: value for name, value in told.items() if "/" in name or name == "decisions"}
        return View(
            run=run,
            processes=tuple(_related(each, run, processes.values()) for each in sorted(processes.values(), key=_place)),
            buckets=tuple(_buckets(run)),
        )


def _place(process: Process) -> tuple[int, str, int, str]:
    """Where a process stands among all: by role, then by name, whose number counts as one."""
    prefix, _, number = process.name.rpartition("-")
    return ORDER.index(process.role), prefix, int(number) if number.isdecimal() else 0, process.name


def _process(past: deque[tuple[float, Status]], now: float) -> Process:
    heard_at, newest = past[-1]
    first = past[0][1]
    growth = rates(first.metrics, newest.metrics, newest.time - first.time)  # by the sender's own clock
    # A share is a little more than the whole when a wait began before the first of the two was sent.
    shares = {name: min(1.0, growth[name]) for name in SHARES & growth.keys()}
    numbers = {**newest.metrics, **growth, **shares}
    if numbers.get("inserts"):
        numbers["samples_per_insert"] = numbers.get("samples", 0.0) / numbers["inserts"]
    if numbers.get("samples") and numbers.get("inserts_per_s"):
        numbers["sample_age_s"] = numbers.get("sample_age", 0.0) / numbers["inserts_per_s"]
    silent_s = now - heard_at
    return Process(
        role=newest.role,
        name=newest.name,
        host=newest.host,
        pid=newest.pid,
        age_s=newest.time - newest.start_time,
        silent_s=silent_s,
        state="away" if silent_s > AWAY_S else _state(newest, numbers),
        numbers=numbers,
        refusals=tuple(Refused(each.actor, each.segments, each.reason) for each in newest.refusals),
    )


def _state(status: Status, numbers: Mapping[str, float]) -> State:
    """The state of a live process, from its own status."""
    if status.role == "actor" and "parameter_update" not in numbers:
        return "no parameters"
    if status.role == "replay" and numbers.get("min_size_left", 0.0) > 0:
        return "filling"
    if status.role == "learner" and numbers.get("waited", 0.0) >= HELD:
        return "waiting for batches"
    if status.role == "actor" and numbers.get("blocked", 0.0) >= HELD:
        return "blocked"
    if status.role in ("actor", "learner") and status.time - status.progress_time > STUCK_S:
        return "stuck"
    return "working"


def _lost_shards(told: Mapping[str, float], heard: Mapping[str, Process]) -> list[str]:
    """Names of configured shards without a status here or, lately, at the learner."""
    names = [f"replay-{shard}" for shard in range(min(round(told.get("shards", 0.0)), MAX_SOURCES))]
    live = sum(name in heard and heard[name].state != "away" for name in names)
    return [name for name in names if name not in heard] if live >= told.get("live_replay", math.inf) else []


def _missing(name: str, silent_s: float) -> Process:
    return Process("replay", name, host="", pid=0, age_s=0.0, silent_s=silent_s, state="away", numbers={})


def _related(process: Process, run: Mapping[str, float], processes: Iterable[Process]) -> Process:
    """Add what needs other processes: whether the governor blocks an actor, and its parameters' age in updates."""
    if process.role != "actor" or process.state == "away":
        return process
    numbers, state = dict(process.numbers), process.state
    if "parameter_update" in numbers and "train/updates" in run:
        numbers["parameter_age_updates"] = max(0.0, run["train/updates"] - numbers["parameter_update"])
    shards = [each for each in processes if each.role == "replay" and each.state != "away"]
    if state == "blocked" and mean(shards, "insert_blocked") >= numbers["blocked"] / 2:
        state = "throttled"
    return replace(process, state=state, numbers=numbers)


def _buckets(run: Mapping[str, float]) -> Iterable[Bucket]:
    for bound in EPSILON_BOUNDS:
        end = f"_by_epsilon/to_{bound:g}"
        if f"rollout/ep_rew_mean{end}" in run:
            yield Bucket(
                up_to=bound,
                episodes=round(run.get(f"rollout/episodes{end}", 0.0)),
                mean_return=run[f"rollout/ep_rew_mean{end}"],
                clear_rate=run.get(f"rollout/clear_rate{end}"),
            )
