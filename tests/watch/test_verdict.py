"""The rules of the verdict, each by statuses that must and that must not bring it up."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from apex_zmq.watch.stats import AWAY_S
from apex_zmq.watch.verdict import RULES, judge

from ..conftest import ROOT
from ..statuses import BALANCED, NOW, REPLAY, Run, changed, view


class Case(NamedTuple):
    """What is other than in a balanced run, the rule that holds then, and what its line says."""

    changes: Run
    rule: str
    says: tuple[str, ...]


CASES = {
    "nothing wrong": Case({}, "balanced", ("learner 10%, actors 10%", "30 updates/s")),
    "no word yet": Case({name: {} for name in BALANCED}, "no word", ("no word from a learner",)),
    "a shard that never came": Case(
        {"learner": {"shards": 2}}, "lost shard", ("replay-1 has been silent", "1 of 2 shards", "start it again")
    ),
    "no shard at all": Case({"replay-0": {}, "learner": {"live_replay": 0}}, "lost shard", ("replay-0", "0 of 1")),
    "a shard that only we have not heard yet": Case({"learner": {"shards": 2, "live_replay": 2}}, "balanced", ()),
    "refused messages": Case(
        {"replay-0": {"refused_messages_per_s": 12}}, "refused", ("replay-0 refuses 12 messages", "its log")
    ),
    "refused segments": Case({"replay-0": {"segments_refused_per_s": 3}}, "refused", ("replay-0 refuses 3 ",)),
    "a key that is not let in": Case({"learner": {"refused_peers_per_s": 0.5}}, "refused", ("learner refuses 0.5 ",)),
    "nobody plays": Case({"actor-0": {}, "actor-1": {}}, "no actor", ("no actor is heard", "--status")),
    "actors without parameters": Case(
        {"actor-0": {}, "actor-1": {}, "actor-9": {"blocked": 0.0}},
        "no actor",
        ("actor-9: no parameters", "--parameters"),
    ),
    "filling": Case(
        {"replay": {"min_size_left": 2000, "samples_per_s": 0}, "learner": {"waited": 1.0}},
        "filling",
        ("2000 more transitions", "at 400/s in 5 s", "replay.min_size"),
    ),
    "filling without anything to fill with": Case(
        {"replay": {"min_size_left": 2000, "inserts_per_s": 0}, "learner": {"waited": 1.0}},
        "filling",
        ("none comes", "logs"),
    ),
    "one of two shards fills again": Case(
        {"learner": {"shards": 2, "live_replay": 2}, "replay-1": {**REPLAY, "min_size_left": 500}}, "balanced", ()
    ),
    "slow replay": Case(
        {"learner": {"waited": 0.62}, "replay": {"samples_per_s": 576, "idle": 0.05, "cpu": 1.0}},
        "slow replay",
        ("learner waits 62% of the time", "replay-0 sends 9 batches/s at 100% CPU", "add a shard"),
    ),
    "slow replay, on a crowded host": Case(
        {"learner": {"waited": 0.8}, "replay": {"idle": 0.0, "cpu": 0.3, "host_cpu": 1.0}},
        "slow replay",
        ("at 30% CPU", "on another host"),
    ),
    "a busy replay that suffices": Case({"replay": {"idle": 0.05, "cpu": 1.0}}, "balanced", ()),
    "too few actors": Case(
        {"learner": {"waited": 0.6}, "replay": {"sample_blocked": 0.7, "inserts_per_s": 128}},
        "too few actors",
        (
            "learner waits 60%",
            "actors bring 128 transitions/s",
            "4.5 samples per insert",
            "9 batches/s",
            "5 in place of 2",
        ),
    ),
    "too few actors, and no core for more": Case(
        {"learner": {"waited": 0.6}, "replay": {"sample_blocked": 0.7}, "actor": {"host_cpu": 1.0}},
        "too few actors",
        ("on other hosts", "no core left", "replay.samples_per_insert"),
    ),
    "slow decoding": Case(
        {"learner": {"waited": 0.5, "decode": 0.9}}, "slow decoding", ("decoding its batches takes 90% of a core",)
    ),
    "batches on their way": Case(
        {"learner": {"waited": 0.5}},
        "starved learner",
        ("learner waits 50%", "3 batches are on their way", "replay.credits"),
    ),
    "no way to the learner": Case(
        {"learner": {"waited": 1.0}, "replay": {"samples_per_s": 0, "in_flight": 0, "link_blocked": 1.0}},
        "starved learner",
        ("replay-0 cannot send it batches", "--batches"),
    ),
    "no core left": Case(
        {"learner": {"waited": 0.5, "host_cpu": 0.99}}, "starved learner", ("box has no core left", "other hosts")
    ),
    "parameters published seldom": Case(
        {"learner": {"sync_every": 10_000}},
        "stale parameters",
        ("published every 333 s", "10000 updates at 30/s", "learner.sync_every to 300"),
    ),
    "a slow learner's parameters are not stale": Case(
        {"learner": {"updates_per_s": 0.2, "sync_every": 100}}, "balanced", ()
    ),
    "parameters that do not come": Case(
        {"actor-1": {"parameter_age_s": 90}},
        "stale parameters",
        ("actor-1 plays with parameters 90 s old", "forwarder"),
    ),
    "throttled actors": Case(
        {"actor": {"blocked": 0.7}, "replay": {"insert_blocked": 0.7}},
        "throttled actors",
        (
            "actors wait 70%",
            "takes 30 batches/s",
            "4.5 samples per insert no more than 400 transitions/s",
            "fewer actors",
        ),
    ),
    "a throttled actor's parameters are not late": Case(
        {"actor": {"blocked": 1.0, "parameter_age_s": 90}, "replay": {"insert_blocked": 0.9}}, "throttled actors", ()
    ),
    "experience held back, and in the network still": Case(
        {"actor": {"blocked": 0.0}, "replay": {"insert_blocked": 0.6}}, "throttled actors", ("held back 60%",)
    ),
    "experience dropped": Case({"actor": {"blocked": 0.0, "dropped_segments_per_s": 2}}, "slow inserts", ()),
    "slow inserts": Case(
        {"actor": {"blocked": 0.6}, "replay": {"cpu": 1.0}},
        "slow inserts",
        ("actors wait 60%", "replay-0 stores 400 transitions/s at 100% CPU", "add a shard"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_rule_that_holds_decides(name: str) -> None:
    case = CASES[name]
    verdict = judge(view(changed(BALANCED, case.changes)))
    assert verdict.rule == case.rule, verdict
    for words in case.says:
        assert words in verdict.text
    assert "\n" not in verdict.text


def test_a_learner_that_falls_silent_takes_all_others_along() -> None:
    verdict = judge(view(BALANCED, NOW + AWAY_S + 1))
    assert verdict.rule == "learner away"
    assert "silent for 11 s" in verdict.text
    assert "--resume" in verdict.text


def test_every_rule_is_tried() -> None:
    assert {case.rule for case in CASES.values()} | {"learner away"} == {name for name, _ in RULES}


def test_the_document_has_the_rules_in_their_order() -> None:
    page = (ROOT / "docs" / "TUNING.md").read_text()
    (table,) = re.findall(r"^\| rule \|.*\n.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert re.findall(r"^\| ([a-z ]+) \|", table, re.MULTILINE) == [name for name, _ in RULES]
