"""What a user sees of a run: the live line of a terminal, log files and TensorBoard, of one real run per log format."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from apex_zmq.cli.launch import free_ports
from apex_zmq.config import loading
from apex_zmq.rundir.directory import SETTINGS
from apex_zmq.watch.metrics import curves

from ..conftest import ROOT, StartProgram, environment

ROLES = {"learner", "replay-0", "actor-0"}
# Label on the progress line, tag, digits behind the point.
SHOWN = {
    "episodes": ("rollout/episodes", 0),
    "decisions/s": ("time/decisions_per_s", 0),
    "updates": ("train/updates", 0),
    "updates/s": ("time/updates_per_s", 1),
    "replay": ("replay/size", 0),
    "return": ("rollout/ep_rew_mean", 1),
    "low-eps return": ("rollout/low_epsilon/ep_rew_mean", 1),
    "loss": ("train/loss", 4),
}


@dataclass
class Screen:
    """A terminal that knows carriage return, line feed and erase line.

    erased: what was in the bottom row each time it was erased.
    """

    rows: list[str] = field(default_factory=lambda: [""])
    erased: list[str] = field(default_factory=list)
    _column: int = 0

    def feed(self, text: str) -> None:
        for token in re.findall(r"\x1b\[2K|.|\n", text):
            if token == "\n":
                self.rows.append("")
            elif token == "\r":
                self._column = 0
            elif token == "\x1b[2K":
                self.erased.append(self.rows[-1])
                self.rows[-1] = ""
            else:
                row = self.rows[-1]
                self.rows[-1] = row[: self._column] + token + row[self._column + 1 :]
                self._column += 1


class Watched(NamedTuple):
    log_format: str
    columns: int
    screen: Screen
    directory: Path

    def messages(self, role: str) -> list[str]:
        """What the role's log file holds, without time, level and role."""
        lines = (self.directory / "logs" / f"{role}.log").read_text().splitlines()
        if self.log_format == "json":
            return [json.loads(line)["message"] for line in lines]
        return [line.partition(f" {role} ")[2] for line in lines]

    @property
    def progress(self) -> list[str]:
        messages = self.messages("learner")
        return [each.removeprefix("progress  ") for each in messages if each.startswith("progress  ")]


@pytest.fixture(scope="module", params=[("text", 500), ("json", 60)], ids=["text", "json"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run of apex-train under a pseudo-terminal, interrupted when it has shown everything that is asserted below."""
    pytest.importorskip("torch")
    log_format, columns = request.param
    directory = tmp_path_factory.mktemp("watched")
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    options = ["--num-actors", "1", "--run-dir", "run", "--log-format", log_format]
    options += ["--set", "replay.min_size=200", "--set", "telemetry.log_interval_s=0.2"]
    options += ["--set", "telemetry.status_interval_s=0.1"]
    options += ["--set", f"telemetry.metrics_port={free_ports(1)[0]}"]
    process = subprocess.Popen(
        [ROOT / "bin" / "apex-train", "--config", ROOT / "configs" / "cartpole.yaml", *options],
        cwd=directory,
        env=environment(),
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    watched = Watched(log_format, columns, Screen(), directory / "run")
    interrupted = False
    for text in texts(ours):
        watched.screen.feed(text)
        if not interrupted and has_shown_everything(watched):
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(ours)
    assert process.wait() == 0, watched.screen
    return watched


def has_shown_everything(watched: Watched) -> bool:
    """Whether the bottom row has moved twice, and three progress lines have been logged, the last with every label."""
    if len(set(watched.screen.erased) - {""}) < 3:
        return False
    lines = watched.progress
    return len(lines) >= 3 and all(f"{label} " in lines[-1] for label in SHOWN) and updates(lines[-1]) >= 400


def updates(line: str) -> int:
    """The learner's updates on a progress line; -1 without them."""
    match = re.search(r"updates (\d+)", line)
    return int(match[1]) if match else -1


def texts(descriptor: int) -> Iterator[str]:
    """What comes out of a pseudo-terminal until its other side is closed, without a part of an escape sequence."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""
    while True:
        try:
            rest += decoder.decode(os.read(descriptor, 65536))
        except OSError:
            yield rest
            return
        whole, escape, sequence = rest.rpartition("\x1b")
        if not escape or len(sequence) >= 3:
            whole, escape, sequence = rest, "", ""
        yield whole
        rest = escape + sequence


def test_one_live_line_stays_at_the_bottom_and_the_others_scroll(watched: Watched) -> None:
    *scrolled, live, behind = watched.screen.rows
    assert behind == ""
    shown = [row for row in watched.screen.erased if row] + [live]
    assert len(set(shown)) >= 3  # it moved

    def without_updates(line: str) -> str:  # a status counts updates that the last summary did not have yet
        return re.sub(r"updates \d+", "", line)[: watched.columns - 20]

    # Nothing but progress was ever erased. Before the first summary a status knows the updates alone.
    assert {without_updates(row) for row in shown} - {""} <= {without_updates(line) for line in watched.progress}
    counts = [count for row in shown if (count := updates(row)) >= 0]
    assert counts == sorted(counts)
    assert not any("decisions/s" in row for row in scrolled)
    for role in ROLES:
        logged = (watched.directory / "logs" / f"{role}.log").read_text().splitlines()
        prefix = f"{role:9}| " if watched.log_format == "text" else ""
        lines = [prefix + line for line in logged if "decisions/s" not in line]
        assert lines
        assert set(lines) <= set(scrolled)


def test_every_role_has_a_log_file_of_the_format_asked_for(watched: Watched) -> None:
    files = {path.name: path.read_text().splitlines() for path in (watched.directory / "logs").iterdir()}
    assert files.keys() == {f"{role}.log" for role in ROLES}
    for name, lines in files.items():
        role = name.removesuffix(".log")
        if watched.log_format == "json":
            assert {json.loads(line)["role"] for line in lines} == {role}
        else:
            assert all(re.match(rf"\d{{4}}-\d\d-\d\d \S+ +[A-Z]+ +{role} \S", line) for line in lines)
    if watched.log_format == "json":
        assert {json.loads(row)["role"] for row in watched.screen.rows[:-2]} == ROLES


def test_every_role_serves_metrics_on_its_own_port(watched: Watched) -> None:
    logged = "\n".join(line for role in ("learner", "replay-0", "actor-0") for line in watched.messages(role))
    ports = [int(port) for port in re.findall(r"metrics at http://127\.0\.0\.1:(\d+)/metrics", logged)]
    assert len(ports) == 3
    assert ports == sorted(set(ports))  # the learner has the first


def test_run_directory_records_the_addresses_of_the_run(watched: Watched) -> None:
    config = loading.load(watched.directory / SETTINGS)
    assert config.addresses.parameters.startswith("ipc://")
    assert config.env.id == "CartPole-v1"


def points(directory: Path) -> list[dict[str, float]]:
    """What was written to TensorBoard at each interval, by tag."""
    (path,) = directory.glob("events.*")
    found: list[dict[str, float]] = []
    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.tag == "train/updates":  # the first of each
                found.append({})
            if value.HasField("simple_value"):
                found[-1][value.tag] = value.simple_value
    return found


def test_progress_and_tensorboard_show_the_same_numbers(watched: Watched) -> None:
    lines, written = watched.progress, points(watched.directory)
    assert len(lines) == len(written) >= 3
    seen: set[str] = set()
    for line, numbers in zip(lines, written, strict=True):
        shown = dict(part.rsplit(" ", 1) for part in line.split("  "))
        assert shown.keys() == {label for label, (tag, _) in SHOWN.items() if tag in numbers}
        for label, text in shown.items():
            tag, digits = SHOWN[label]
            # Half a unit of the last digit shown; TensorBoard holds float32.
            tolerance = 0.5 * 10**-digits + 1e-6 * abs(numbers[tag])
            assert float(text) == pytest.approx(numbers[tag], rel=0, abs=tolerance)
        seen |= shown.keys()
    assert seen == SHOWN.keys()


def test_tensorboard_has_the_curves_of_its_charts(watched: Watched) -> None:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    events = EventAccumulator(str(watched.directory))
    events.Reload()
    tags = events.Tags()
    (layout,) = events.Tensors("custom_scalars__config__")
    evaluated = [curve.name for curve in curves() if curve.figure]
    for category in Layout.FromString(layout.tensor_proto.string_val[0]).category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                if pattern.startswith("wait/rank_"):  # of a learner of several ranks
                    continue
                assert any(re.match(pattern, tag) for tag in (*tags["scalars"], *evaluated)), pattern
    assert {"train/td_error", "replay/priority"} <= set(tags["histograms"])
    for role in ("actor", "replay", "learner"):
        assert events.Scalars(f"memory/{role}_bytes")[-1].value > 20e6  # a Python process with NumPy


def test_role_started_alone_logs_to_log_dir(start: StartProgram, tmp_path: Path) -> None:
    small = (
        "--set",
        "replay.arena_bytes=2_000_000",
        "--set",
        "replay.capacity=10_000",
        "--set",
        "replay.min_size=1000",
    )
    addresses = ("--experience", f"ipc://{tmp_path}/e", "--priorities", f"ipc://{tmp_path}/p")
    replay = start("replay", *small, *addresses, "--log-dir", "here/logs", "--log-format", "json")
    replay.wait_for('"role": "replay-0"')
    replay.process.terminate()
    assert replay.wait() == 0, replay.output
    assert (tmp_path / "here" / "logs" / "replay-0.log").read_text() == replay.output
