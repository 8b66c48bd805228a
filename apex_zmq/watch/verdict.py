"""Diagnosis of a run: rules over a view that name the bottleneck and the change; the first that holds decides.

docs/TUNING.md, "Who waits for whom", lists the same rules in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apex_zmq.watch.metrics import COUNTERS, REFUSALS
from apex_zmq.watch.view import Process, View, mean, total

WAITS = 0.25  # share of time; a process that waits longer is held up
BUSY = 0.8  # share of time; a process that works longer is saturated
FULL = 0.95  # share of all cores of a host
REFUSED_PER_S = 0.2  # a client with the wrong key tries every two seconds
STALE_S = 60.0  # from one publication of parameters to the next
FEW_UPDATES = 100  # parameters so few updates old are not stale, however long the updates take
LATE_S = 10.0  # beyond two publications: parameters that have not come


@dataclass(frozen=True, slots=True)
class Verdict:
    """rule: name of the rule that holds. text: one line, what is the matter and what to change."""

    rule: str
    text: str


def judge(view: View) -> Verdict:
    """The verdict on a run."""
    return next(Verdict(name, text) for name, rule in RULES if (text := rule(view)) is not None)


def _no_word(view: View) -> str | None:
    if view.learner is None:
        return "no word from a learner yet: all others are heard through it"
    return None


def _learner_away(view: View) -> str | None:
    if view.learner is not None and view.learner.state == "away":
        return (
            f"the learner has been silent for {view.learner.silent_s:.0f} s, and nobody is heard without it: start it "
            "again with --resume; the others wait"
        )
    return None


def _lost_shard(view: View) -> str | None:
    away = [process for process in view.processes if process.role == "replay" and process.state == "away"]
    if not away:
        return None
    return (
        f"{_names(away)} has been silent for {max(each.silent_s for each in away):.0f} s: start it again with the same "
        f"arguments; the run goes on with {len(view.live('replay'))} of {len(away) + len(view.live('replay'))} shards"
    )


def _refused(view: View) -> str | None:
    refusing = {process.name: _refused_per_s(process) for process in view.processes if process.state != "away"}
    worst = max(refusing, key=refusing.__getitem__)
    if refusing[worst] < REFUSED_PER_S:
        return None
    return (
        f"{worst} refuses {_count(refusing[worst])} messages or connections per second: its log names who sends them; "
        "most often a peer with another config, version or key"
    )


def _no_actor(view: View) -> str | None:
    actors = view.live("actor")
    if not actors:
        return "no actor is heard: start some; where they run, --status must reach the learner"
    if all(actor.state == "no parameters" for actor in actors):
        return f"{_names(actors)}: no parameters yet; --parameters must reach the learner"
    return None


def _filling(view: View) -> str | None:
    filling = [shard for shard in view.live("replay") if shard.state == "filling"]
    if not filling or len(filling) < len(view.live("replay")):
        return None
    left, rate = total(filling, "min_size_left"), total(filling, "inserts_per_s")
    when = f"at {_count(rate)}/s in {left / rate:.0f} s" if rate else "and none comes: look at the actors' logs"
    return f"training begins when {left:.0f} more transitions are stored (replay.min_size), {when}"


def _slow_replay(view: View) -> str | None:
    busy = [shard for shard in view.live("replay") if _busy(shard) >= BUSY]
    if _waited(view) < WAITS or not busy:
        return None
    batches = total(busy, "samples_per_s") / _setting(view, "batch_size")
    where = " on another host: its own has no core left" if _full(busy) else ""
    return (
        f"learner waits {_waited(view):.0%} of the time: {_names(busy)} sends {_count(batches)} batches/s at "
        f"{mean(busy, 'cpu'):.0%} CPU; add a shard (replay.shards){where}"
    )


def _too_few_actors(view: View) -> str | None:
    shards, actors, waited = view.live("replay"), view.live("actor"), _waited(view)
    if waited < WAITS or mean(shards, "sample_blocked") < waited / 2:
        return None
    target, inserts = mean(shards, "samples_per_insert_target"), total(shards, "inserts_per_s")
    wanted = f"about {math.ceil(round(len(actors) / max(1 - waited, 0.05), 1))} in place of {len(actors)}"
    where = ", on other hosts: those they are on have no core left" if _full(actors) else ""
    return (
        f"learner waits {waited:.0%} of the time: actors bring {_count(inserts)} transitions/s, at {target:g} samples "
        f"per insert enough for {_count(inserts * target / _setting(view, 'batch_size'))} batches/s; add actors, "
        f"{wanted}{where}, or raise replay.samples_per_insert"
    )


def _slow_decoding(view: View) -> str | None:
    learner = view.learner
    if learner is None or _waited(view) < WAITS or learner.numbers.get("decode", 0.0) < BUSY:
        return None
    return (
        f"learner waits {_waited(view):.0%} of the time: decoding its batches takes {learner.numbers['decode']:.0%} "
        "of a core; smaller frames (env.frame_height, env.frame_width), a faster core, or several ranks under torchrun"
    )


def _starved_learner(view: View) -> str | None:
    shards, waited = view.live("replay"), _waited(view)
    if waited < WAITS:
        return None
    held = mean(shards, "link_blocked") >= waited / 2
    if held and not total(shards, "in_flight") and not total(shards, "samples_per_s"):
        return (
            f"learner waits {waited:.0%} of the time: {_names(shards)} cannot send it batches; --batches and "
            "--priorities must lead both to each other"
        )
    full = {each.host for each in [*shards, view.learner] if each and each.numbers.get("host_cpu", 0.0) >= FULL}
    if full:
        return (
            f"learner waits {waited:.0%} of the time, and {', '.join(sorted(full))} has no core left: move actors to "
            "other hosts, or start fewer"
        )
    return (
        f"learner waits {waited:.0%} of the time: {total(shards, 'in_flight'):.0f} batches are on their way, and no "
        "shard is busy or holds them back; raise replay.credits, or look at the link between replay and learner"
    )


def _stale_parameters(view: View) -> str | None:
    every, rate = _setting(view, "sync_every"), view.learner.numbers.get("updates_per_s", 0.0) if view.learner else 0.0
    if rate <= 0:
        return None
    period_s = every / rate
    if every > FEW_UPDATES and period_s > STALE_S:
        wanted = max(FEW_UPDATES, round(rate * STALE_S / 6))
        return (
            f"parameters are published every {period_s:.0f} s ({every:.0f} updates at {_count(rate)}/s); lower "
            f"learner.sync_every to {wanted} or less"
        )
    playing = [actor for actor in view.live("actor") if actor.state == "working"]
    late = [actor for actor in playing if actor.numbers.get("parameter_age_s", 0.0) > 2 * period_s + LATE_S]
    if not late:
        return None
    return (
        f"{_names(late)} plays with parameters {mean(late, 'parameter_age_s'):.0f} s old, and new ones are published "
        f"every {_count(period_s)} s: look at the link from the learner, or its forwarder"
    )


def _throttled_actors(view: View) -> str | None:
    shards = view.live("replay")
    held = mean(shards, "insert_blocked")  # and not that of actors, who first fill what the network holds
    if held < WAITS:
        return None
    inserts, target = total(shards, "inserts_per_s"), mean(shards, "samples_per_insert_target")
    return (
        f"experience is held back {held:.0%} of the time, actors wait {mean(view.live('actor'), 'blocked'):.0%}: the "
        f"learner takes {_count(_updates(view))} batches/s, at {target:g} samples per insert no more than "
        f"{_count(inserts)} transitions/s; a faster learner, fewer actors, or a lower replay.samples_per_insert"
    )


def _slow_inserts(view: View) -> str | None:
    shards, actors = view.live("replay"), view.live("actor")
    if mean(actors, "blocked") < WAITS and not total(actors, "dropped_segments_per_s"):
        return None
    return (
        f"actors wait {mean(actors, 'blocked'):.0%} of the time, and not for the learner: "
        f"{_names(shards)} stores {_count(total(shards, 'inserts_per_s'))} transitions/s at {mean(shards, 'cpu'):.0%} "
        "CPU; add a shard (replay.shards), or look at the link to the replay"
    )


def _balanced(view: View) -> str | None:
    return (
        f"nobody waits for long (learner {_waited(view):.0%}, actors {mean(view.live('actor'), 'blocked'):.0%} of the "
        f"time): {_count(_updates(view))} updates/s are what the learner can do; more want a faster one, then actors"
    )


RULES: tuple[tuple[str, Callable[[View], str | None]], ...] = (
    ("no word", _no_word),
    ("learner away", _learner_away),
    ("lost shard", _lost_shard),
    ("refused", _refused),
    ("no actor", _no_actor),
    ("filling", _filling),
    ("slow replay", _slow_replay),
    ("too few actors", _too_few_actors),
    ("slow decoding", _slow_decoding),
    ("starved learner", _starved_learner),
    ("stale parameters", _stale_parameters),
    ("throttled actors", _throttled_actors),
    ("slow inserts", _slow_inserts),
    ("balanced", _balanced),
)


def _waited(view: View) -> float:
    return view.learner.numbers.get("waited", 0.0) if view.learner else 0.0


def _updates(view: View) -> float:
    return view.learner.numbers.get("updates_per_s", 0.0) if view.learner else 0.0


def _setting(view: View, setting: str) -> float:
    """A setting as the learner reports it; 1 where it does not."""
    return max(1.0, view.learner.numbers.get(setting, 1.0)) if view.learner else 1.0


def _busy(shard: Process) -> float:
    return 1 - shard.numbers.get("idle", 1.0)


def _full(processes: Sequence[Process]) -> bool:
    """Whether their hosts have no core left."""
    return all(process.numbers.get("host_cpu", 0.0) >= FULL for process in processes)


def _refused_per_s(process: Process) -> float:
    return sum(process.numbers.get(COUNTERS[name].rate, 0.0) for name in REFUSALS)


def _names(processes: Sequence[Process]) -> str:
    first = ", ".join(process.name for process in processes[:3])
    return first if len(processes) <= 3 else f"{first} and {len(processes) - 3} more"


def _count(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
