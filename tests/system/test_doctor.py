"""apex-doctor on this host: before a run, during one, and with faults."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from apex_zmq.cli import tools
from apex_zmq.cli.launch import local_addresses
from apex_zmq.config.settings import ADDRESSES
from apex_zmq.watch.doctor import peers

from ..conftest import ROOT, StartProgram

CARTPOLE = str(ROOT / "configs" / "cartpole.yaml")
MARIO = str(ROOT / "configs" / "mario-cpu.yaml")


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESSES:
        monkeypatch.delenv(f"APEX_{name.upper()}", raising=False)


def sets(settings: Mapping[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the checks by name."""
    capsys.readouterr()
    code = tools.doctor([*arguments, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["failures"] == sum(check["level"] == "fail" for check in answer["checks"])
    assert all(check["remedy"] for check in answer["checks"] if check["level"] != "ok")
    return code, {check["name"]: check for check in answer["checks"]}


def levels(checks: dict[str, dict[str, Any]], level: str) -> set[str]:
    return {name for name, check in checks.items() if check["level"] == level}


def test_before_a_run_every_check_passes_except_the_comparison_with_a_learner(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    code, checks = ask(capsys, "--config", MARIO, *sets(local_addresses(1, None)))
    assert (code, levels(checks, "warn")) == (0, {"signatures"}), checks
    assert checks["roles"]["found"].startswith("replay, learner, actor")
    host = {"python", "libraries", "network", "emulator", "gpu", "memory", "disk", "open files"}
    assert checks.keys() > host | {"keys"}
    assert "is free; no replay is running" in checks["experience 0"]["found"]
    assert "is free; no learner is running" in checks["status"]["found"]


def test_during_a_run_every_check_passes_and_processes_are_identified(
    start: StartProgram, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SILENT_S", 60.0)  # for a busy machine
    often = {"telemetry.status_interval_s": 0.2, "replay.min_size": 500}
    train = start("train", "--config", CARTPOLE, "--run-dir", "run", *sets(often))
    train.wait_for(r"updates [1-9]")
    roles = {words[words.index("apex_zmq") + 1]: (child.pid, words) for child, words in commands(train.process.pid)}
    _, words = roles["learner"]
    code, checks = ask(capsys, "--config", words[words.index("--config") + 1])
    assert code == 0, checks
    assert checks["peers"]["found"] == "1 actor, 1 learner, 1 replay"
    assert levels(checks, "warn") <= {"clock"}, checks  # on a busy machine delays look like clock offsets
    for channel, role in (("experience 0", "replay"), ("priorities 0", "replay"), ("status", "learner")):
        assert f"is held by pid {roles[role][0]}: " in checks[channel]["found"]
        assert f"-m apex_zmq {role}" in checks[channel]["found"]
    assert checks["signatures"]["found"].endswith("like the learner's")
    assert checks["clock"]["found"].startswith("learner on ")


def commands(launcher: int) -> list[tuple[psutil.Process, list[str]]]:
    return [(child, child.cmdline()) for child in psutil.Process(launcher).children()]


def test_a_failed_check_is_printed_and_ends_the_program_with_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = local_addresses(1, None) | {"addresses.experience": [f"tcp://127.0.0.1:{taken.getsockname()[1]}"]}
        ran = subprocess.run(
            [ROOT / "bin" / "apex-doctor", "--role", "replay", *sets(settings)],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert (ran.returncode, ran.stderr) == (1, "")
    lines = ran.stdout.splitlines()
    assert lines[0] == "ok    roles         replay"
    limit = next(number for number, line in enumerate(lines) if line.startswith("FAIL  open files    limit 64"))
    assert lines[limit + 1].startswith(f"{'':20}-> raise the hard limit")
    port = next(number for number, line in enumerate(lines) if line.startswith("FAIL  experience 0  "))
    assert f"is held by pid {os.getpid()}: " in lines[port]
    assert lines[port + 1] == f"{'':20}-> stop it, or choose another address"
    assert lines[-1] == "11 checks: 6 ok, 3 warn, 2 FAIL"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_ends_the_program_with_2_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "lz4").mkdir()
    (tmp_path / "lz4" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([ROOT / "bin" / "apex-doctor"], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert "No module named 'lz4.block'; make .venv/.installed" in line


def test_the_role_train_is_checked_without_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    code, checks = ask(capsys, "--config", CARTPOLE, "--role", "train", "--set", "replay.shards=2")
    assert (code, levels(checks, "ok")) == (0, set(checks))
    assert not {"keys", "experience 0", "signatures"} & checks.keys()
    code, checks = ask(capsys, "--config", CARTPOLE, "--role", "train", "--set", "env.id=NoSuchGame-v0")
    assert (code, levels(checks, "fail")) == (1, {"network"})
    assert tools.doctor(["--set", "replay.shards=2"]) == 2
    assert "list one per shard" in capsys.readouterr().err
