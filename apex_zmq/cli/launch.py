"""Starts the roles of one run on this machine and keeps them running."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apex_zmq.cli import logs
from apex_zmq.config import loading
from apex_zmq.config.settings import ADDRESSES, Config
from apex_zmq.rundir import directory as rundir
from apex_zmq.watch.stats import PROGRESS

ADDRESS_VARIABLES = {f"APEX_{field.upper()}" for field in ADDRESSES}  # of a run over several machines, not of ours
LAUNCHED = "APEX_LAUNCHED"  # in the environment of roles that must not outlive the launcher
MAX_RESTARTS = 5  # in a row
BACKOFF_S = 1.0  # doubles with each restart in a row
STEADY_S = 60.0  # a role that ran for so long starts its count anew
STOP_S = 20.0
POLL_S = 0.2
EXIT_BAD_INPUT = 2


class Terminal:
    """Prints the roles' lines; on a terminal the newest progress line stays at the bottom.

    log_format: of the lines; what is not JSON already is made so where it is json.
    """

    def __init__(self, log_format: logs.Format) -> None:
        self._json = log_format == "json"
        self._mark = f'"message": "{PROGRESS}' if self._json else f" {PROGRESS}"
        self._lock = threading.Lock()
        self._live = ""
        self._is_terminal = sys.stdout.isatty()

    def show(self, role: str, line: str) -> None:
        """One line that a role has printed."""
        with self._lock:
            whole = self._whole(role, line)
            if not self._is_terminal:
                self._print(f"{whole}\n")
                return
            if self._mark in line:
                self._live = line.partition(self._mark)[2].strip('"}')
            else:
                self._print(f"\r\x1b[2K{whole}\n")
            width = shutil.get_terminal_size().columns
            self._print(f"\r\x1b[2K{self._live[: width - 1]}")

    def _print(self, text: str) -> None:
        # A full disk or a reader gone costs these lines, which the roles' log files have too. The roles' pipes must
        # still be read, or they would block on them.
        with contextlib.suppress(OSError):
            print(text, end="", flush=True)

    def _whole(self, role: str, line: str) -> str:
        if not self._json:
            return f"{role:9}| {line}"
        return line if line.startswith('{"time": ') else logs.json_line(time.time(), "WARNING", role, line)

    def close(self) -> None:
        """Leave the live line where it is."""
        if self._is_terminal and self._live:
            self._print("\n")


@dataclass
class Role:
    """One role's process, and how often it had to be started again.

    again: makes the arguments for starting once more; None: the same.
    """

    name: str
    arguments: Sequence[str]
    terminal: Terminal
    again: Callable[[], Sequence[str]] | None = None
    process: subprocess.Popen[str] | None = None
    restarts: int = 0
    started: float = 0.0
    start_at: float = 0.0
    _reader: threading.Thread | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process; its output goes to the terminal under the role's name."""
        arguments = self.again() if self.restarts and self.again is not None else self.arguments
        command = [sys.executable, "-m", "apex_zmq", *arguments]
        # A session of its own, so that Ctrl-C reaches the launcher alone, which stops the roles in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={name: value for name, value in os.environ.items() if name not in ADDRESS_VARIABLES} | {LAUNCHED: "1"},
            start_new_session=True,
        )
        self.started = time.monotonic()
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.terminal.show(self.name, line.rstrip("\n"))

    def stop(self) -> None:
        """Ask the process to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        """Wait for the process to end, and end it when it does not."""
        if self.process is None:
            return
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.terminal.show("launcher", f"{self.name} does not stop; killing it")
            self.process.kill()
            self.process.wait()
        if self._reader is not None:
            self._reader.join(timeout=1.0)


def launch(
    config: Config,
    directory: Path,
    *,
    tcp: bool,
    resume: bool,
    init_from: Path | None,
    log_format: logs.Format,
    render: bool,
) -> int:
    """Run actors, replay shards and learner until a budget is spent, Ctrl-C, or a role dies for good.

    render: the last actor, whose epsilons are the lowest, opens a window.

    Returns:
        Exit code: 0 after a budget or Ctrl-C, else that of the role that died.
    """
    home = Path(tempfile.mkdtemp(prefix="apex-"))  # 0700
    lock = os.open(home, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)  # or systemd-tmpfiles(8) would clear it of what is ten days old
    stop = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    terminal = Terminal(log_format)
    try:
        places = local_addresses(config.replay.shards, home if not tcp else None)
        config = loading.replace(config, places | {"replay.snapshot_dir": str(directory.absolute())})
        path = home / "config.yaml"
        path.write_text(loading.to_yaml(config))
        common = ["--config", str(path), "--log-dir", str(directory / "logs"), "--log-format", log_format]
        roles = _roles(config, common, directory, resume, init_from, terminal)
        if config.telemetry.metrics_port is not None:
            # The learner keeps the first; each role has its own after every restart.
            for port, role in enumerate(roles[1:], config.telemetry.metrics_port + 1):
                role.arguments = [*role.arguments, "--set", f"telemetry.metrics_port={port}"]
        if render:
            # An actor that has died, with its display perhaps, goes on without a window.
            last = roles[-1]
            without = last.arguments
            last.arguments, last.again = [*without, "--render"], lambda: without
        return _supervise(roles, stop, terminal)
    finally:
        terminal.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
        shutil.rmtree(home, ignore_errors=True)
        os.close(lock)


def local_addresses(shards: int, home: Path | None) -> dict[str, object]:
    """Address settings of a run on this machine, which needs no keys: ipc below `home`, or free loopback ports."""
    counts = {"experience": shards, "priorities": shards, "batches": 1, "parameters": 1, "status": 1}
    total = sum(counts.values())
    if home is not None:
        pool = [f"ipc://{home}/{number}" for number in range(total)]
    else:
        pool = [f"tcp://127.0.0.1:{port}" for port in free_ports(total)]
    addresses: dict[str, object] = {"addresses.keys": None}
    for name, count in counts.items():
        taken, pool = pool[:count], pool[count:]
        addresses[f"addresses.{name}"] = taken if name in ("experience", "priorities") else taken[0]
    return addresses


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that nobody has bound just now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _roles(
    config: Config, common: list[str], directory: Path, resume: bool, init_from: Path | None, terminal: Terminal
) -> list[Role]:
    """Learner, shards, actors; the learner first, since a bad run directory or checkpoint shows there.

    common: arguments of all of them.
    """
    learner = ["learner", *common, "--run-dir", str(directory)]
    first = ["--resume"] if resume else ["--init-from", str(init_from)] if init_from is not None else []

    def learner_again() -> list[str]:
        # A learner that died before its first checkpoint begins as at first.
        return [*learner, *(["--resume"] if rundir.holds_run(directory) else first)]

    total_lanes = str(config.run.num_actors * config.actor.lanes)
    return [
        Role("learner", [*learner, *first], terminal, again=learner_again),
        *(
            Role(f"replay-{shard}", ["replay", *common, "--shard", str(shard)], terminal)
            for shard in range(config.replay.shards)
        ),
        *(
            Role(
                f"actor-{index}",
                ["actor", *common, "--actor-index", str(index), "--num-lanes", total_lanes],
                terminal,
            )
            for index in range(config.run.num_actors)
        ),
    ]


def _supervise(roles: list[Role], stop: threading.Event, terminal: Terminal) -> int:
    for role in roles:
        role.start()
    code = 0
    try:
        while not stop.wait(POLL_S):
            ended = _check(roles, terminal)
            if ended is not None:
                code = ended
                break
    finally:
        _stop_in_order(roles)
    return code


def _check(roles: list[Role], terminal: Terminal) -> int | None:
    """Start again what has died; the run's exit code once it is over."""
    now = time.monotonic()
    for role in roles:
        if role.process is None:
            if now >= role.start_at:
                role.start()
            continue
        code = role.process.poll()
        if code is None:
            continue
        if code == 0 and role.name == "learner":
            return 0
        role.restarts = role.restarts + 1 if now - role.started < STEADY_S else 1
        if code == EXIT_BAD_INPUT or role.restarts > MAX_RESTARTS:
            role.wait(0)
            terminal.show("launcher", f"{role.name} ended with code {code}; stopping the run")
            return code if code > 0 else 1
        backoff = BACKOFF_S * 2 ** (role.restarts - 1)
        terminal.show("launcher", f"{role.name} ended with code {code}; starting it again in {backoff:g} s")
        role.process, role.start_at = None, now + backoff
    return None


def _stop_in_order(roles: list[Role]) -> None:
    """Actors first, so that the learner hears of their last episodes; then the learner, which saves."""
    for prefix in ("actor", "learner", "replay"):
        group = [role for role in roles if role.name.startswith(prefix)]
        for role in group:
            role.stop()
        for role in group:
            role.wait(STOP_S)
