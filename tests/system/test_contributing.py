"""CONTRIBUTING.md: its recipes work as they stand, and its layout is the one there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apex_zmq.rundir.checkpoint import load

from ..conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of one language in a section."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"CONTRIBUTING.md has no section {heading}"
    return re.findall(rf"^```{language}\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)


def succeed(*command: str, directory: Path) -> str:
    """The output of a command, which must end well; apex_zmq is imported from its directory where it lies there."""
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the recipes change; compiled kernels come along."""
    for part in ("apex_zmq", "docs", "tests/wire"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_layout_table_lists_existing_paths_and_all_packages() -> None:
    (rows,) = re.findall(r"^\| path \| contents \|\n.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    named = {path for row in rows.splitlines() for path in re.findall(r"`([^`]+)`", row.split("|")[1])}
    for path in named:
        assert (ROOT / path).exists(), path
    packages = {f"apex_zmq/{path.parent.name}/" for path in ROOT.glob("apex_zmq/*/__init__.py")}
    assert packages <= named


def test_recipe_for_adding_an_environment_works(tmp_path: Path) -> None:
    (module,), (settings,), (commands,) = (blocks("Add an environment", each) for each in ("python", "yaml", "sh"))
    (tmp_path / "corridor.py").write_text(module)
    (tmp_path / "corridor.yaml").write_text(settings)
    (tmp_path / "bin").symlink_to(ROOT / "bin")
    output = succeed("bash", "-euc", commands, directory=tmp_path)
    assert json.loads(output.splitlines()[-1])["episodes"] == 3
    run = tmp_path / "checkpoints" / "corridor"
    checkpoint = load(run)
    assert checkpoint.counters["updates"] == 100
    assert checkpoint.config["env"]["id"] == "corridor:Corridor-v0"


@pytest.mark.parametrize("heading", ["Add a network", "Add a message kind"])
def test_recipes_for_changing_the_package_work(heading: str, checkout: Path) -> None:
    (diff,), (example,) = (blocks(heading, each) for each in ("diff", "python"))
    without = subprocess.run([sys.executable, "-c", example], cwd=checkout, capture_output=True, text=True)
    assert without.returncode != 0  # the change is what makes it work
    (checkout / "change.diff").write_text(diff)
    succeed("git", "apply", "change.diff", directory=checkout)
    succeed(sys.executable, "-c", example, directory=checkout)
    pytest_quietly = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    succeed(*pytest_quietly, "tests/wire/test_protocol_document.py", directory=checkout)
