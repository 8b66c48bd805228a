"""Where a program cannot start, or may not look, it says why in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_zmq import __main__
from apex_zmq.cli import tools
from apex_zmq.cli.launch import Terminal
from apex_zmq.play import evaluator

from ..conftest import ROOT

assert evaluator  # loaded, since a user who may not look cannot load it
NOBODY = 65534


def test_missing_packages_error_says_how_to_install_them() -> None:
    command = [sys.executable, "-S", "-m", "apex_zmq", "doctor"]
    ran = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("apex-doctor: error: cannot start: No module named ")
    assert "make .venv/.installed" in line


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(sys, "argv", ["apex_zmq", "train"])
    assert __main__.main() == 2
    assert "apex-train: error: cannot start: Python 3.9 is too old" in capsys.readouterr().err


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A directory that this process may not search."""
    path = tmp_path / "closed"
    path.mkdir(mode=0)
    if os.geteuid() == 0:  # may do everything
        os.seteuid(NOBODY)
        yield path
        os.seteuid(0)
    else:
        yield path


def test_permission_denied_error_names_the_path(closed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tools.evaluate(["--checkpoint", str(closed / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"apex-eval: error: cannot use {closed / 'run'}: Permission denied; ")


@pytest.mark.parametrize(
    "command",
    [
        "apex-doctor --config configs/cartpole.yaml --role train",
        "apex-eval --checkpoint models/mario-1-1 --episodes 1 --protocol greedy",
    ],
)
def test_a_reader_that_is_gone_ends_a_program_quietly(command: str) -> None:
    program, *arguments = command.split()
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [ROOT / "bin" / program, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_gets_no_control_codes(
    term: str, live: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal = Terminal("text")
    assert terminal.is_live is live
    terminal.print_line("actor-0", "playing")
    assert ("\x1b" in capsys.readouterr().out) is live
