"""Each case logs in a process of its own: logging is configured once per process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

CONFIGURE = """
import logging, sys, threading
from pathlib import Path
from apex_zmq.cli import logs
directory = Path(sys.argv[2]) if len(sys.argv) > 2 else None
def configure(**changes):
    vars(logs).update(changes)
    logs.configure("actor-7", "info", sys.argv[1], directory)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CONFIGURE + code, *arguments], capture_output=True, text=True)


def test_a_text_line_has_time_level_role_and_message() -> None:
    ran = run("configure(); logging.debug('no'); logging.warning('hello %d', 5)", "text")
    (line,) = ran.stdout.splitlines()
    day, clock, *rest = line.split(" ")
    datetime.fromisoformat(f"{day} {clock}")
    assert rest == ["WARNING", "actor-7", "hello", "5"]


def test_json_log_is_one_object_per_line_with_tracebacks() -> None:
    code = """
configure()
logging.info('two\\nlines, "quoted" %s', "é")
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("failed")
"""
    lines = [json.loads(line) for line in run(code, "json").stdout.splitlines()]
    assert all(line.keys() == {"time", "level", "role", "message"} for line in lines)
    assert [(line["level"], line["role"]) for line in lines] == [("INFO", "actor-7"), ("ERROR", "actor-7")]
    assert lines[0]["message"] == 'two\nlines, "quoted" é'
    assert lines[1]["message"].startswith("failed\nTraceback")
    assert lines[1]["message"].endswith("ZeroDivisionError: division by zero")
    assert datetime.fromisoformat(lines[0]["time"]).tzinfo is not None


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_file_holds_the_same_lines_as_the_terminal(log_format: str, tmp_path: Path) -> None:
    ran = run("configure(); logging.info('one'); logging.info('two')", log_format, str(tmp_path / "made" / "logs"))
    assert "two" in ran.stdout
    assert (tmp_path / "made" / "logs" / "actor-7.log").read_text() == ran.stdout


def test_without_a_directory_nothing_is_written(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", CONFIGURE + "configure(); logs.keep('gone')", "text"], cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_are_rotated_and_the_oldest_dropped(tmp_path: Path) -> None:
    code = "configure(FILE_BYTES=1000, OLD_FILES=2)\nfor number in range(100): logging.info('line %d', number)"
    ran = run(code, "text", str(tmp_path))
    files = [tmp_path / name for name in ("actor-7.log.2", "actor-7.log.1", "actor-7.log")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(path.stat().st_size <= 1000 for path in files)
    kept = "".join(path.read_text() for path in files)
    assert ran.stdout.endswith(kept)
    assert "line 99" in kept
    assert "line 0\n" not in kept


@pytest.mark.parametrize(
    "failure", ["raise ValueError('boom')", "t = threading.Thread(target=lambda: int('boom')); t.start(); t.join()"]
)
def test_an_uncaught_exception_is_in_the_file_too(failure: str, tmp_path: Path) -> None:
    ran = run(f"configure()\n{failure}", "json", str(tmp_path))
    (line,) = (tmp_path / "actor-7.log").read_text().splitlines()
    assert json.loads(line)["level"] == "CRITICAL"
    assert "Traceback" in json.loads(line)["message"]
    assert "boom" in json.loads(line)["message"]
    assert ran.stderr == ""
    assert ran.returncode == ("raise" in failure)


def test_printed_error_is_logged_to_the_file_only(tmp_path: Path) -> None:
    ran = run("configure(); logs.keep('port in use: 100%')", "text", str(tmp_path))
    assert ran.stdout == ran.stderr == ""
    assert (tmp_path / "actor-7.log").read_text().endswith("ERROR   actor-7 port in use: 100%\n")


def test_full_disk_loses_log_lines_and_program_continues(tmp_path: Path) -> None:
    (tmp_path / "actor-7.log").symlink_to("/dev/full")
    ran = run("configure(); logging.info('one'); logging.info('two')", "text", str(tmp_path))
    assert ran.returncode == 0
    assert [line.split()[-1] for line in ran.stdout.splitlines()] == ["one", "two"]
    (line,) = ran.stderr.splitlines()
    assert re.search(r"actor-7\.log loses lines, the program continues: .*No space left", line)
