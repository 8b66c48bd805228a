"""What needs no torch (environments, wire, replay, config) under the other Pythons of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement

from ..conftest import ROOT

# Test modules that must not be left out.
PARTS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for pattern in ("envs/test_*", "replay/test_*", "wire/test_*", "test_config*", "test_signature*")
    for path in (ROOT / "tests").glob(f"{pattern}.py")
}
REQUIREMENTS = "import importlib.metadata, json; print(json.dumps(importlib.metadata.requires('apex_zmq')))"


def find_python(version: str) -> str | None:
    """An interpreter of this version: on the PATH, or one that pyenv has installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    for candidate in [on_path, *pyenv.glob(f"versions/{version}.*/bin/python")]:
        # pyenv's own python3.x on the PATH is a script, which fails unless that version is switched on.
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return str(candidate)
    return None


def install(python: str, version: str, directory: Path) -> str:
    """A virtual environment with the checkout and all that `make` installs but torch; its interpreter."""
    subprocess.run([python, "-m", "venv", directory], check=True)
    inside = str(directory / "bin" / "python")
    pip = [inside, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)
    # From another directory than the checkout's root, where the metadata of another installation lies.
    listed = subprocess.run([inside, "-c", REQUIREMENTS], cwd=directory, check=True, capture_output=True, text=True)
    wanted = []
    for requirement in map(Requirement, json.loads(listed.stdout)):
        marker, requirement.marker = requirement.marker, None
        if requirement.name != "torch" and (not marker or marker.evaluate({"extra": "dev", "python_version": version})):
            wanted.append(str(requirement))
    subprocess.run([*pip, *wanted], check=True)
    if version >= "3.13":  # as the Makefile does, and for the same reason
        subprocess.run([*pip, "--no-deps", "stable-retro"], check=True)
    return inside


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_tests_without_torch_pass_on_other_pythons(version: str, tmp_path: Path) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    if version == "{}.{}".format(*sys.version_info):
        pytest.skip("these tests run under it")
    inside = install(python, version, tmp_path / "venv")
    report = tmp_path / "report.xml"
    options = ["-m", "not long", "-n", "2", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    ran = subprocess.run([inside, "-m", "pytest", *options], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    played = set()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if skipped is None:
            played.add(case.get("classname"))
        elif case.get("classname") in PARTS:
            assert "needs torch" in str(skipped.get("message")), case.get("name")
    assert played >= PARTS
