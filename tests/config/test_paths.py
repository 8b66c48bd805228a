"""Paths as people type them, in options and settings."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from apex_zmq.cli import main, tools
from apex_zmq.config import loading, paths
from apex_zmq.config.check import check_temporary_directory
from apex_zmq.watch.doctor.host import check_sockets

from .conftest import refusal

IMPOSSIBLE = {
    "": "an empty path; name a file or directory",
    "x" * 300: "a name of 300 bytes in a path; at most 255 are possible",
    os.fsdecode(b"\xff"): "path '\\udcff' is not UTF-8; choose another name",
    "~nobody-of-that-name/run": "path ~nobody-of-that-name/run: no such user; write the path without ~",
}
PROGRAMS = [
    (main.train, "--run-dir"),
    (main.train, "--init-from"),
    (main.train, "--config"),
    (main.learner, "--run-dir"),
    (main.replay, "--log-dir"),
    (tools.evaluate, "--checkpoint"),
    (tools.play, "--video"),
]


@pytest.mark.parametrize(("text", "message"), IMPOSSIBLE.items())
@pytest.mark.parametrize(("program", "option"), PROGRAMS)
def test_an_impossible_path_is_refused_in_one_line_that_names_the_option(
    program: Callable[[list[str]], int], option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program([option, text])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: argument {option}: {message}" in line


@pytest.mark.parametrize("setting", sorted(paths.SETTINGS))
def test_paths_in_settings_are_checked_and_expanded(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    section, key = setting.split(".")
    config = loading.load(overrides=[f"{setting}=~/there"], addressed=False)
    assert getattr(getattr(config, section), key) == "/home/somebody/there"
    for text, message in IMPOSSIBLE.items():
        if text.isprintable():
            override = f"{setting}='{text}'"
            assert f"--set: {setting}: {message}" in refusal(functools.partial(loading.load, overrides=[override]))


def test_options_expand_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert paths.expanded("~/there") == Path("/home/somebody/there")
    assert paths.expanded("./~/there") == Path("./~/there")


def test_a_temporary_directory_too_long_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_temporary_directory("/" + "x" * 88)
    message = refusal(lambda: check_temporary_directory("/" + "x" * 89))
    assert message.endswith("set TMPDIR to one of at most 89 bytes, or pass --tcp")
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 89)
    check = check_sockets()
    assert (check.level, check.remedy) == ("fail", "set TMPDIR to one of at most 89 bytes, or pass --tcp")
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert check_sockets().level == "ok"
