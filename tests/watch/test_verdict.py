"""The rules of the verdict: for each, statuses under which it must apply, and some under which it must not."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from apex_zmq.watch.stats import SILENT_S
from apex_zmq.watch.verdict import RULES, judge

from ..conftest import ROOT
from ..statuses import BALANCED, NOW, REPLAY, Run, changed, view


class Case(NamedTuple):
    """Changes to a balanced run, the rule that applies then, and parts of its text."""

    changes: Run
    rule: str
    parts: tuple[str, ...]


CASES = {
    "balanced": Case({}, "balanced", ("learner 10%, actors 10%", "30 updates/s")),
    "no status yet": Case({name: {} for name in BALANCED}, "no learner", ("no status of a learner", "--parameters")),
    "a shard that never reported": Case(
        {"learner": {"shards": 2}}, "lost shard", ("replay-1 has been silent", "1 of 2 shards", "restart it")
    ),
    "no shard at all": Case({"replay-0": {}, "learner": {"live_replay": 0}}, "lost shard", ("replay-0", "0 of 1")),
    "a shard that only the learner has a status of": Case({"learner": {"shards": 2, "live_replay": 2}}, "balanced", ()),
    "refused messages": Case(
        {"replay-0": {"refused_messages_per_s": 12}}, "refused", ("replay-0 refuses 12 messages", "its log")
    ),
    "refused segments": Case({"replay-0": {"segments_refused_per_s": 3}}, "refused", ("replay-0 refuses 3 ",)),
    "refused connections": Case({"learner": {"refused_peers_per_s": 0.5}}, "refused", ("learner refuses 0.5 ",)),
    "no actor": Case({"actor-0": {}, "actor-1": {}}, "no actor", ("no status of an actor", "--status")),
    "actors without parameters": Case(
        {"actor-0": {}, "actor-1": {}, "actor-9": {"blocked": 0.0}},
        "no actor",
        ("actor-9 has no parameters", "--parameters"),
    ),
    "filling": Case(
        {"replay": {"min_size_left": 2000, "samples_per_s": 0}, "learner": {"waited": 1.0}},
        "filling",
        ("2000 more transitions", "in 5 s at 400/s", "replay.min_size"),
    ),
    "filling without inserts": Case(
        {"replay": {"min_size_left": 2000, "inserts_per_s": 0}, "learner": {"waited": 1.0}},
        "filling",
        ("none arrives", "logs"),
    ),
    "one of two shards refills": Case(
        {"learner": {"shards": 2, "live_replay": 2}, "replay-1": {**REPLAY, "min_size_left": 500}}, "balanced", ()
    ),
    "slow replay": Case(
        {"learner": {"waited": 0.62}, "replay": {"samples_per_s": 576, "idle": 0.05, "cpu": 1.0}},
        "slow replay",
        ("learner waits 62% of the time", "replay-0 is saturated at 9 batches/s and 100% CPU", "add a shard"),
    ),
    "slow replay, on a host without a free core": Case(
        {"learner": {"waited": 0.8}, "replay": {"idle": 0.0, "cpu": 0.3, "host_cpu": 1.0}},
        "slow replay",
        ("and 30% CPU", "on another host"),
    ),
    "a busy replay that is fast enough": Case({"replay": {"idle": 0.05, "cpu": 1.0}}, "balanced", ()),
    "too few actors": Case(
        {"learner": {"waited": 0.6}, "replay": {"sample_blocked": 0.7, "inserts_per_s": 128}},
        "too few actors",
        (
            "learner waits 60%",
            "actors send 128 transitions/s",
            "4.5 samples per insert",
            "9 batches/s",
            "5 actors instead of 2",
        ),
    ),
    "too few actors, on a host without a free core": Case(
        {"learner": {"waited": 0.6}, "replay": {"sample_blocked": 0.7}, "actor": {"host_cpu": 1.0}},
        "too few actors",
        ("on other hosts", "no free core", "replay.samples_per_insert"),
    ),
    "slow decoding": Case(
        {"learner": {"waited": 0.5, "decode": 0.9}}, "slow decoding", ("decoding batches takes 90% of a core",)
    ),
    "batches in flight": Case(
        {"learner": {"waited": 0.5}},
        "starved learner",
        ("learner waits 50%", "3 batches are in flight", "replay.credits"),
    ),
    "no link to the learner": Case(
        {"learner": {"waited": 1.0}, "replay": {"samples_per_s": 0, "in_flight": 0, "link_blocked": 1.0}},
        "starved learner",
        ("replay-0 cannot send batches", "--batches"),
    ),
    "no free core": Case(
        {"learner": {"waited": 0.5, "host_cpu": 0.99}}, "starved learner", ("box has no free core", "other hosts")
    ),
    "parameters published rarely": Case(
        {"learner": {"sync_every": 10_000}},
        "stale parameters",
        ("published every 333 s", "10000 updates at 30/s", "learner.sync_every to 300"),
    ),
    "a slow learner's parameters are not stale": Case(
        {"learner": {"updates_per_s": 0.2, "sync_every": 100}}, "balanced", ()
    ),
    "parameters that do not arrive": Case(
        {"actor-1": {"parameter_age_s": 90}},
        "stale parameters",
        ("actor-1 uses parameters 90 s old", "forwarder"),
    ),
    "throttled actors": Case(
        {"actor": {"blocked": 0.7}, "replay": {"insert_blocked": 0.7}},
        "throttled actors",
        (
            "actors 70%",
            "takes 30 batches/s",
            "4.5 samples per insert allow 400 transitions/s",
            "fewer actors",
        ),
    ),
    "a throttled actor's parameters are not late": Case(
        {"actor": {"blocked": 1.0, "parameter_age_s": 90}, "replay": {"insert_blocked": 0.9}}, "throttled actors", ()
    ),
    "inserts blocked, while the network still buffers": Case(
        {"actor": {"blocked": 0.0}, "replay": {"insert_blocked": 0.6}}, "throttled actors", ("inserts are blocked 60%",)
    ),
    "segments dropped": Case({"actor": {"blocked": 0.0, "dropped_segments_per_s": 2}}, "slow inserts", ()),
    "slow inserts": Case(
        {"actor": {"blocked": 0.6}, "replay": {"cpu": 1.0}},
        "slow inserts",
        ("actors are blocked 60%", "replay-0 stores 400 transitions/s at 100% CPU", "add a shard"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_rule_that_applies_is_the_verdict(name: str) -> None:
    case = CASES[name]
    verdict = judge(view(changed(BALANCED, case.changes)))
    assert verdict.rule == case.rule, verdict
    for part in case.parts:
        assert part in verdict.text
    assert "\n" not in verdict.text


def test_a_silent_learner_is_reported_before_the_other_roles() -> None:
    verdict = judge(view(BALANCED, NOW + SILENT_S + 1))
    assert verdict.rule == "learner silent"
    assert "silent for 11 s" in verdict.text
    assert "--resume" in verdict.text


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES.values()} | {"learner silent"} == {name for name, _ in RULES}


def test_the_document_lists_the_rules_in_order() -> None:
    page = (ROOT / "docs" / "TUNING.md").read_text()
    (table,) = re.findall(r"^\| rule \|.*\n.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert re.findall(r"^\| ([a-z ]+) \|", table, re.MULTILINE) == [name for name, _ in RULES]
