"""Shared by tests that start real programs or open real sockets."""

from __future__ import annotations

import importlib.abc
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest

from .fork_server import ROLES, ForkedProcess, ForkServer

ROOT = Path(__file__).parent.parent


class WithoutTorch(importlib.abc.MetaPathFinder):
    """The last to be asked for a module: where torch is not installed, it skips the tests that come to import it."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "torch":
            pytest.skip("needs torch", allow_module_level=True)


sys.meta_path.append(WithoutTorch())

hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("unhurried")


@pytest.hookimpl(trylast=True)  # once the long ones are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put whole runs first in each half of the tests: xdist begins with one half per worker.

    At the end of the others one worker would wait for the other's long test. The tests of a file stay together, since
    they share what its fixtures start.
    """
    whole_runs = [item for item in items if item.path.parent.name == "system"]
    others = [item for item in items if item.path.parent.name != "system"]
    files = [list(tests) for _, tests in itertools.groupby(whole_runs, lambda item: item.path)]
    first, second = (list(itertools.chain.from_iterable(files[half::2])) for half in (0, 1))
    middle = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *others[:middle], *second, *others[middle:]]


class Program:
    """A running program; its lines can be awaited."""

    def __init__(self, process: subprocess.Popen[str] | ForkedProcess) -> None:
        self.process = process
        self.lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @classmethod
    def of(cls, command: Sequence[str], directory: Path) -> Program:
        """Start a command in a directory."""
        return cls(
            subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, since: int = 0) -> str:
        """The first line that matches, from line number `since` on; fails when the program ends without one."""
        seen = since
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    if re.search(pattern, line):
                        return line
                seen = len(self.lines)
                assert not self._ended, f"ended without {pattern!r}:\n{self.output}"
                self._changed.wait()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Exit code, once all output has been read."""
        code = self.process.wait()
        self._reader.join()
        return code

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.wait()


class StartProgram(Protocol):
    def __call__(self, name: str, *arguments: str) -> Program: ...


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    pytest.importorskip("torch")
    with closing(ForkServer()) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path, fork_server: ForkServer) -> Iterator[StartProgram]:
    """Starts programs in the test's directory: roles as forks, others as under bin/; ends what is left of them."""
    programs: list[Program] = []

    def start_program(name: str, *arguments: str) -> Program:
        if name in ROLES:
            programs.append(Program(fork_server.start(name, arguments, tmp_path)))
        else:
            programs.append(Program.of([str(ROOT / "bin" / f"apex-{name}"), *arguments], tmp_path))
        return programs[-1]

    yield start_program
    for program in programs:
        program.end()


def environment() -> dict[str, str]:
    """For a program under a pseudo-terminal: COLUMNS and TERM of the test runner would hide that one's."""
    return {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}


def free_tcp_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose name is short enough for ipc."""
    with tempfile.TemporaryDirectory(prefix="apex-") as path:
        yield Path(path)


@pytest.fixture(params=["tcp", "ipc"])
def address(request: pytest.FixtureRequest, directory: Path) -> str:
    return free_tcp_address() if request.param == "tcp" else f"ipc://{directory}/socket"


@pytest.fixture
def opened() -> Iterator[Callable[[Any], Any]]:
    """Closes what is passed to it when the test is over."""
    with ExitStack() as stack:

        def keep(channel: Any) -> Any:
            return stack.enter_context(closing(channel))

        yield keep
