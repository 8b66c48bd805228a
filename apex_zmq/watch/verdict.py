"""Diagnosis of a run: an ordered table of rules over a view. The first rule that applies is the verdict.

A rule is a function that returns one line (the bottleneck, its evidence, and the setting to change), or None if it does
not apply. docs/TUNING.md, "Finding the bottleneck", lists the same rules in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apex_zmq.watch.metrics import COUNTERS, REFUSALS
from apex_zmq.watch.view import Process, View, mean, total

WAITING = 0.25  # share of time from which a process counts as waiting
BUSY = 0.8  # share of time from which a process counts as saturated
FULL = 0.95  # share of a host's cores from which none counts as free
REFUSED_PER_S = 0.2  # messages and connections; a client with a wrong key retries every two seconds
STALE_S = 60.0  # longest period between publications of parameters
STALE_UPDATES = 100  # publications at most this many updates apart are never stale
LATE_S = 10.0  # beyond two publication periods, parameters of an actor count as late


@dataclass(frozen=True, slots=True)
class Verdict:
    """rule: name of the rule that applies. text: its line: the bottleneck, its evidence, and the change."""

    rule: str
    text: str


def judge(view: View) -> Verdict:
    """Return the first rule that applies to a run, with its text."""
    return next(Verdict(name, text) for name, rule in RULES if (text := rule(view)) is not None)


def _no_learner(view: View) -> str | None:
    if view.learner is None:
        return (
            "no status of a learner has been received, and it relays those of the other roles: start it, or check "
            "--parameters and --keys"
        )
    return None


def _learner_silent(view: View) -> str | None:
    if view.learner is None or view.learner.state != "silent":
        return None
    return (
        f"the learner, which relays the statuses of all roles, has been silent for {view.learner.silent_s:.0f} s: "
        "restart it with --resume; the other roles wait for it"
    )


def _lost_shard(view: View) -> str | None:
    lost = [process for process in view.processes if process.role == "replay" and process.state == "silent"]
    if not lost:
        return None
    live = len(view.live("replay"))
    return (
        f"{_names(lost)} has been silent for {max(each.silent_s for each in lost):.0f} s: restart it with the same "
        f"arguments; the run continues with {live} of {live + len(lost)} shards"
    )


def _refused(view: View) -> str | None:
    rates = {process.name: _refused_per_s(process) for process in view.processes if process.state != "silent"}
    worst = max(rates, key=rates.__getitem__)
    if rates[worst] < REFUSED_PER_S:
        return None
    return (
        f"{worst} refuses {_count(rates[worst])} messages or connections per second: its log names the sender, most "
        "often a peer with another config, version or key"
    )


def _no_actor(view: View) -> str | None:
    actors = view.live("actor")
    if not actors:
        return "no status of an actor has been received: start actors, or check that --status reaches the learner"
    if all(actor.state == "no parameters" for actor in actors):
        return f"{_names(actors)} has no parameters: check that --parameters of the actors reaches the learner"
    return None


def _filling(view: View) -> str | None:
    filling = [shard for shard in view.live("replay") if shard.state == "filling"]
    if not filling or len(filling) < len(view.live("replay")):
        return None
    missing, rate = total(filling, "min_size_left"), total(filling, "inserts_per_s")
    when = f"in {missing / rate:.0f} s at {_count(rate)}/s" if rate else "but none arrives: read the actors' logs"
    return f"training starts when {missing:.0f} more transitions are stored (replay.min_size), {when}"


def _slow_replay(view: View) -> str | None:
    busy = [shard for shard in view.live("replay") if _busy(shard) >= BUSY]
    if _waited(view) < WAITING or not busy:
        return None
    batches = total(busy, "samples_per_s") / _setting(view, "batch_size")
    where = " on another host, because this one has no free core" if _all_full(busy) else ""
    return (
        f"the learner waits {_waited(view):.0%} of the time: {_names(busy)} is saturated at {_count(batches)} "
        f"batches/s and {mean(busy, 'cpu'):.0%} CPU; add a shard (replay.shards){where}"
    )


def _too_few_actors(view: View) -> str | None:
    shards, actors, waited = view.live("replay"), view.live("actor"), _waited(view)
    if waited < WAITING or mean(shards, "sample_blocked") < waited / 2:
        return None
    target, inserts = mean(shards, "samples_per_insert_target"), total(shards, "inserts_per_s")
    batches = inserts * target / _setting(view, "batch_size")
    wanted = math.ceil(round(len(actors) / max(1 - waited, 0.05), 1))
    where = " on other hosts, because theirs have no free core" if _all_full(actors) else ""
    return (
        f"the learner waits {waited:.0%} of the time: the actors send {_count(inserts)} transitions/s, which at "
        f"{target:g} samples per insert suffice for {_count(batches)} batches/s; run about {wanted} actors instead of "
        f"{len(actors)}{where}, or raise replay.samples_per_insert"
    )


def _slow_decoding(view: View) -> str | None:
    learner = view.learner
    if learner is None or _waited(view) < WAITING or learner.numbers.get("decode", 0.0) < BUSY:
        return None
    return (
        f"the learner waits {_waited(view):.0%} of the time: decoding batches takes {learner.numbers['decode']:.0%} "
        "of a core; use smaller frames (env.frame_height, env.frame_width), a faster core, or several ranks (torchrun)"
    )


def _starved_learner(view: View) -> str | None:
    shards, waited = view.live("replay"), _waited(view)
    if waited < WAITING:
        return None
    unsent = mean(shards, "link_blocked") >= waited / 2
    if unsent and not total(shards, "in_flight") and not total(shards, "samples_per_s"):
        return (
            f"the learner waits {waited:.0%} of the time: {_names(shards)} cannot send batches; check the addresses "
            "that --batches and --priorities give the learner and the replay"
        )
    full = {each.host for each in [*shards, view.learner] if each and each.numbers.get("host_cpu", 0.0) >= FULL}
    if full:
        return (
            f"the learner waits {waited:.0%} of the time, and {', '.join(sorted(full))} has no free core: move actors "
            "to other hosts, or run fewer"
        )
    return (
        f"the learner waits {waited:.0%} of the time: {total(shards, 'in_flight'):.0f} batches are in flight, and no "
        "shard is saturated or limited by the ratio; raise replay.credits, or check the link from replay to learner"
    )


def _stale_parameters(view: View) -> str | None:
    every, rate = _setting(view, "sync_every"), _updates(view)
    if rate <= 0:
        return None
    period_s = every / rate
    if every > STALE_UPDATES and period_s > STALE_S:
        return (
            f"parameters are published every {period_s:.0f} s ({every:.0f} updates at {_count(rate)}/s): lower "
            f"learner.sync_every to {max(STALE_UPDATES, round(rate * STALE_S / 6))} or less"
        )
    working = [actor for actor in view.live("actor") if actor.state == "working"]
    late = [actor for actor in working if actor.numbers.get("parameter_age_s", 0.0) > 2 * period_s + LATE_S]
    if not late:
        return None
    return (
        f"{_names(late)} uses parameters {mean(late, 'parameter_age_s'):.0f} s old, although new ones are published "
        f"every {_count(period_s)} s: check the link from the learner, or the forwarder"
    )


def _throttled_actors(view: View) -> str | None:
    shards = view.live("replay")
    blocked = mean(shards, "insert_blocked")  # actors block later, when the network buffers are full
    if blocked < WAITING:
        return None
    inserts, target = total(shards, "inserts_per_s"), mean(shards, "samples_per_insert_target")
    return (
        f"inserts are blocked {blocked:.0%} of the time, actors {mean(view.live('actor'), 'blocked'):.0%}: the learner "
        f"takes {_count(_updates(view))} batches/s, which at {target:g} samples per insert allow {_count(inserts)} "
        "transitions/s; use a faster learner, fewer actors, or a lower replay.samples_per_insert"
    )


def _slow_inserts(view: View) -> str | None:
    shards, actors = view.live("replay"), view.live("actor")
    if mean(actors, "blocked") < WAITING and not total(actors, "dropped_segments_per_s"):
        return None
    return (
        f"actors are blocked {mean(actors, 'blocked'):.0%} of the time, but not by the ratio: {_names(shards)} stores "
        f"{_count(total(shards, 'inserts_per_s'))} transitions/s at {mean(shards, 'cpu'):.0%} CPU; add a shard "
        "(replay.shards), or check the link to the replay"
    )


def _balanced(view: View) -> str | None:
    return (
        f"no role waits long (learner {_waited(view):.0%}, actors {mean(view.live('actor'), 'blocked'):.0%} of the "
        f"time): the learner is at its limit of {_count(_updates(view))} updates/s; for more, use a faster learner, "
        "then more actors"
    )


RULES: tuple[tuple[str, Callable[[View], str | None]], ...] = (
    ("no learner", _no_learner),
    ("learner silent", _learner_silent),
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
    """A setting as reported by the learner, at least 1; 1 if it is not reported."""
    return max(1.0, view.learner.numbers.get(setting, 1.0)) if view.learner else 1.0


def _busy(shard: Process) -> float:
    return 1 - shard.numbers.get("idle", 1.0)


def _all_full(processes: Sequence[Process]) -> bool:
    """Whether none of the processes' hosts has a free core."""
    return all(process.numbers.get("host_cpu", 0.0) >= FULL for process in processes)


def _refused_per_s(process: Process) -> float:
    return sum(process.numbers.get(COUNTERS[name].rate, 0.0) for name in REFUSALS)


def _names(processes: Sequence[Process]) -> str:
    first = ", ".join(process.name for process in processes[:3])
    return first if len(processes) <= 3 else f"{first} and {len(processes) - 3} more"


def _count(value: float) -> str:
    """Format with three significant digits, or as an integer from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
