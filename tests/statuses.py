"""Statuses of a made-up run, as a learner relays them: two words of each process, by what has grown between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apex_zmq.watch.metrics import COUNTERS
from apex_zmq.watch.view import View, Watch
from apex_zmq.wire.messages import Status

BEGAN, BEFORE, NOW = 1000.0, 1100.0, 1102.0  # unix seconds at the sender; monotonic ones here are equal
SECONDS = NOW - BEFORE


def status(name: str, time: float = NOW, **changes: Any) -> Status:
    role = name.partition("-")[0]
    fields: dict[str, Any] = {"host": "box", "pid": 7, "incarnation": 1, "start_time": BEGAN, "progress_time": time}
    return Status(role=role, name=name, time=time, **({**fields, "metrics": {}} | changes))  # type: ignore[arg-type]


def words(name: str, numbers: Mapping[str, float], **fields: Any) -> tuple[Status, Status]:
    """Two statuses of a process, two seconds apart, of which a view has these numbers.

    fields: of both statuses.
    """
    before, after = {}, {}
    for number, value in numbers.items():
        counter = f"{number}_s" if f"{number}_s" in COUNTERS else number.removesuffix("_per_s")
        if counter in COUNTERS and counter != number:
            before[counter], after[counter] = 50.0, 50.0 + value * SECONDS
        else:
            before[number] = after[number] = value
    return status(name, BEFORE, **fields, metrics=before), status(name, NOW, **fields, metrics=after)


# A run in which nobody waits for long: two actors, one shard, a learner.
LEARNER: dict[str, float] = {
    "waited": 0.1,
    "updates_per_s": 30,
    "cpu": 1,
    "decode": 0.2,
    "decoded": 2,
    "shards": 1,
    "batch_size": 64,
    "sync_every": 50,
    "live_replay": 1,
    "live_actor": 2,
    "train/updates": 1000,
}
REPLAY: dict[str, float] = {
    "inserts_per_s": 400,
    "samples_per_s": 1800,
    "idle": 0.8,
    "insert_blocked": 0.1,
    "sample_blocked": 0.1,
    "link_blocked": 0.5,
    "cpu": 0.2,
    "in_flight": 3,
    "samples_per_insert_target": 4.5,
    "min_size_left": 0,
    "size": 5000,
}
ACTOR: dict[str, float] = {"decisions_per_s": 200, "blocked": 0.1, "parameter_update": 990, "parameter_age_s": 1}
Run = dict[str, dict[str, float]]
BALANCED: Run = {"learner": LEARNER, "replay-0": REPLAY, "actor-0": ACTOR, "actor-1": ACTOR}


def changed(run: Run, changes: Run) -> Run:
    """A run in which some processes have other numbers; a role names all of its processes, no numbers leave one out."""
    made = {
        name: numbers | changes.get(name.partition("-")[0], {}) | changes.get(name, {}) for name, numbers in run.items()
    }
    made |= {name: numbers for name, numbers in changes.items() if "-" in name and name not in run}
    return {name: numbers for name, numbers in made.items() if changes.get(name) != {}}


def watch(run: Run) -> Watch:
    watch = Watch(since=BEFORE)
    for name, numbers in run.items():
        for each in words(name, numbers):
            watch.add(each, each.time)
    return watch


def view(run: Run, now: float = NOW) -> View:
    return watch(run).view(now)
