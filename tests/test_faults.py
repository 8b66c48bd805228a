"""What docs/OPERATIONS.md says of faults, cell by cell, over real processes; most of it is `long`."""

from __future__ import annotations

import itertools
import re
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apex_zmq import configure
from apex_zmq.config import Config
from apex_zmq.launch import free_ports
from apex_zmq.roles.actor import EXPERIENCE_HWM, EXPERIENCE_KERNEL_BYTES, Shipper
from apex_zmq.roles.replay import ReplayServer
from apex_zmq.segments import SegmentBuilder
from apex_zmq.signature import experience_signature
from apex_zmq.transport import Inbox
from apex_zmq.types import FrameSpec, Segment
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Status, decode_status

from .conftest import ROOT, StartProgram

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
        self._inbox: Inbox[Status] = opened(
            Inbox.subscribe(
                addresses["parameters"], {Kind.RELAYED_STATUS: lambda parts: decode_status(parts, Kind.RELAYED_STATUS)}
            )
        )
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


def test_every_role_may_be_killed_or_frozen_and_nobody_else_is_started_again(
    start: StartProgram, opened: Callable[[Any], Any]
) -> None:
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
    run.await_work()  # a new epoch, dealt to by both
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
def test_a_role_frozen_for_a_minute_goes_on(role: str, start: StartProgram, opened: Callable[[Any], Any]) -> None:
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
def test_a_role_may_be_killed_again_and_again(role: str, start: StartProgram, opened: Callable[[Any], Any]) -> None:
    run = Run(start, opened)
    for _ in range(4):
        run.await_work()
        run.kill(role)
        run.start_again(role)
    run.await_work()


@pytest.mark.long
def test_an_evaluator_killed_or_frozen_goes_on_and_the_run_with_it(
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
def test_a_forwarder_killed_or_frozen_costs_its_actors_nothing(
    start: StartProgram, opened: Callable[[Any], Any]
) -> None:
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


def test_the_tests_that_the_document_names_are_there() -> None:
    document = (ROOT / "docs" / "OPERATIONS.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", document))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's files")
def test_a_full_disk_costs_files_and_not_the_run(
    start: StartProgram, opened: Callable[[Any], Any], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from apex_zmq.checkpoint import load

    run = Run(start, opened)
    learner = run.programs["learner"]
    learner.wait_for("saved .*step-000000050")
    pid = learner.process.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))  # no file grows by a byte, as on a full disk
    learner.wait_for("checkpoint not saved, training goes on")
    learner.wait_for("TensorBoard misses points, training goes on")
    learner.wait_for("episodes.csv misses episodes, training goes on")
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
def test_a_run_that_diverges_ends_with_the_reason_and_its_last_good_checkpoint(
    start: StartProgram, tmp_path: Path
) -> None:
    from apex_zmq.checkpoint import load

    settings = [part for each in DIVERGING for part in ("--set", each)]
    train = start("train", "--config", CARTPOLE, "--run-dir", "run", *settings)
    assert train.wait() == 2, train.output
    assert train.output.count("5 steps in a row were skipped") == 1
    assert "starting it again" not in train.output
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
def test_an_emulator_that_hangs_or_crashes_costs_its_process_and_not_the_run(
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
    assert train.output.count("actor-0 ended with code 1; starting it again") == 2


# Delivery accounts against a log of their own.


class Proxy:
    """A TCP connection's way from an actor to a shard, which can be held up and cut."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.removeprefix("tcp://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EXPERIENCE_KERNEL_BYTES)
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.open = threading.Event()
        self.open.set()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                down, _ = self._listener.accept()
                up = socket.socket()
                up.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, EXPERIENCE_KERNEL_BYTES)
                try:
                    up.connect((self._upstream[0], int(self._upstream[1])))
                except ConnectionRefusedError:  # not up yet: its peer will try again
                    down.close()
                    up.close()
                    continue
                self._ends += [down, up]
                for source, sink in ((down, up), (up, down)):
                    self._threads.append(threading.Thread(target=self._pump, args=(source, sink), daemon=True))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.open.wait()
                sink.sendall(data)

    def cut(self) -> None:
        """Reset both connections; what is on the way is lost."""
        for end in self._ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()
        self.open.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[tuple[ReplayServer, list[tuple[str, int, int]], Config]]:
    """A shard, and a log of all that it has stored: actor, boot, sequence."""
    ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(4)]
    config = configure.replace(
        Config(),
        {
            "env.frame_stack": 1,
            "actor.segment_length": 10,
            "learner.batch_size": 8,
            "replay.capacity": 10_000,
            "replay.arena_bytes": 1 << 26,
            "replay.min_size": 20,
            "addresses.experience": ports[:1],
            "addresses.priorities": ports[1:2],
            "addresses.batches": ports[2],
            "addresses.status": ports[3],
        },
    )
    server, stored, stop = ReplayServer(config, 0), list[tuple[str, int, int]](), threading.Event()
    append = server._store.append

    def logged(segment: Segment) -> int:
        key = append(segment)
        stored.append((segment.actor, segment.boot, segment.sequence))
        return key

    server._store.append = logged  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    yield server, stored, config
    stop.set()
    thread.join()


def large_segment() -> Segment:
    """Ten transitions of 10 kB frames."""
    builder = SegmentBuilder(FrameSpec((2500,), "float32", 1), 3, 0.9, 10)
    frame = np.zeros(2500, np.float32)
    builder.reset(frame)
    while (segment := builder.take("actor", boot=7)) is None:
        builder.step(0, 0.0, frame, 1.0, False, False)
        builder.bootstrap(0.0)
    return segment


@pytest.mark.skipif(sys.platform != "linux", reason="knows the sizes of Linux's buffers")
@pytest.mark.parametrize("cuts", [0, 2])
def test_what_is_lost_is_counted_and_never_more_than_was_on_the_way(
    cuts: int, shard: tuple[ReplayServer, list[tuple[str, int, int]], Config], opened: Callable[[Any], Any]
) -> None:
    server, stored, config = shard
    proxy: Proxy = opened(Proxy(config.addresses.experience[0]))
    shipper = opened(Shipper((proxy.address,), experience_signature(config), drop_oldest=False))
    segment = large_segment()

    def ship() -> None:
        shipper.ship(segment)
        while shipper.blocked:
            shipper.wait(0.1)

    for _ in range(cuts):
        for _ in range(20):
            ship()
        while len(set(stored)) < 10:
            shipper.wait(0.01)
        proxy.open.clear()
        while not shipper.blocked:  # until all queues and buffers on the way are full
            shipper.ship(segment)
            if shipper.blocked:
                shipper.wait(0.2)
        proxy.cut()
        while shipper.blocked:
            shipper.wait(0.1)
    for _ in range(30):
        ship()
    totals = server._accounts.totals
    while totals.received + totals.lost < shipper.sent or len(stored) < totals.received:
        shipper.farewell("actor", 7)
    assert totals.received == len(stored) == len(set(stored))
    assert totals.lost == shipper.sent - len(stored)
    assert (totals.duplicate, totals.refused) == (0, 0)
    # Queues of both ends, what the kernel holds at each end of both connections (Linux gives twice what it is asked
    # for), what the proxy has in hand, and one being written at each end.
    kernel = 2 * 2 * 2 * EXPERIENCE_KERNEL_BYTES // len(segment.frames) + 1
    bound = 2 * EXPERIENCE_HWM + kernel + 1 + 2
    assert totals.lost <= cuts * bound
    assert (totals.lost > 0) == (cuts > 0)
