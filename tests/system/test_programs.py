"""The programs as a user calls them: bad input ends with 2 and one line that helps, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

import apex_zmq.__main__
from apex_zmq.config import settings

ROOT = Path(__file__).parents[2]
PROGRAMS = [f"apex-{name}" for name in apex_zmq.__main__.PROGRAMS]
CARTPOLE = f"--config {ROOT}/configs/cartpole.yaml"
SMALL_REPLAY = "--set replay.arena_bytes=2_000_000 --set replay.capacity=10_000 --set replay.min_size=1000"


class Case(NamedTuple):
    """A command line, and what its one line on stderr must say: the thing, then the remedy."""

    command: str
    thing: str
    remedy: str


# {...} is filled in from the `World`.
BAD = {
    "unknown key": Case("apex-train --config {typo}", "learner.batchsize", "did you mean learner.batch_size?"),
    "unknown key in --set": Case(
        "apex-actor --set env.rewards.death=1", "env.rewards", "did you mean env.reward.death?"
    ),
    "wrong type": Case("apex-learner --set learner.batch_size=many", "learner.batch_size: wanted int", 'got "many"'),
    "missing config": Case("apex-replay --config {nowhere}", "{nowhere}: No such file", "see configs/ for ready ones"),
    "a checkpoint as config": Case("apex-train --config {foreign}", "{foreign}", "not valid YAML"),
    "unknown stage": Case(
        "apex-actor --set env.stages=[1-1,9-3]", "env.stages: no stage '9-3' in SuperMarioBros;", "1-1 to 8-4"
    ),
    "unknown action set": Case("apex-train --set env.actions=FLY", "env.actions: wanted RIGHT_ONLY or", 'got "FLY"'),
    "unknown button": Case("apex-train --set env.actions=[[jump]]", "env.actions: ['jump']", "buttons are A B NOOP"),
    "n above segment length": Case(
        "apex-actor --set agent.n_step=40", "agent.n_step 40 exceeds actor.segment_length 32", "lengthen segments"
    ),
    "batch above capacity": Case(
        "apex-train --batch-size 600 --buffer-size 500",
        "learner.batch_size 600 exceeds the 500 transitions of a shard",
        "raise replay.capacity",
    ),
    "governor that can deadlock": Case(
        "apex-replay --set replay.samples_per_insert=8 --set replay.tolerance=100",
        "replay.tolerance 100 can deadlock",
        "2 x tolerance must reach batch_size + samples_per_insert x segment_length = 768",
    ),
    "arena beyond memory": Case(
        "apex-replay --set replay.arena_bytes=999_000_000_000_000", "needs 999", "lower replay.arena_bytes"
    ),
    "arena beyond memory, all on one machine": Case(
        "apex-train --set replay.arena_bytes=999_000_000_000_000", "needs 999", "lower replay.arena_bytes"
    ),
    "shard beyond shards": Case("apex-replay --shard 1", "--shard 1: replay.shards is 1", "count from 0"),
    "bind for others to reach": Case(
        f"apex-replay {SMALL_REPLAY} --experience tcp://0.0.0.0:{{free}}", "tcp://0.0.0.0:{free}", "--insecure"
    ),
    "keys and no keys": Case(
        f"apex-replay {SMALL_REPLAY} --insecure --keys {{nowhere}}",
        "addresses.insecure disables authentication",
        "set only one of them",
    ),
    "keys that are not there": Case(
        f"apex-replay {SMALL_REPLAY} --keys {{nowhere}}", "{nowhere}/identity.key_secret", "made by apex-keys"
    ),
    "no address": Case("apex-actor --parameters host:1", "address host:1", "write tcp://host:port"),
    "no address to forward to": Case("apex-forwarder --bind 5556", "address 5556", "write tcp://host:port"),
    "port in use by another replay": Case(
        f"apex-replay {SMALL_REPLAY} --experience tcp://127.0.0.1:{{taken}}",
        "tcp://127.0.0.1:{taken} is in use",
        "stop the other process or choose another",
    ),
    "port in use by another learner": Case(
        f"apex-learner {CARTPOLE} --run-dir run --parameters tcp://127.0.0.1:{{taken}}",
        "tcp://127.0.0.1:{taken} is in use",
        "stop the other process or choose another",
    ),
    "a host of no role": Case("apex-doctor --role pilot", "'pilot' (choose from", "see --help"),
    "checking no config": Case(
        "apex-doctor --config {nowhere}", "{nowhere}: No such file", "see configs/ for ready ones"
    ),
    "missing checkpoint": Case(
        "apex-eval --checkpoint {nowhere}",
        "checkpoint {nowhere} does not exist",
        "name a checkpoint file or a run directory",
    ),
    "foreign file as checkpoint": Case("apex-eval --checkpoint {foreign}", "{foreign}", "name a checkpoint of this"),
    "no episodes": Case("apex-eval --checkpoint {nowhere} --episodes 0", "--episodes", "at least 1"),
    "run directory that holds a run": Case(
        "apex-train --run-dir {held}", "{held} already holds a run", "pass --resume or choose another"
    ),
    "run directory that holds a run, learner": Case(
        "apex-learner --run-dir {held}", "{held} already holds a run", "pass --resume or choose another"
    ),
    "run directory in use": Case(
        "apex-train --run-dir {used}", "{used} is in use by another learner", "choose another --run-dir"
    ),
    "run directory in use, learner": Case(
        "apex-learner --run-dir {used}", "{used} is in use by another learner", "choose another --run-dir"
    ),
    "run directory that is a file": Case("apex-train --run-dir {foreign}", "{foreign} is a file", "choose another"),
    "nothing to resume": Case("apex-train --resume", "checkpoints/default-*", "name one with --run-dir"),
    "a run to resume or begin without a name": Case("apex-learner --resume auto", "--resume auto", "needs --run-dir"),
    "no such run to resume": Case(
        "apex-learner --resume --run-dir {nowhere}",
        "{nowhere} has no checkpoint",
        "omit --resume or choose another --run-dir",
    ),
    "resume and another start": Case("apex-train --resume --init-from {foreign}", "--init-from", "give one"),
    "actor index without lanes": Case("apex-actor --actor-index 0", "--actor-index and --num-lanes", "give both"),
    "actor index beyond the lanes": Case(
        "apex-actor --actor-index 2 --num-lanes 16", "--actor-index 2", "count the lanes of all actors"
    ),
    "log directory that is a file": Case(
        "apex-actor --log-dir {foreign}", "cannot write logs in {foreign}", "choose another --log-dir"
    ),
    "unknown log format": Case("apex-train --log-format xml", "--log-format", "see --help"),
    "rendering without a display": Case("apex-train --render", "no display for a window", "set DISPLAY"),
    "rendering without a display, actor": Case(
        f"apex-actor {CARTPOLE} --render", "no display for a window", "set DISPLAY"
    ),
    "playing nothing": Case("apex-play --checkpoint {nowhere} --episodes 0", "--episodes", "at least 1"),
    "playing no checkpoint": Case(
        "apex-play --checkpoint {nowhere}",
        "checkpoint {nowhere} does not exist",
        "name a checkpoint file or a run directory",
    ),
    "video of an unknown kind": Case("apex-eval --checkpoint {nowhere} --video out.avi", "out.avi", ".mp4 or .gif"),
    "video in no directory": Case(
        "apex-play --checkpoint {nowhere} --video {nowhere}/out.gif",
        "directory {nowhere} does not exist",
        "create it first",
    ),
    "watching without a terminal": Case(
        "apex-top", "standard output is not a terminal that can redraw lines", "give --once"
    ),
    "an object without end": Case("apex-top --json", "--json and --timeout need --once", "add it"),
    "no address to watch": Case("apex-top --once --parameters host:1", "address host:1", "write tcp://host:port"),
}
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
ANSWERED = [f"{program} {flag}" for program in PROGRAMS for flag in ("--help", "--version")]


@dataclass(frozen=True)
class World:
    """What the bad commands run into."""

    typo: Path  # a config with an unknown key
    foreign: Path  # a file of another program
    nowhere: Path
    held: Path  # a run directory that holds a run
    used: Path  # a run directory that somebody has locked
    taken: int  # a port that somebody listens on
    free: int


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str
    files: list[str]  # left in the directory it ran in


def make_world(directory: Path, taken: socket.socket, free: socket.socket) -> World:
    world = World(
        typo=directory / "typo.yaml",
        foreign=directory / "foreign.bin",
        nowhere=directory / "nowhere",
        held=directory / "held",
        used=directory / "used",
        taken=taken.getsockname()[1],
        free=free.getsockname()[1],
    )
    world.typo.write_text("learner:\n  batchsize: 5\n")
    world.foreign.write_bytes(b"\x80\x02a pickle, for example")
    for each in (world.held, world.used):
        each.mkdir()
    (world.held / "step-000000100.safetensors").write_bytes(b"")
    return world


def run(command: str, directory: Path) -> Outcome:
    directory.mkdir()
    program, *arguments = command.split()
    # The programs take the checkout's .venv, or else the first python3: the one that runs the tests.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("APEX_", "SDL_")) and name not in SCREENS
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    ran = subprocess.run(
        [ROOT / "bin" / program, *arguments], cwd=directory, env=environment, capture_output=True, text=True
    )
    files = [str(path) for path in directory.rglob("*")]
    return Outcome(ran.returncode, ran.stdout, ran.stderr, files)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        world = make_world(tmp_path_factory.mktemp("world"), taken, free)
        free.close()
        with (world.used / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield world


@pytest.fixture(scope="module")
def outcomes(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Outcome]]]:
    """All commands, run side by side: some import torch, which takes seconds."""
    pytest.importorskip("torch")
    directory = tmp_path_factory.mktemp("ran")
    commands = {name: case.command.format(**vars(world)) for name, case in BAD.items()}
    commands |= {command: command for command in ANSWERED}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(run, command, directory / name) for name, command in commands.items()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_exits_with_2_and_a_one_line_error(
    name: str, world: World, outcomes: dict[str, Future[Outcome]]
) -> None:
    case, outcome = BAD[name], outcomes[name].result()
    program = case.command.split()[0]
    assert outcome.code == 2, outcome.stderr
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"{program}: error: ")
    assert case.thing.format(**vars(world)) in line
    assert case.remedy in line
    assert "Traceback" not in outcome.stdout
    assert outcome.files == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_every_setting(program: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[f"{program} --help"].result()
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith(f"usage: {program} ")
    if "--set" in outcome.stdout:
        for setting in settings.settings():
            assert f"\n  {setting.name} ({setting.type}; default " in outcome.stdout
            assert setting.description in outcome.stdout
    else:
        assert program in ("apex-eval", "apex-play", "apex-keys")  # a checkpoint brings settings; keys need none


@pytest.mark.parametrize("program", PROGRAMS)
def test_version(program: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[f"{program} --version"].result()
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, f"{apex_zmq.__version__}\n", "")


def test_every_program_in_bin_is_tested() -> None:
    assert {path.name for path in (ROOT / "bin").iterdir()} == set(PROGRAMS)
