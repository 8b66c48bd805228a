"""Starts roles from a process that has imported everything: a fork takes milliseconds, importing torch seconds.

A program started this way is a process of its own with its own signals, sockets, files and exit code, and runs what
`python -m apex_zmq ROLE` runs. What it does not cover is `bin/`: tests of options, of apex-train and of the documents
start the programs there.

This file is both the server (run as a script) and its client, `ForkServer`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROLES = ("actor", "replay", "learner", "forwarder", "eval")
MODULES = (
    "apex_zmq.roles.actor.loop",
    "apex_zmq.roles.forwarder",
    "apex_zmq.roles.learner.loop",
    "apex_zmq.roles.replay",
    "apex_zmq.play.evaluator",
)
MAX_REQUEST_BYTES = 100_000


class ForkedProcess:
    """A program that the server has forked; the part of subprocess.Popen that tests use.

    stdout: what the program writes to standard output and standard error.
    """

    def __init__(self, output: int, answers: int) -> None:
        self.stdout = os.fdopen(output)
        self._answers = os.fdopen(answers, "rb", buffering=0)  # or `select` would not know of a line in the buffer
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, -N after signal N; None while the program runs."""
        return self._read_code(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once the program has ended. Raises: subprocess.TimeoutExpired."""
        code = self._read_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
        return code

    def _read_code(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], timeout)[0]:
            self.returncode = int(self._answers.readline())
            self._answers.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The client's end: starts the server, and programs from it."""

    def __init__(self) -> None:
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The number of threads is read when libraries load; with more, they would have to stop before each fork.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with its:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(its.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
            )

    def start(self, role: str, arguments: Sequence[str], directory: Path) -> ForkedProcess:
        """Start a role in a directory, under the environment of the test."""
        output, its_output = os.pipe()
        answers, its_answers = os.pipe()
        request = {"arguments": [role, *arguments], "directory": str(directory), "environment": dict(os.environ)}
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [its_output, its_answers])
        finally:
            os.close(its_output)
            os.close(its_answers)
        return ForkedProcess(output, answers)

    def close(self) -> None:
        """End the server; programs that still run go on."""
        self._channel.close()
        self._process.wait()


def serve(channel: socket.socket) -> int:
    """Fork a program for each request until the client is gone; in each program: run it and return its exit code."""
    from apex_zmq.__main__ import PROGRAMS

    programs = {role: pkgutil.resolve_name(PROGRAMS[role]) for role in ROLES}
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # forks share what is here now
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's, which then closes the channel
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, MAX_REQUEST_BYTES, 2)
        if not request:
            return 0
        output, answers = descriptors
        if os.fork() == 0:
            break
        os.close(output)
        os.close(answers)
    channel.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        keep(pid, output, answers)
    os.close(answers)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = json.loads(request)
    os.chdir(asked["directory"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [asked["directory"], *(path for path in paths if path)]  # as after python -m
    role, *arguments = asked["arguments"]
    sys.argv = [f"apex-{role}", *arguments]
    return int(programs[role](arguments))


def keep(pid: int, output: int, answers: int) -> None:
    """Tell the client the program's process and, when it has ended, its exit code; then end this process."""
    os.close(output)
    os.write(answers, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1]))))
