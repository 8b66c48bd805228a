"""What docs/FAULTS.md says of faults, cell by cell, over real processes; most of it is `long`."""

from __future__ import annotations

import itertools
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apex_zmq.cli.launch import free_ports
from apex_zmq.net.sockets import Inbox
from apex_zmq.wire.messages import Status

from ..channels import relayed_statuses
from ..conftest import ROOT, StartProgram

CARTPOLE = str(ROOT / "configs" / "cartpole.yaml")
FREEZE_S = 60.0
PATIENCE_S = 60.0  # without a word from the learner; a test that waits for more than words ends by its timeout
Metrics = dict[str, float]


class Run:
    """Two shards, an actor and a learner as real programs, and what the learner says of them.

    metrics: the newest of each process, by name and then by its pid.
    """

    def __init__(self, start: StartProgram, opened: Callable[[Any], Any]) -> None:
        ports = (f"tcp://127.0.0.1:{port}" for port in free_ports(7))
        addresses = {
            name: ",".join(itertools.islice(ports, 2 if name in ("experience", "priorities") else 1))
            for name in ("experience", "priorities", "batches", "parameters", "status")
        }
        flags = [part for name, address in addresses.items() for part in (f"--{name}", address)]
        quick = ["replay.shards=2", "replay.min_size=400", "telemetry.status_interval_s=0.1", "learner.save_every=50"]
        quick += ["telemetry.log_interval_s=0.2", "replay.credit_timeout_s=3"]
        common = ["--config", CARTPOLE, *flags, *(part for each in quick for part in ("--set", each))]
        self._commands = {
            "replay-0": ["replay", *common, "--shard", "0"],
            "replay-1": ["replay", *common, "--shard", "1"],
            "learner": ["learner", *common, "--run-dir", "run"],
            "actor-0": ["actor", *common, "--actor-index", "0", "--num-lanes", "8"],
        }
        port = free_ports(1)[0]
        forwarded = f"tcp://127.0.0.1:{port}"
        self._behind_a_forwarder = {
            "forwarder": ["forwarder", *common, "--bind", forwarded],
            "actor-1": ["actor", *common, "--parameters", forwarded, "--actor-index", "1", "--num-lanes", "16"],
        }
        self._start = start
        self._inbox: Inbox[Status] = opened(relayed_statuses(addresses["parameters"]))
        self.metrics: dict[str, dict[int, Metrics]] = {name: {} for name in self._commands}
        self.programs = {name: start(*command) for name, command in self._commands.items()}

    def add_forwarder(self) -> None:
        """A forwarder, and a second actor that listens to it."""
        self._commands |= self._behind_a_forwarder
        for name, command in self._behind_a_forwarder.items():
            self.metrics[name] = {}
            self.programs[name] = self._start(*command)

    def now(self, name: str, metric: str) -> float:
        """The newest value from the process that runs now; 0 before it has said any."""
        return self.metrics[name].get(self.programs[name].process.pid, {}).get(metric, 0.0)

    def await_growth(self, name: str, metric: str, by: float = 1) -> None:
        """Wait until the process that runs now counts so many more than in its next word."""
        known: float | None = None
        while known is None or self.now(name, metric) < known + by:
            status = self._inbox.receive(PATIENCE_S)
            assert status is not None, self.programs["learner"].output
            self.metrics.setdefault(status.name, {}).setdefault(status.pid, {}).update(status.metrics)
            if status.pid == self.programs[name].process.pid and known is None:
                known = self.now(name, metric)
            for program in self.programs.values():
                assert program.process.poll() in (None, -signal.SIGKILL), program.output

    def await_work(self) -> None:
        """Wait until all of them have got something done from now on."""
        self.await_growth("actor-0", "segments", 3)
        for shard in ("replay-0", "replay-1"):
            self.await_growth(shard, "samples", 400)
        self.await_growth("learner", "train/updates", 20)

    def kill(self, name: str) -> None:
        self.programs[name].process.kill()
        self.programs[name].process.wait()

    def start_again(self, name: str) -> None:
        resume = ["--resume"] if name == "learner" else []
        self.programs[name] = self._start(*self._commands[name], *resume)

    def freeze(self, name: str) -> None:
        self.programs[name].process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.programs[name].process.send_signal(signal.SIGCONT)


def test_other_roles_continue_when_one_is_killed_or_frozen(start: StartProgram, opened: Callable[[Any], Any]) -> None:
    run = Run(start, opened)
    run.await_work()
    run.kill("replay-0")
    run.await_growth("replay-1", "samples", 2000)  # the learner goes on with the shard that lives
    run.await_growth("learner", "train/updates", 10)
    run.start_again("replay-0")
    run.freeze("replay-1")
    run.await_growth("replay-0", "samples", 400)
    run.thaw("replay-1")
    run.await_work()

    run.kill("learner")
    run.freeze("actor-0")
    run.start_again("learner")
    run.programs["learner"].wait_for("resuming run at update")
    run.thaw("actor-0")
    run.await_work()  # a new incarnation, dealt to by both
    run.await_growth("actor-0", "parameter_update", 20)

    run.kill("actor-0")
    run.start_again("actor-0")
    run.freeze("learner")
    run.programs["actor-0"].wait_for("waiting for parameters")
    run.thaw("learner")
    run.await_work()
    for shard in ("replay-0", "replay-1"):
        assert run.now(shard, "segments_duplicate") == run.now(shard, "segments_refused") == 0
        assert run.now(shard, "refused_messages") == 0
    assert run.now("learner", "train/corrupted_windows") == run.now("learner", "train/bad_steps") == 0
    assert run.now("learner", "time/restarts") >= 1  # the actor's; the learner of that time has heard of it


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ["replay-0", "actor-0", "learner"])
def test_role_frozen_for_a_minute_continues(role: str, start: StartProgram, opened: Callable[[Any], Any]) -> None:
    run = Run(start, opened)
    run.await_work()
    run.freeze(role)
    assert not threading.Event().wait(FREEZE_S)
    run.thaw(role)
    run.await_work()
    assert all(program.process.poll() is None for program in run.programs.values())


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ["replay-0", "actor-0", "learner"])
def test_run_recovers_from_repeated_kills_of_a_role(
    role: str, start: StartProgram, opened: Callable[[Any], Any]
) -> None:
    run = Run(start, opened)
    for _ in range(4):
        run.await_work()
        run.kill(role)
        run.start_again(role)
    run.await_work()


@pytest.mark.long
def test_run_continues_when_its_evaluator_is_killed_or_frozen(
    start: StartProgram, opened: Callable[[Any], Any]
) -> None:
    run = Run(start, opened)
    run.programs["learner"].wait_for("saved ")
    command = ("eval", "--checkpoint", "run", "--follow", "--episodes", "1", "--json")
    killed = start(*command)
    killed.wait_for('"version"')
    killed.process.kill()
    run.await_growth("learner", "train/updates", 20)
    evaluator = start(*command)
    evaluator.wait_for('"version"')
    evaluator.process.send_signal(signal.SIGSTOP)
    run.await_growth("learner", "train/updates", 100)
    evaluator.process.send_signal(signal.SIGCONT)
    played = evaluator.output.count('"version"')
    while evaluator.output.count('"version"') < played + 2:
        run.await_growth("learner", "train/updates")


@pytest.mark.long
def test_actors_continue_when_forwarder_is_killed_or_frozen(start: StartProgram, opened: Callable[[Any], Any]) -> None:
    run = Run(start, opened)
    run.add_forwarder()
    for fault in ("kill", "freeze"):
        run.await_growth("actor-1", "parameter_update", 20)
        getattr(run, fault)("forwarder")
        run.await_growth("actor-1", "segments", 3)
        if fault == "kill":
            run.start_again("forwarder")
        else:
            run.thaw("forwarder")
    run.await_growth("actor-1", "parameter_update", 20)


def test_tests_named_in_the_document_exist() -> None:
    document = (ROOT / "docs" / "FAULTS.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", document))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's files")
def test_full_disk_loses_writes_and_training_continues(
    start: StartProgram, opened: Callable[[Any], Any], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from apex_zmq.rundir.checkpoint import load

    run = Run(start, opened)
    learner = run.programs["learner"]
    learner.wait_for("saved .*step-000000050")
    pid = learner.process.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))  # no file grows by a byte, as on a full disk
    learner.wait_for("checkpoint not saved, training continues")
    learner.wait_for("cannot write TensorBoard events")
    learner.wait_for("episodes missing from episodes.csv, training continues")
    saved = load(tmp_path / "run").counters["updates"]
    run.await_growth("learner", "train/updates", 50)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    learner.interrupt()
    assert learner.wait() == 0, learner.output
    assert load(tmp_path / "run").counters["updates"] > saved
    curves = EventAccumulator(str(tmp_path / "run"))
    curves.Reload()
    assert curves.Scalars("train/updates")


DIVERGING = ("learner.learning_rate=1e30", "learner.max_bad_steps=5", "replay.min_size=200", "run.num_actors=1")


@pytest.mark.long
def test_diverging_run_ends_with_reason_and_finite_checkpoint(start: StartProgram, tmp_path: Path) -> None:
    from apex_zmq.rundir.checkpoint import load

    settings = [part for each in DIVERGING for part in ("--set", each)]
    train = start("train", "--config", CARTPOLE, "--run-dir", "run", *settings)
    assert train.wait() == 2, train.output
    assert train.output.count("5 steps in a row were skipped") == 1
    assert "restarting it" not in train.output
    saved = load(tmp_path / "run")
    assert all(np.isfinite(tensor.numpy()).all() for tensor in saved.tensors["online"].values())
    assert 0 < len(list((tmp_path / "run" / "bad-batches").iterdir())) <= 5


FLAKY = """
import threading
from pathlib import Path

import gymnasium

FAULT = None
if b"actor-index" in Path("/proc/self/cmdline").read_bytes():
    for fault in ("hangs", "raises"):  # the actor's first process, and its second
        try:
            (Path(__file__).parent / fault).mkdir()
        except FileExistsError:
            continue
        FAULT = fault
        break


class Flaky(gymnasium.Wrapper):
    def step(self, action):
        if FAULT == "hangs":
            threading.Event().wait()
        if FAULT == "raises":
            raise OSError("the emulator is gone")
        return super().step(action)


def make():
    return Flaky(gymnasium.make("CartPole-v1"))
"""


@pytest.mark.long
def test_hanging_or_crashing_emulator_restarts_only_its_actor(
    start: StartProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flaky.py").write_text(FLAKY)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    settings = ("env.id=flaky:make", "actor.watchdog_s=2", "actor.lanes=1", "replay.min_size=200", "run.num_actors=1")
    changes = [part for each in settings for part in ("--set", each)]
    train = start("train", "--config", CARTPOLE, "--run-dir", "run", "--max-updates", "50", *changes)
    assert train.wait() == 0, train.output
    assert "Timeout (0:00:02" in train.output
    assert "the emulator is gone" in train.output
    assert train.output.count("actor-0 ended with code 1; restarting it") == 2


# Delivery accounts against a log of their own.
