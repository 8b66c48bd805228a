from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest

from apex_zmq.cli.launch import Role, Terminal
from apex_zmq.cli.logs import json_line


def test_text_lines_are_prefixed_with_role_without_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal("text")
    terminal.print_line("learner", "2026-01-01 INFO    learner progress  episodes 3")
    terminal.print_line("actor-12", "Traceback")
    terminal.close()
    assert capsys.readouterr().out == (
        "learner  | 2026-01-01 INFO    learner progress  episodes 3\nactor-12 | Traceback\n"
    )


def test_non_json_lines_are_wrapped_as_json_without_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal("json")
    logged = json_line(0.0, "INFO", "learner", "progress  episodes 3")
    terminal.print_line("learner", logged)
    terminal.print_line("actor-12", '{"a": "dictionary" that is no JSON')
    terminal.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == logged
    line = json.loads(second)
    assert (line["level"], line["role"]) == ("WARNING", "actor-12")
    assert line["message"] == '{"a": "dictionary" that is no JSON'


def test_role_output_is_drained_when_stdout_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        terminal = Terminal("text")
        role = Role("doctor", ["doctor", "--help"], terminal)
        role.start()
        role.wait(60)
        terminal.close()
        monkeypatch.undo()
    assert role.process is not None
    assert role.process.stdout is not None
    with role.process.stdout as rest:
        assert rest.read() == ""
