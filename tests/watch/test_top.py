"""apex-top: from relayed statuses to the view, the rendered table, the JSON output and the program."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from apex_zmq.cli import tools
from apex_zmq.net.keys import make_client, make_servers
from apex_zmq.watch import top
from apex_zmq.watch.stats import SILENT_S
from apex_zmq.watch.verdict import Verdict, judge
from apex_zmq.watch.view import FORGET_S, WINDOW_S, Process, View, Watch
from apex_zmq.wire.body import encode
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import MAX_COUNT, Refusal, StageArchive

from ..channels import publisher_of
from ..conftest import ROOT, environment, free_tcp_address
from ..statuses import ACTOR, BALANCED, BEFORE, LEARNER, NOW, REPLAY, SECONDS, changed, status, view, watch, words

MARIO = {
    "rollout/episodes": 12.0,
    "rollout/best_x": 3161.0,
    "rollout/clears": 2.0,
    "rollout/ep_rew_mean_by_epsilon/to_0.001": 250.5,
    "rollout/clear_rate_by_epsilon/to_0.001": 0.25,
    "rollout/episodes_by_epsilon/to_0.001": 8.0,
    "rollout/ep_rew_mean_by_epsilon/to_1": -3.0,
    "rollout/clear_rate_by_epsilon/to_1": 0.0,
    "rollout/episodes_by_epsilon/to_1": 4.0,
}


def named(view: View, name: str) -> Process:
    (process,) = (process for process in view.processes if process.name == name)
    return process


# Statuses to view.


def test_rates_and_shares_are_measured_over_the_window_by_the_senders_clock() -> None:
    statuses = Watch(since=0.0)
    for second in range(30):  # blocked for the first 20 seconds; relayed unevenly
        metrics = {"decisions": 100.0 * second, "blocked_s": min(second, 20.0), "rss_bytes": 5e8}
        statuses.add(status("actor-0", 5000.0 + second, metrics=metrics), second + 0.3 * (second % 3))
    numbers = named(statuses.view(29.5), "actor-0").numbers
    assert numbers["decisions_per_s"] == pytest.approx(100)
    assert numbers["blocked"] == pytest.approx(1 / WINDOW_S, abs=0.1)
    assert (numbers["rss_bytes"], numbers["decisions"]) == (5e8, 2900)


def test_a_process_with_one_status_has_no_rates() -> None:
    statuses = Watch(since=0.0)
    statuses.add(words("actor-0", {"decisions_per_s": 10, "blocked": 0.9})[0], BEFORE)
    process = named(statuses.view(BEFORE), "actor-0")
    assert not {"decisions_per_s", "blocked"} & process.numbers.keys()
    assert "decisions" in process.numbers


def test_a_restarted_process_replaces_its_predecessor() -> None:
    statuses = watch({"actor-0": {**ACTOR, "decisions_per_s": 100}})
    for each in words("actor-0", {"decisions_per_s": 30}, incarnation=2, pid=8, start_time=1050.0):
        statuses.add(each, NOW)
    statuses.add(status("actor-0", NOW, metrics={"decisions": 9e9}), NOW)  # a late status of the first
    process = named(statuses.view(NOW), "actor-0")
    assert (process.pid, process.numbers["decisions_per_s"], process.age_s) == (8, 30, 52)


def test_a_process_restarted_with_an_earlier_clock_is_shown_once_its_predecessor_is_silent() -> None:
    statuses = watch({"actor-0": ACTOR})
    again = status("actor-0", NOW + 60, incarnation=2, pid=8, start_time=0.0)
    statuses.add(again, NOW + 1)
    assert named(statuses.view(NOW + 1), "actor-0").pid == 7
    statuses.add(again, NOW + 60)
    assert named(statuses.view(NOW + 60), "actor-0").pid == 8


@pytest.mark.parametrize(
    ("name", "numbers", "fields", "state"),
    [
        ("actor-0", ACTOR, {}, "working"),
        ("actor-0", {"blocked": 0.0}, {}, "no parameters"),
        ("actor-0", ACTOR, {"progress_time": NOW - 60}, "stuck"),
        ("replay-0", {**REPLAY, "min_size_left": 1}, {}, "filling"),
        ("learner", LEARNER, {}, "working"),
        ("learner", {**LEARNER, "waited": 0.9}, {"progress_time": NOW - 60}, "waiting for batches"),
        ("learner", LEARNER, {"progress_time": NOW - 60}, "stuck"),
    ],
)
def test_process_state_follows_from_its_status(
    name: str, numbers: dict[str, float], fields: dict[str, Any], state: str
) -> None:
    statuses = Watch(since=BEFORE)
    for each in words(name, numbers, **fields):
        statuses.add(each, each.time)
    assert named(statuses.view(NOW), name).state == state
    assert named(statuses.view(NOW + SILENT_S + 1), name).state == "silent"


def test_an_actor_is_throttled_if_it_is_blocked_by_the_governor() -> None:
    waiting = changed(BALANCED, {"actor-0": {"blocked": 0.9}})
    assert named(view(waiting), "actor-0").state == "blocked"
    governed = changed(waiting, {"replay": {"insert_blocked": 0.8}})
    assert [named(view(governed), name).state for name in ("actor-0", "actor-1")] == ["throttled", "working"]


def test_numbers_that_depend_on_other_processes() -> None:
    run = changed(BALANCED, {"replay": {"inserts": 1000, "samples": 4000, "sample_age": 5000}})
    shown = view(run)
    assert named(shown, "actor-0").numbers["parameter_age_updates"] == 10
    assert named(shown, "replay-0").numbers["samples_per_insert"] == pytest.approx(4600 / 1050, rel=0.2)
    assert [process.name for process in shown.processes] == ["learner", "replay-0", "actor-0", "actor-1"]
    assert shown.run == {"train/updates": 1000}


def test_the_age_of_samples_is_converted_to_seconds() -> None:
    shown = view(changed(BALANCED, {"replay": {"sample_age": 2000}}))
    assert named(shown, "replay-0").numbers["sample_age_s"] == pytest.approx(5)  # at 400 inserts per second


def test_silent_processes_are_dropped_except_learner_and_shards() -> None:
    statuses = watch(BALANCED)
    assert len(statuses.view(NOW + FORGET_S - 1).processes) == 4
    assert [process.name for process in statuses.view(NOW + FORGET_S + 1).processes] == ["learner", "replay-0"]


def test_a_view_is_complete_once_every_process_that_the_learner_counts_has_two_statuses() -> None:
    assert watch(BALANCED).complete(SECONDS)
    assert not watch(BALANCED).complete(SECONDS + 1)
    assert not watch({name: BALANCED[name] for name in ("learner", "replay-0", "actor-0")}).complete(SECONDS)
    assert not watch({name: BALANCED[name] for name in ("replay-0", "actor-0")}).complete(SECONDS)
    statuses = watch({name: BALANCED[name] for name in ("learner", "replay-0", "actor-0")})
    statuses.add(words("actor-1", ACTOR)[0], NOW)  # a single status has no rates
    assert not statuses.complete(SECONDS)


# View to table.


def rendered(view: View, verdict: Verdict, **options: Any) -> str:
    page = io.StringIO()
    Console(width=top.WIDTH, file=page).print(top.frame(view, verdict, **options))
    return page.getvalue()


def test_the_table_shows_every_process_shard_and_bucket() -> None:
    changes = {"learner": {**MARIO, "shards": 2}, "actor-1": {"blocked": 0.8}}
    accounts = {"segments_received": 321, "segments_lost": 4, "segments_duplicate": 5, "segments_refused": 6}
    shown = view(changed(BALANCED, {**changes, "replay-0": {**accounts, "rss_bytes": 2e8, "sample_age": 2000}}))
    lines = rendered(shown, Verdict("lost shard", "restart it")).splitlines()

    def line(beginning: str) -> str:
        (found,) = (line for line in lines if line.startswith(beginning))
        return " ".join(found.split())

    assert "verdict: lost shard: restart it" in lines
    assert "best x 3161  clears 2" in lines[0]
    assert line("learner ") == "learner box:7 102 s working 100% 30.0 updates 10% 2 batches"
    assert line("actor-0 ") == "actor-0 box:7 102 s working 200 decisions 10% 1.0 s, 10 updates"
    assert line("actor-1 ").startswith("actor-1 box:7 102 s blocked 200 decisions 80%")
    assert line("replay-1 ") == "replay-1 silent 2 s"
    first, second = (" ".join(each.split()) for each in lines if each.startswith("replay-0 "))
    assert first == ("replay-0 box:7 102 s working 20% 200 MB 400 in, 1800 out 10% in, 10% out 3 in flight 5 s")
    assert second.startswith("replay-0 5000")
    assert "of 4.5 321 4 5 6 to 0.001 8 250.5 25%" in second
    assert " ".join(lines[-1].split()) == "to 1 4 -3.0 0%"


def test_refusals_of_a_shard_are_shown_with_their_reason() -> None:
    statuses = watch(BALANCED)
    refusals = tuple(Refusal(f"actor-{index}", index, "[b]of another\nframe") for index in range(5))
    statuses.add(status("replay-0", NOW, refusals=refusals), NOW)
    shown = statuses.view(NOW)
    lines = [
        line
        for line in rendered(shown, Verdict("fine", "")).splitlines()
        if " refused " in line and " segments of " in line
    ]
    assert len(lines) == top.MAX_REFUSALS
    assert lines[-1] == "replay-0 refused 4 segments of 'actor-4', the last one: '[b]of another\\nframe'"
    (shard,) = (each for each in json.loads(top.to_json(shown, judge(shown)))["processes"] if each["role"] == "replay")
    assert shard["refusals"][4] == {"actor": "actor-4", "segments": 4, "reason": "[b]of another\nframe"}


def test_a_name_is_not_parsed_as_markup() -> None:
    lines = rendered(view(changed(BALANCED, {"replay-[/b]": REPLAY})), Verdict("fine", "")).splitlines()
    assert sum(line.startswith("replay-[/b] ") for line in lines) == 2  # in the tables of processes and of shards


def test_a_small_screen_omits_working_actors() -> None:
    actors = {f"actor-{index}": ACTOR for index in range(50)}
    run = changed(BALANCED, {"learner": {"live_actor": 50}, **actors, "actor-33": {"blocked": 0.9}})
    shown = view(run)
    lines = rendered(shown, judge(shown), max_processes=4).splitlines()
    names = [line.split()[0] for line in lines if line.startswith(("actor", "learner", "replay", "and"))]
    assert names == ["learner", "replay-0", "actor-33", "actor-0", "and", "replay-0"]
    assert "and 48 more" in "\n".join(lines)
    complete = rendered(shown, judge(shown))
    assert all(f"{name} " in complete for name in actors)


def test_json_holds_everything_that_the_table_shows() -> None:
    shown = view(changed(BALANCED, {"learner": MARIO}))
    found = json.loads(top.to_json(shown, judge(shown)))
    assert found["verdict"]["rule"] == "balanced"
    assert [process["name"] for process in found["processes"]] == [process.name for process in shown.processes]
    assert found["processes"][0]["numbers"]["updates_per_s"] == 30
    assert found["run"]["rollout/clears"] == 2
    assert found["buckets"][0] == {"up_to": 0.001, "episodes": 8, "mean_return": 250.5, "clear_rate": 0.25}


RESTARTS = {
    "time/decisions_per_s": 400.0,
    "restarts/decisions_per_s": 100.0,
    "restarts/episodes": 150.0,
    "restarts/explorations": 50.0,
    "restarts/passes": 20.0,
    "restarts/cells": 42.0,
    "restarts/bytes": 12_300_000.0,
}
ENDS = StageArchive("1-1", 128.0, (8, 4, 0, 1), (0, 0, 0, 16))


def restarting(*archive: StageArchive) -> View:
    """A run with restarts."""
    statuses = watch(changed(BALANCED, {"learner": RESTARTS}))
    statuses.add(status("learner", NOW, metrics={**LEARNER, **RESTARTS}, archive=archive), NOW)
    return statuses.view(NOW)


def last_lines(view: View, width: int = top.WIDTH) -> list[str]:
    """The lines below the tables."""
    page = io.StringIO()
    Console(width=width, file=page).print(top.frame(view, Verdict("fine", "")))
    lines = page.getvalue().splitlines()
    return lines[next(at for at, line in enumerate(lines) if line.startswith("restarts: ")) :]


def test_restarts_are_shown_with_a_histogram_per_stage() -> None:
    figures, cells, ends = last_lines(restarting(ENDS))
    assert figures == "restarts: 25% of decisions, 200 episodes, 20 passes; archive: 42 cells, 12.3 MB"
    assert cells.rstrip() == "1-1 cells █▄ ▁  0 to 512"
    assert ends.rstrip() == "    ends     █"


def test_only_the_stages_with_the_most_cells_have_a_histogram() -> None:
    stages = [StageArchive(f"1-{number}", 128.0, (number % 5,), (0,)) for number in range(1, 9)]
    _, *shown, more = last_lines(restarting(*stages))
    assert [line.split()[0] for line in shown[::2]] == ["1-3", "1-4", "1-8"]
    assert more == "and 5 more stages"
    assert top._height(restarting(*stages).restarts) == len(shown) + 3  # with a blank line


@given(st.lists(st.integers(0, MAX_COUNT), min_size=1, max_size=64), st.integers(30, 130))
def test_a_histogram_fits_the_terminal(counts: list[int], width: int) -> None:
    shown = restarting(StageArchive("8-4", 128.0, tuple(counts), (0,) * len(counts)))
    *_, cells, _ends = last_lines(shown, width)
    drawn = cells.removeprefix("8-4 cells ").partition("  0 to ")[0]
    assert cells.rstrip().endswith(f"  0 to {128 * len(counts):g}")
    assert len(drawn) <= len(counts)
    assert ("█" in drawn) == any(counts)
    if width >= 100:
        assert [character != " " for character in drawn] == [count > 0 for count in counts]


def test_a_run_without_restarts_shows_none_of_it() -> None:
    shown = view(changed(BALANCED, {"learner": dict.fromkeys(RESTARTS, 0.0)}))
    assert shown.restarts is None
    assert "restarts" not in rendered(shown, Verdict("fine", ""))
    assert json.loads(top.to_json(shown, judge(shown)))["restarts"] is None


def test_json_holds_restarts_and_their_histograms() -> None:
    shown = restarting(ENDS)
    assert json.loads(top.to_json(shown, judge(shown)))["restarts"] == {
        "share": 0.25,
        "begun": 200,
        "passes": 20,
        "cells": 42,
        "bytes": 12_300_000,
        "stages": [{"stage": "1-1", "width": 128.0, "frontier": [8, 4, 0, 1], "ends": [0, 0, 0, 16]}],
    }


# The program.


class Relay:
    """Publishes the statuses of a balanced run, as a learner relays them."""

    def __init__(self, address: str, keys: str | None = None) -> None:
        self.address = address
        self._publisher = publisher_of(address, Path(keys) if keys else None)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        turn = 0
        while not self._closing.wait(0.02):
            self._publisher.serve()
            for name, numbers in BALANCED.items():
                first, last = words(name, numbers)
                grown = {
                    each: first.metrics[each] + turn * (last.metrics[each] - first.metrics[each])
                    for each in first.metrics
                }
                relayed = status(name, NOW + turn * SECONDS, metrics=grown)
                self._publisher.send(encode(Kind.RELAYED_STATUS, relayed))
            turn += 1

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._publisher.close()


@pytest.fixture
def relay(opened: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Relay]:
    monkeypatch.setattr(top, "ONCE_S", 0.1)
    monkeypatch.delenv("APEX_PARAMETERS", raising=False)

    def make(keys: str | None = None) -> Relay:
        made: Relay = opened(Relay(free_tcp_address(), keys))
        return made

    return make


def test_once_takes_the_address_from_flag_config_or_environment(
    relay: Callable[..., Relay], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = relay().address
    assert tools.top(["--once", "--parameters", address]) == 0
    shown = capsys.readouterr().out
    assert "verdict: balanced: " in shown
    assert max(map(len, shown.splitlines())) <= top.WIDTH
    config = tmp_path / "config.yaml"
    config.write_text(f"addresses: {{parameters: '{address}'}}\nreplay: {{shards: 2}}\n")
    assert tools.top(["--once", "--json", "--config", str(config)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["verdict"]["rule"] == "balanced"
    monkeypatch.setenv("APEX_PARAMETERS", address)
    monkeypatch.setenv("APEX_EXPERIENCE", "tcp://host:1,tcp://host:2")  # ignored by apex-top
    assert tools.top(["--once", "--json"]) == 0
    assert {process["state"] for process in json.loads(capsys.readouterr().out)["processes"]} == {"working"}


def test_once_fails_without_a_learner(relay: Callable[..., Relay], capsys: pytest.CaptureFixture[str]) -> None:
    address = free_tcp_address()
    assert tools.top(["--once", "--parameters", address, "--timeout", "0.2"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"no status from a learner at {address} within 0.2 s" in err


def test_once_waits_for_missing_processes_up_to_the_timeout(
    relay: Callable[..., Relay], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BALANCED, "learner", {**LEARNER, "live_actor": 3})
    assert tools.top(["--once", "--parameters", relay().address, "--timeout", "1"]) == 0
    out, err = capsys.readouterr()
    assert "actor-1" in out
    assert "not every process has reported within 1 s" in err


def test_a_run_with_keys_is_shown_only_with_a_key(
    relay: Callable[..., Relay], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "keys"
    make_servers(root)
    make_client(root, "eye", "evaluator")
    address = relay(str(root / "learner")).address
    assert tools.top(["--once", "--parameters", address, "--keys", str(root / "eye")]) == 0
    assert "actor-1" in capsys.readouterr().out
    assert tools.top(["--once", "--parameters", address, "--timeout", "0.5"]) == 1  # without any
    assert tools.top(["--once", "--parameters", address, "--keys", str(root / "learner")]) == 2
    assert "keys of actor, evaluator or forwarder" in capsys.readouterr().err


def test_a_terminal_shows_the_run_until_interrupted(relay: Callable[..., Relay]) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 130, 0, 0))
    command = [str(ROOT / "bin" / "apex-top"), "--parameters", relay().address]
    screen = b""
    with subprocess.Popen(
        command, env=environment() | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs
    ) as program:
        os.close(theirs)
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(ours, 1 << 16):
                screen += chunk
                if b"actor-1" in chunk:
                    program.send_signal(signal.SIGINT)
                    break
            while os.read(ours, 1 << 16):
                pass
    os.close(ours)
    assert program.returncode == 0, screen
    assert b"verdict: " in screen
