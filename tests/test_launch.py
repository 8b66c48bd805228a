from __future__ import annotations

import json

import pytest

from apex_zmq.launch import Terminal
from apex_zmq.logs import json_line


def test_away_from_a_terminal_text_lines_get_their_roles_name(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal("text")
    terminal.show("learner", "2026-01-01 INFO    learner progress  episodes 3")
    terminal.show("actor-12", "Traceback")
    terminal.close()
    assert capsys.readouterr().out == (
        "learner  | 2026-01-01 INFO    learner progress  episodes 3\nactor-12 | Traceback\n"
    )


def test_away_from_a_terminal_json_stays_json_and_the_rest_becomes_so(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal("json")
    logged = json_line(0.0, "INFO", "learner", "progress  episodes 3")
    terminal.show("learner", logged)
    terminal.show("actor-12", '{"a": "dictionary" that is no JSON')
    terminal.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == logged
    line = json.loads(second)
    assert (line["level"], line["role"]) == ("WARNING", "actor-12")
    assert line["message"] == '{"a": "dictionary" that is no JSON'
