"""The launcher of apex-train: starts the roles of one run on this machine and restarts those that fail."""

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apex_zmq.cli import logs
from apex_zmq.cli.program import EXIT_BAD_INPUT
from apex_zmq.config import loading, sources, torchrun
from apex_zmq.config.check import check_temporary_directory
from apex_zmq.config.settings import ADDRESSES, Config
from apex_zmq.net.links import LINKS
from apex_zmq.rundir import directory as rundir

# Of several machines or several learners, which a run on this machine alone has not.
DROPPED_VARIABLES = {*(sources.variable_of(f"addresses.{name}") for name in ADDRESSES), *torchrun.VARIABLES}
LAUNCHED = "APEX_LAUNCHED"  # environment variable; a role with it ends when its launcher ends
MAX_RESTARTS = 5  # in a row
BACKOFF_S = 1.0  # before a restart; doubles with each one in a row
STEADY_S = 60.0  # run time of a role after which its count of restarts is reset
STOP_S = 20.0  # time to stop before a role is killed
POLL_S = 0.2


class Terminal:
    """Prints the lines of all roles; on a terminal, the run's progress stays in the bottom row.

    log_format: of the roles' log lines. With json, any other output of a role, such as the traceback of a native
        crash, becomes a JSON line of level WARNING.
    """

    def __init__(self, log_format: logs.Format) -> None:
        self.is_live = logs.moves_cursor()
        self._json = log_format == "json"
        self._lock = threading.Lock()
        self._progress = ""

    def print_line(self, role: str, line: str) -> None:
        """Print one line of a role's output."""
        if not self._json:
            line = f"{role:9}| {line}"
        elif not line.startswith('{"time": '):
            line = logs.json_line(time.time(), "WARNING", role, line)
        with self._lock:
            self._write(f"\r\x1b[2K{line}\n{self._bottom_row()}" if self.is_live else f"{line}\n")

    def show_progress(self, text: str) -> None:
        """Replace the bottom row."""
        with self._lock:
            self._progress = text
            self._write(f"\r\x1b[2K{self._bottom_row()}")

    def _bottom_row(self) -> str:
        return self._progress[: shutil.get_terminal_size().columns - 1]

    def _write(self, text: str) -> None:
        # If the disk is full or the reader is gone, the lines are lost here; the roles' log files have them. The roles'
        # pipes must still be read, or the roles would block.
        with contextlib.suppress(OSError):
            print(text, end="", flush=True)

    def close(self) -> None:
        """End the bottom row."""
        if self._progress:
            self._write("\n")


class ProgressFollower(threading.Thread):
    """Shows the progress of a run, from its learner's statuses, on a terminal, until closed."""

    def __init__(self, config: Config, terminal: Terminal) -> None:
        super().__init__(name="progress", daemon=True)
        self._config, self._terminal = config, terminal
        self._closing = threading.Event()

    def run(self) -> None:  # noqa: D102
        from apex_zmq.net.sockets import Links
        from apex_zmq.watch.stats import progress_line
        from apex_zmq.wire.codec import Kind
        from apex_zmq.wire.messages import decode_relayed_status

        inbox = Links(self._config).subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})
        with contextlib.closing(inbox):
            while not self._closing.is_set():
                status = inbox.receive(POLL_S)
                if status is not None and status.role == "learner":
                    self._terminal.show_progress(progress_line(status.metrics))

    def close(self) -> None:
        """Stop the thread."""
        self._closing.set()
        self.join()


@dataclass
class Role:
    """The process of one role, with its count of restarts.

    again: returns the arguments of a restart; None: those of the first start.
    environment: variables added to the launcher's own.
    restarts: number of restarts in a row, see `STEADY_S`.
    started, start_at: monotonic seconds of the last start, and of the next one after the process has ended.
    """

    name: str
    arguments: Sequence[str]
    terminal: Terminal
    again: Callable[[], Sequence[str]] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    restarts: int = 0
    started: float = 0.0
    start_at: float = 0.0
    _reader: threading.Thread | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process, and a thread that prints its output under the role's name."""
        arguments = self.again() if self.restarts and self.again is not None else self.arguments
        command = [sys.executable, "-m", "apex_zmq", *arguments]
        # In a separate session, so that Ctrl-C reaches only the launcher, which stops the roles in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={
                **{name: value for name, value in os.environ.items() if name not in DROPPED_VARIABLES},
                LAUNCHED: "1",
                **self.environment,
            },
            start_new_session=True,
        )
        self.started = time.monotonic()
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.terminal.print_line(self.name, line.rstrip("\n"))

    def stop(self) -> None:
        """Send the process SIGTERM, if it is running."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        """Wait for the process to end; kill it after the timeout."""
        if self.process is None:
            return
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.terminal.print_line("launcher", f"{self.name} does not stop; killing it")
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
    """Run learner, replay shards and actors until a budget is spent, Ctrl-C, or a role fails too often.

    render: whether the last actor, which has the lowest epsilons, opens a window.

    Returns:
        Exit code: 0 after a budget or Ctrl-C, else that of the role that failed.

    Raises:
        ConfigError: TMPDIR is too long for ipc sockets.
    """
    if not tcp:
        check_temporary_directory(tempfile.gettempdir())
    home = Path(tempfile.mkdtemp(prefix="apex-"))  # 0700
    lock = os.open(home, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)  # systemd-tmpfiles(8) would otherwise remove files ten days old
    stop = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    terminal = Terminal(log_format)
    progress: ProgressFollower | None = None
    try:
        addresses = local_addresses(config.replay.shards, home if not tcp else None)
        config = loading.replace(config, addresses | {"replay.snapshot_dir": str(directory.absolute())})
        path = home / "config.yaml"
        path.write_text(loading.to_yaml(config))
        common = ["--config", str(path), "--log-dir", str(directory / "logs"), "--log-format", log_format]
        roles = _roles(config, common, directory, resume, init_from, terminal)
        if config.telemetry.metrics_port is not None:
            # The learner has the first port; each role keeps its port over restarts.
            for port, role in enumerate(roles[1:], config.telemetry.metrics_port + 1):
                role.arguments = [*role.arguments, "--set", f"telemetry.metrics_port={port}"]
        if render:
            # A failed actor is restarted without a window, because its display may be gone.
            last = roles[-1]
            without = last.arguments
            last.arguments, last.again = [*without, "--render"], lambda: without
        if terminal.is_live:
            roles[0].environment = {logs.PROGRESS_IN_FILE: "1"}
            progress = ProgressFollower(config, terminal)
            progress.start()
        return _supervise(roles, stop, terminal)
    finally:
        if progress is not None:
            progress.close()
        terminal.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
        shutil.rmtree(home, ignore_errors=True)
        os.close(lock)


def local_addresses(shards: int, home: Path | None) -> dict[str, object]:
    """Address settings of a run on this machine, without keys: ipc sockets in `home`, or free loopback ports."""
    counts = {name: shards if link.one_per == "shard" else 1 for name, link in LINKS.items()}
    total = sum(counts.values())
    if home is not None:
        pool = [f"ipc://{home}/{number}" for number in range(total)]
    else:
        pool = [f"tcp://127.0.0.1:{port}" for port in free_ports(total)]
    addresses: dict[str, object] = {"addresses.keys": None}
    for name, count in counts.items():
        taken, pool = pool[:count], pool[count:]
        addresses[f"addresses.{name}"] = taken if LINKS[name].one_per == "shard" else taken[0]
    return addresses


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that are free now."""
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
    """Learner, shards, actors; the learner first, since it reports a bad run directory or checkpoint.

    common: arguments of every role.
    """
    learner = ["learner", *common, "--run-dir", str(directory)]
    first = ["--resume"] if resume else ["--init-from", str(init_from)] if init_from is not None else []

    def learner_again() -> list[str]:
        # Without a checkpoint, restart with the arguments of the first start.
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
    """Restart roles that have ended; return the run's exit code if it has ended, else None."""
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
            terminal.print_line("launcher", f"{role.name} ended with code {code}; stopping the run")
            return code if code > 0 else 1
        backoff = BACKOFF_S * 2 ** (role.restarts - 1)
        terminal.print_line("launcher", f"{role.name} ended with code {code}; restarting it in {backoff:g} s")
        role.process, role.start_at = None, now + backoff
    return None


def _stop_in_order(roles: list[Role]) -> None:
    """Stop actors first, so that the learner receives their last episodes, then the learner, which saves."""
    for prefix in ("actor", "learner", "replay"):
        group = [role for role in roles if role.name.startswith(prefix)]
        for role in group:
            role.stop()
        for role in group:
            role.wait(STOP_S)
