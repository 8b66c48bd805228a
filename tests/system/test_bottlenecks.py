"""The verdict on real runs with an injected bottleneck: a slow, throttled, disconnected or killed replay."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apex_zmq.cli.launch import free_ports
from apex_zmq.watch import view
from apex_zmq.watch.top import Listener
from apex_zmq.watch.verdict import judge

from ..channels import links_of
from ..conftest import ROOT, Program, StartProgram
from ..proxy import Proxy

CARTPOLE = str(ROOT / "configs" / "cartpole.yaml")
STEADY = 5  # verdicts in a row, 0.2 s apart
SLOW = """
import sys, time

from apex_zmq.cli import main as cli
from apex_zmq.replay.store import Store

sample = Store.sample


def slowly(store, batch_size):
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    return sample(store, batch_size)


Store.sample = slowly
sys.exit(cli.replay(sys.argv[1:]))
"""


class Run:
    """An actor and a learner as real programs, and the shards that a test starts.

    settings: overrides for learner and actor.
    """

    def __init__(
        self, start: StartProgram, opened: Callable[[Any], Any], shards: int = 1, settings: tuple[str, ...] = ()
    ) -> None:
        ports = (f"tcp://127.0.0.1:{port}" for port in free_ports(3 + 2 * shards))
        addresses = {
            name: ",".join(itertools.islice(ports, shards if name in ("experience", "priorities") else 1))
            for name in ("experience", "priorities", "batches", "parameters", "status")
        }
        flags = [part for name, address in addresses.items() for part in (f"--{name}", address)]
        quick = (f"replay.shards={shards}", "replay.min_size=200", "telemetry.status_interval_s=0.1")
        self._common = ["--config", CARTPOLE, *flags, *_set(quick)]
        self._start = start
        self.addresses = addresses
        self.listener: Listener = opened(Listener(links_of(parameters=addresses["parameters"])))
        self.shards: dict[int, Program] = {}
        self.learner = start("learner", *self._common, *_set(settings), "--run-dir", "run")
        self.actor = start("actor", *self._common, *_set(settings))

    def give(self, shard: int, *settings: str) -> None:
        """Start a shard with settings; a running one of the same number is ended first."""
        if shard in self.shards:
            self.shards[shard].end()
        self.shards[shard] = self._start("replay", *self._common, *_set(settings), "--shard", str(shard))

    def give_slow(self, directory: Path) -> None:
        """Start a shard that takes 50 ms of CPU time per batch."""
        arguments = [*self._common, *_set(("replay.samples_per_insert=null",))]
        self.shards[0] = Program.of([sys.executable, "-c", SLOW, *arguments], directory)

    def await_verdict(self, rule: str) -> str:
        """Text of the verdict once this rule has applied for `STEADY` views; the test times out if it never does."""
        steady = 0
        while steady < STEADY:
            self.listener.receive(0.2)
            verdict = judge(self.listener.view())
            print(verdict)
            steady = steady + 1 if verdict.rule == rule else 0
            for program in (self.learner, self.actor):
                assert program.process.poll() is None, program.output
        return verdict.text


def _set(settings: tuple[str, ...]) -> list[str]:
    return [part for each in settings for part in ("--set", each)]


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "WINDOW_S", 1.5)


def test_a_lost_shard_throttled_actors_and_too_few_actors_are_distinguished(
    start: StartProgram, opened: Callable[[Any], Any]
) -> None:
    run = Run(start, opened, shards=2)
    run.give(0, "replay.samples_per_insert=1000")
    assert "replay-1 has been silent" in run.await_verdict("lost shard")
    run.give(1, "replay.samples_per_insert=1000")
    assert "at 1000 samples per insert" in run.await_verdict("throttled actors")
    once = start("top", "--parameters", run.addresses["parameters"], "--once", "--json")
    assert once.wait() == 0, once.output
    seen = json.loads(once.lines[-1])
    assert seen["verdict"]["rule"] == "throttled actors"
    assert [process["name"] for process in seen["processes"]][:3] == ["learner", "replay-0", "replay-1"]
    actor = seen["processes"][3]
    assert (actor["role"], actor["pid"]) == ("actor", run.actor.process.pid)
    for shard in (0, 1):
        run.give(shard, "replay.samples_per_insert=0.5")
    assert "at 0.5 samples per insert" in run.await_verdict("too few actors")


@pytest.mark.long
def test_a_slow_replay_is_diagnosed(start: StartProgram, opened: Callable[[Any], Any], tmp_path: Path) -> None:
    run = Run(start, opened)
    run.give_slow(tmp_path)
    try:
        text = run.await_verdict("slow replay")
    finally:
        run.shards[0].end()
    assert "replay-0 is saturated at" in text
    assert "add a shard" in text


@contextmanager
def intermittently_open(proxy: Proxy) -> Iterator[None]:
    """Open a proxied link for a moment three times a second."""
    done = threading.Event()

    def alternate() -> None:
        while not done.wait(0.02):
            proxy.open.clear()
            done.wait(0.3)
            proxy.open.set()

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.long
def test_a_learner_starved_by_its_link_is_diagnosed(start: StartProgram, opened: Callable[[Any], Any]) -> None:
    run = Run(start, opened)
    proxy: Proxy = opened(Proxy(run.addresses["batches"]))
    run.give(0, "replay.samples_per_insert=null", f"addresses.batches={proxy.address}")
    run.await_verdict("balanced")
    with intermittently_open(proxy):
        assert "learner waits" in run.await_verdict("starved learner")
    run.await_verdict("balanced")


@pytest.mark.long
def test_rarely_published_parameters_are_diagnosed_as_stale(start: StartProgram, opened: Callable[[Any], Any]) -> None:
    run = Run(start, opened, settings=("learner.sync_every=1000000",))
    run.give(0, "replay.samples_per_insert=1000")
    assert "lower learner.sync_every" in run.await_verdict("stale parameters")


@pytest.mark.long
def test_a_killed_shard_is_diagnosed(start: StartProgram, opened: Callable[[Any], Any]) -> None:
    run = Run(start, opened, shards=2)
    for shard in (0, 1):
        run.give(shard, "replay.samples_per_insert=1000")
    run.await_verdict("throttled actors")
    run.shards[1].process.kill()
    assert "replay-1 has been silent" in run.await_verdict("lost shard")
    run.give(1, "replay.samples_per_insert=1000")
    run.await_verdict("throttled actors")


@pytest.mark.long
def test_a_silent_learner_is_diagnosed(start: StartProgram, opened: Callable[[Any], Any]) -> None:
    run = Run(start, opened)
    run.give(0, "replay.samples_per_insert=1000")
    run.await_verdict("throttled actors")
    run.learner.process.send_signal(signal.SIGSTOP)
    assert "--resume" in run.await_verdict("learner silent")
    run.learner.process.send_signal(signal.SIGCONT)
    run.await_verdict("throttled actors")
