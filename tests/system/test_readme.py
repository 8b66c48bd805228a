"""README and pages as a reader follows them: their shell commands, in order, in a fresh clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ..conftest import ROOT, Program

# Their blocks marked `sh` are run; commands that need other hosts or hours are marked otherwise.
PAGES = ("README.md", "docs/PROGRAMS.md", "docs/ENVIRONMENTS.md", "docs/WATCHING.md", "docs/RUN_DIRECTORY.md")
UPDATES_PER_RUN = 20


def commands(text: str) -> list[str]:
    """The commands of all shell blocks, without comments, a continued line as one."""
    script = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = (re.sub(r"(^|\s+)#\s.*", "", line).strip() for line in script.splitlines())
    return [line for line in lines if line]


def bounded(command: str, runs: int, newest: str) -> str:
    """The command with a small budget.

    runs: training runs so far, this one included; budgets count over resumed runs.
    newest: the run directory written to last, which stands in for a reader's own choice.
    """
    budget = f"--num-actors 1 --max-updates {UPDATES_PER_RUN * runs} --set replay.min_size=500"
    command = command.replace("checkpoints/RUN", newest)
    if command.startswith("make train"):
        return f"make train ARGS='{budget}'"
    if command.startswith("make demo"):
        return "make demo ARGS='--minutes 0.5'"
    if command.startswith("bin/apex-train"):
        return f"{command} {budget}"
    if command.startswith("bin/apex-eval"):
        return f"{command} --episodes 1"
    return command


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of the last commit, and the environment of somebody who has just opened a terminal."""
    for name in list(os.environ):
        if name.startswith("APEX_") or name in ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHON", f"{sys.base_prefix}/bin/python3")
    path = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, path], check=True)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # windows that nobody sees
    return path


def visit_tensorboard(command: str, clone: Path) -> None:
    """Start it, open its page, stop it."""
    program = Program.of(["bash", "-c", f"exec {command} --port 0"], clone)
    try:
        line = program.wait_for(r"http://\S+")
        found = re.search(r"http://[^\s/]+", line)
        assert found
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"TensorBoard" in direct.open(found[0]).read()
    finally:
        program.end()


def watch_a_run(command: str, clone: Path) -> None:
    """Start a run; follow it until something has been evaluated, or look at it once; stop both."""
    directory = f"checkpoints/watched-{len(list((clone / 'checkpoints').glob('watched-*')))}"
    run = f"bin/apex-train --config configs/cartpole.yaml --run-dir {directory} --set replay.min_size=500"
    train = Program.of(run.split(), clone)
    try:
        train.wait_for("progress")
        if command.startswith("bin/apex-top"):
            look = Program.of([*command.replace("checkpoints/RUN", directory).split(), "--once"], clone)
            assert look.wait() == 0, look.output
            assert "verdict: " in look.output
            return
        follow = Program.of(bounded(command, 0, directory).split(), clone)
        try:
            follow.wait_for("mean_return")
            follow.interrupt()
            assert follow.wait() == 0, follow.output
        finally:
            follow.end()
    finally:
        train.end()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_commands_of_the_pages_succeed_in_a_fresh_clone(clone: Path) -> None:
    runs, newest = 0, ""
    for command in commands("".join((ROOT / page).read_text() for page in PAGES)):
        if command == "make test":
            continue
        if "/tensorboard" in command:
            visit_tensorboard(command, clone)
            continue
        if "--follow" in command or command.startswith("bin/apex-top"):
            watch_a_run(command, clone)
            continue
        runs += command.startswith(("make train", "bin/apex-train"))
        command = bounded(command, runs, newest)
        ran = subprocess.run(["bash", "-c", command], cwd=clone, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-4000:]}{ran.stderr[-4000:]}"
        directories = sorted((clone / "checkpoints").glob("*/"), key=lambda path: path.stat().st_mtime)
        newest = f"checkpoints/{directories[-1].name}" if directories else ""


def test_commands_are_extracted_from_shell_blocks() -> None:
    start = "## Start\n```sh\nmake train    # sets up\n# a remark\nbin/a --x \\\n --y '#1'\n```\n```python\nx\n```\n"
    assert commands(start + "```text\nssh\n```\n") == ["make train", "bin/a --x   --y '#1'"]
    assert bounded("bin/apex-train --resume", 3, "r").startswith(
        "bin/apex-train --resume --num-actors 1 --max-updates 60"
    )
    assert bounded("bin/apex-eval --checkpoint checkpoints/RUN --json", 1, "checkpoints/a-1") == (
        "bin/apex-eval --checkpoint checkpoints/a-1 --json --episodes 1"
    )
    readme = commands((ROOT / "README.md").read_text())
    assert "make train" in readme
    assert "make test" in readme
