"""apex-top: a live run in a terminal, from the statuses that its learner relays."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apex_zmq.net.sockets import Inbox, Links
from apex_zmq.watch.stats import progress_line
from apex_zmq.watch.verdict import Verdict, judge
from apex_zmq.watch.view import Bucket, Process, State, View, Watch
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Status, decode_relayed_status

REFRESH_S = 1.0
ONCE_S = 2.0  # of which `once` takes rates and shares, at least
MAX_REFUSALS = 3  # lines per shard
WIDTH = 120  # columns where there is no terminal
OTHER_ROWS = 16  # of a terminal, for what is no process
STYLES: dict[State, str] = {"working": "green", "filling": "cyan", "away": "bold red", "stuck": "bold red"}
Numbers = Mapping[str, float]


class Listener:
    """Receives the statuses that a learner relays on its parameters link.

    address: of the link.
    """

    def __init__(self, links: Links) -> None:
        self.address = links.address("parameters")
        self._watch = Watch(time.monotonic())
        self._inbox: Inbox[Status] = links.subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})

    def listen(self, seconds: float) -> None:
        """Receive statuses for so many seconds."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            status = self._inbox.receive(left_s)
            if status is not None:
                self._watch.add(status, time.monotonic())
            self._inbox.check_version("learner")

    @property
    def complete(self) -> bool:
        """Whether every role has reported for long enough to be judged."""
        return self._watch.complete(ONCE_S)

    def view(self) -> View:
        """The run now."""
        return self._watch.view(time.monotonic())

    def close(self) -> None:
        """Close the socket."""
        self._inbox.close()


class LastWarning(logging.Handler):
    """Keeps the newest log line, for the full-screen display."""

    line = ""

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        self.line = record.getMessage()


def once(listener: Listener, timeout_s: float, *, as_json: bool) -> int:
    """Print the run once, when every role that the learner knows of has been heard.

    Returns:
        Exit code: 1 when no learner has been heard in time.
    """
    deadline = time.monotonic() + timeout_s
    while not listener.complete and time.monotonic() < deadline:
        listener.listen(0.1)
    view = listener.view()
    if view.learner is None:
        print(
            f"apex-top: no word from a learner at {listener.address} within {timeout_s:g} s; is it running, and are "
            "--parameters (its own, not a forwarder's) and --keys right?",
            file=sys.stderr,
        )
        return 1
    if not listener.complete:
        print(f"apex-top: within {timeout_s:g} s not every role has been heard; see --timeout", file=sys.stderr)
    verdict = judge(view)
    if as_json:
        print(to_json(view, verdict))
    else:
        console = Console()
        if not console.is_terminal:
            console.width = WIDTH
        console.print(frame(view, verdict))
    return 0


def live(listener: Listener, stop: threading.Event) -> None:
    """Show the run until told to stop; standard output is a terminal."""
    console, warning = Console(), LastWarning(logging.WARNING)
    logging.basicConfig(handlers=[warning])
    with Live(console=console, screen=True, auto_refresh=False) as screen:
        while not stop.is_set():
            view = listener.view()
            shown = frame(view, judge(view), max_processes=max(1, console.height - OTHER_ROWS))
            screen.update(Group(shown, Text(warning.line, style="red")), refresh=True)
            listener.listen(REFRESH_S)


def to_json(view: View, verdict: Verdict) -> str:
    """All that a frame shows, and more, as one JSON object in one line."""
    return json.dumps({"verdict": asdict(verdict), **asdict(view)})


def frame(view: View, verdict: Verdict, max_processes: int | None = None) -> RenderableType:
    """One picture of the run.

    max_processes: rows at most; actors that work are left out first. None: all.
    """
    beside = Table.grid(padding=(0, 4))
    beside.add_row(_shards(view.live("replay")), _buckets(view.buckets))
    return Group(
        Text(progress_line(view.run)),
        Text.assemble(("verdict: ", "bold"), (f"{verdict.rule}: ", "bold yellow"), verdict.text),
        Text(),
        _processes(view.processes, max_processes),
        Text(),
        beside,
        *(
            Text(f"{shard.name} refused {each.segments} segments of {each.actor!r}, the last one: {each.reason!r}")
            for shard in view.live("replay")
            for each in shard.refusals[-MAX_REFUSALS:]
        ),
    )


def _processes(processes: Sequence[Process], at_most: int | None) -> Table:
    table = _table("process", "host:pid", "up", "state", "CPU", "memory", "per second", "waits", "queue", "age")
    shown = processes
    if at_most is not None and len(processes) > at_most:
        shown = sorted(processes, key=_urgency)[:at_most]
    for each in shown:
        numbers = each.numbers
        state = f"{each.state} {_time(each.silent_s)}" if each.state == "away" else each.state
        table.add_row(
            Text(each.name),  # of a peer: not rich markup
            Text(f"{each.host}:{each.pid}" if each.pid else ""),
            _time(each.age_s) if each.pid else "",
            Text(state, style=STYLES.get(each.state, "yellow")),
            _show(numbers, "cpu", "{:.0%}"),
            _show(numbers, "rss_bytes", "{:.0f} MB", 1e-6),
            *(DOES[each.role](numbers) if each.role in DOES else ()),
        )
    if len(shown) < len(processes):
        table.add_row(f"and {len(processes) - len(shown)} more")
    return table


def _urgency(process: Process) -> int:
    """Sort key: processes with the lowest are kept longest."""
    return 0 if process.role != "actor" else 1 + (process.state == "working")


def _learner(numbers: Numbers) -> tuple[str, ...]:
    return (
        _show(numbers, "updates_per_s", "{:.1f} updates"),
        _show(numbers, "waited", "{:.0%}"),
        _show(numbers, "decoded", "{:.0f} batches"),
    )


def _replay(numbers: Numbers) -> tuple[str, ...]:
    rates = _show(numbers, "inserts_per_s", "{:.0f} in"), _show(numbers, "samples_per_s", "{:.0f} out")
    held = _show(numbers, "insert_blocked", "{:.0%} in"), _show(numbers, "sample_blocked", "{:.0%} out")
    return (
        ", ".join(filter(None, rates)),
        ", ".join(filter(None, held)),
        _show(numbers, "in_flight", "{:.0f} in flight"),
        _show(numbers, "sample_age_s", "{:.0f} s"),
    )


def _actor(numbers: Numbers) -> tuple[str, ...]:
    ages = _show(numbers, "parameter_age_s", "{:.1f} s"), _show(numbers, "parameter_age_updates", "{:.0f} updates")
    return (
        _show(numbers, "decisions_per_s", "{:.0f} decisions"),
        _show(numbers, "blocked", "{:.0%}"),
        _show(numbers, "queued_segments", "{:.0f} segments"),
        ", ".join(filter(None, ages)),
    )


DOES: dict[str, Callable[[Numbers], tuple[str, ...]]] = {"learner": _learner, "replay": _replay, "actor": _actor}


def _shards(shards: Sequence[Process]) -> Table:
    table = _table("shard", "stored", "MB", "samples/insert", "received", "lost", "duplicate", "refused")
    for shard in shards:
        numbers = shard.numbers
        target = _show(numbers, "samples_per_insert_target", "{:g}") or "free"
        table.add_row(
            Text(shard.name),
            _show(numbers, "size", "{:.0f}"),
            _show(numbers, "bytes", "{:.1f}", 1e-6),
            f"{_show(numbers, 'samples_per_insert', '{:.2f}') or 0} of {'free' if target == '0' else target}",
            *(_show(numbers, f"segments_{what}", "{:.0f}") for what in ("received", "lost", "duplicate", "refused")),
        )
    return table


def _buckets(buckets: Sequence[Bucket]) -> Table:
    table = _table("epsilon", "episodes", "return", "clears")
    for bucket in buckets:
        clears = "" if bucket.clear_rate is None else f"{bucket.clear_rate:.0%}"
        table.add_row(f"to {bucket.up_to:g}", f"{bucket.episodes}", f"{bucket.mean_return:.1f}", clears)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _show(numbers: Numbers, name: str, form: str, factor: float = 1.0) -> str:
    """A number, or an empty cell where it is not reported."""
    return form.format(factor * numbers[name]) if name in numbers else ""


def _time(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
