"""apex-top: displays a live run in a terminal, from the statuses that its learner relays."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apex_zmq.net.sockets import Inbox, Links
from apex_zmq.watch.archive import pooled
from apex_zmq.watch.stats import progress_line
from apex_zmq.watch.verdict import Verdict, judge
from apex_zmq.watch.view import Bucket, Process, Restarts, Stage, State, View, Watch
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Status, decode_relayed_status

REFRESH_S = 1.0
ONCE_S = 2.0  # shortest interval over which `once` measures rates and shares
MAX_REFUSALS = 3  # lines per shard
WIDTH = 120  # columns of output that is not a terminal
OTHER_ROWS = 16  # rows of a terminal that are reserved for everything but the processes and restarts
MAX_STAGES = 3  # with histograms: those with the most cells
BLOCKS = " ▁▂▃▄▅▆▇█"
STYLES: dict[State, str] = {"working": "green", "filling": "cyan", "silent": "bold red", "stuck": "bold red"}
Numbers = Mapping[str, float]


class Listener:
    """Receives the statuses that a learner relays on its parameters link.

    address: of that link.
    """

    def __init__(self, links: Links) -> None:
        self.address = links.address("parameters")
        self._watch = Watch(time.monotonic())
        self._inbox: Inbox[Status] = links.subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})

    def receive(self, seconds: float) -> None:
        """Receive statuses for a number of seconds."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            status = self._inbox.receive(left_s)
            if status is not None:
                self._watch.add(status, time.monotonic())
            self._inbox.check_version("learner")

    @property
    def complete(self) -> bool:
        """Whether every process has reported for long enough to measure its rates."""
        return self._watch.complete(ONCE_S)

    def view(self) -> View:
        """Snapshot of the run."""
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
    """Print the run once, as soon as every process that the learner counts has reported, or after `timeout_s`.

    Returns:
        Exit code: 1 if no learner has reported by then, else 0.
    """
    deadline = time.monotonic() + timeout_s
    while not listener.complete and time.monotonic() < deadline:
        listener.receive(0.1)
    view = listener.view()
    if view.learner is None:
        print(
            f"apex-top: no status from a learner at {listener.address} within {timeout_s:g} s; check that it is "
            "running, that --parameters is its address (not a forwarder's), and --keys",
            file=sys.stderr,
        )
        return 1
    if not listener.complete:
        message = f"apex-top: not every process has reported within {timeout_s:g} s; raise --timeout to wait longer"
        print(message, file=sys.stderr)
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
    """Show the run until `stop` is set. Standard output must be a terminal."""
    console, warning = Console(), LastWarning(logging.WARNING)
    logging.basicConfig(handlers=[warning])
    with Live(console=console, screen=True, auto_refresh=False) as screen:
        while not stop.is_set():
            view = listener.view()
            max_processes = max(1, console.height - OTHER_ROWS - _height(view.restarts))
            shown = frame(view, judge(view), max_processes)
            screen.update(Group(shown, Text(warning.line, style="red")), refresh=True)
            listener.receive(REFRESH_S)


def to_json(view: View, verdict: Verdict) -> str:
    """Serialize verdict and view as one JSON object in one line."""
    return json.dumps({"verdict": asdict(verdict), **asdict(view)})


def frame(view: View, verdict: Verdict, max_processes: int | None = None) -> RenderableType:
    """Render the run.

    max_processes: maximum rows of the table of processes; working actors are omitted first. None: no limit.
    """
    bottom = Table.grid(padding=(0, 4))
    bottom.add_row(_shards(view.live("replay")), _buckets(view.buckets))
    return Group(
        Text(progress_line(view.run)),
        Text.assemble(("verdict: ", "bold"), (f"{verdict.rule}: ", "bold yellow"), verdict.text),
        Text(),
        _processes(view.processes, max_processes),
        Text(),
        bottom,
        *(
            Text(f"{shard.name} refused {each.segments} segments of {each.actor!r}, the last one: {each.reason!r}")
            for shard in view.live("replay")
            for each in shard.refusals[-MAX_REFUSALS:]
        ),
        *([] if view.restarts is None else _restarts(view.restarts)),
    )


def _processes(processes: Sequence[Process], max_rows: int | None) -> Table:
    table = _table("process", "host:pid", "up", "state", "CPU", "memory", "per second", "waits", "queue", "age")
    shown = processes
    if max_rows is not None and len(processes) > max_rows:
        shown = sorted(processes, key=_priority)[:max_rows]
    for each in shown:
        numbers = each.numbers
        state = f"{each.state} {_duration(each.silent_s)}" if each.state == "silent" else each.state
        table.add_row(
            Text(each.name),  # sent by a peer, so never parsed as markup
            Text(f"{each.host}:{each.pid}" if each.pid else ""),
            _duration(each.age_s) if each.pid else "",
            Text(state, style=STYLES.get(each.state, "yellow")),
            _show(numbers, "cpu", "{:.0%}"),
            _show(numbers, "rss_bytes", "{:.0f} MB", 1e-6),
            *(COLUMNS[each.role](numbers) if each.role in COLUMNS else ()),
        )
    if len(shown) < len(processes):
        table.add_row(f"and {len(processes) - len(shown)} more")
    return table


def _priority(process: Process) -> int:
    """Sort key of the processes to show; the lowest come first."""
    return 0 if process.role != "actor" else 1 + (process.state == "working")


def _learner(numbers: Numbers) -> tuple[str, ...]:
    return (
        _show(numbers, "updates_per_s", "{:.1f} updates"),
        _show(numbers, "waited", "{:.0%}"),
        _show(numbers, "decoded", "{:.0f} batches"),
    )


def _replay(numbers: Numbers) -> tuple[str, ...]:
    rates = _show(numbers, "inserts_per_s", "{:.0f} in"), _show(numbers, "samples_per_s", "{:.0f} out")
    waits = _show(numbers, "insert_blocked", "{:.0%} in"), _show(numbers, "sample_blocked", "{:.0%} out")
    return (
        ", ".join(filter(None, rates)),
        ", ".join(filter(None, waits)),
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


# Cells of the columns "per second", "waits", "queue" and "age", by role.
COLUMNS: dict[str, Callable[[Numbers], tuple[str, ...]]] = {"learner": _learner, "replay": _replay, "actor": _actor}


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


def _restarts(restarts: Restarts) -> Iterator[RenderableType]:
    """A line of figures, and histograms of the stages with the most cells."""
    yield Text()
    yield Text(
        f"restarts: {restarts.share:.0%} of decisions, {restarts.begun} episodes, {restarts.passes} passes; "
        f"archive: {restarts.cells} cells, {1e-6 * restarts.bytes:.1f} MB"
    )
    largest = sorted(restarts.stages, key=lambda stage: -sum(stage.frontier))[:MAX_STAGES]
    yield from map(Picture, sorted(largest, key=lambda stage: stage.stage))
    if hidden := len(restarts.stages) - len(largest):
        yield Text(f"and {hidden} more stages")


def _height(restarts: Restarts | None) -> int:
    """Rows of `_restarts`."""
    if restarts is None:
        return 0
    stages = len(restarts.stages)
    return 2 + 2 * min(stages, MAX_STAGES) + (stages > MAX_STAGES)


@dataclass(frozen=True, slots=True)
class Picture:
    """The histograms of a stage as two rows of block characters, pooled to the width of the terminal."""

    stage: Stage

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        stage, label = self.stage, self.stage.stage or "all"
        scale = f"  0 to {len(stage.frontier) * stage.width:g}"
        room = options.max_width - len(f"{label} cells {scale}")
        factor = math.ceil(len(stage.frontier) / max(room, 1))
        rows = (label, "cells", stage.frontier, scale), (" " * len(label), "ends ", stage.ends, "")
        for beginning, name, counts, end in rows:
            line = f"{beginning} {name} {blocks(pooled(counts, factor))}{end}"
            yield Text(line, no_wrap=True, overflow="crop")


def blocks(counts: Sequence[int]) -> str:
    """Draw each count as a block character, relative to the largest; only counts of 0 are blank."""
    largest = max(counts, default=0)
    return "".join(BLOCKS[-(-8 * count // largest)] if count else BLOCKS[0] for count in counts)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _show(numbers: Numbers, name: str, form: str, factor: float = 1.0) -> str:
    """Format a number; an empty cell if it is not reported."""
    return form.format(factor * numbers[name]) if name in numbers else ""


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
