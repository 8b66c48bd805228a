"""Checks of a host alone, each with the real fault."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.envs.games import MARIO
from apex_zmq.watch.doctor import host
from apex_zmq.watch.doctor.check import Check
from apex_zmq.watch.doctor.examine import examine

METADATA = """Metadata-Version: 2.1
Name: some-program
Version: 1
Requires-Dist: numpy<1
Requires-Dist: msgspec>=0.18
Requires-Dist: no-such-library>=2
Requires-Dist: no-such-library-either; extra == "dev"
"""
LIMITED = """
import resource
from apex_zmq.watch.doctor.host import check_open_files
for limits in (700, 700), (499, 700), (499, 499):
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    print(*check_open_files(200, ["learner"]), sep="|")
"""


def settings(**changes: object) -> Config:
    return loading.replace(Config(), {name.replace("__", "."): value for name, value in changes.items()})


def install(directory: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an empty package that hides the real one, even if an earlier test has imported it."""
    (directory / package).mkdir()
    (directory / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delitem(sys.modules, package, raising=False)
    return directory / package


def test_the_installed_python_and_libraries_are_supported() -> None:
    pytest.importorskip("torch")
    _, python, libraries = itertools.islice(examine(Config(), ["replay"]), 3)
    assert (python.name, libraries) == ("python", host.check_libraries())
    assert (python.level, libraries.level) == ("ok", "ok"), (python, libraries)
    assert sys.executable in python.found
    assert "numpy" in libraries.found


def test_missing_libraries_and_unsupported_versions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "some_program-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(tmp_path)
    check = host.check_libraries("some-program")
    assert check.level == "fail"
    assert check.found.startswith("numpy ")
    assert check.found.endswith(" is not <1, no-such-library is missing")
    assert "constraints.txt" in check.remedy
    assert host.check_libraries("some-other-program").level == "warn"


def test_an_emulator_runs() -> None:
    check = host.check_emulator("fceumm", MARIO)
    assert check.level == "ok", check
    assert check.found.startswith("FCEUmm runs /")
    assert host.check_emulator("nes-py", MARIO).found.startswith("nes-py runs /")


def test_a_missing_or_wrong_rom_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(tmp_path, "gym_super_mario_bros", monkeypatch)
    assert host.check_emulator("auto", MARIO) == Check(
        "emulator", "fail", "gym_super_mario_bros/_roms/*.nes not found", "pip install gym-super-mario-bros"
    )
    (package / "_roms").mkdir()
    (package / "_roms" / "super-mario-bros.nes").write_bytes(b"another game")
    check = host.check_emulator("auto", MARIO)
    assert (check.level, check.remedy) == ("fail", "reinstall gym-super-mario-bros")


def test_without_fceumm_nes_py_is_a_warning_unless_fceumm_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "stable_retro", monkeypatch)
    slow, none = host.check_emulator("auto", MARIO), host.check_emulator("fceumm", MARIO)
    assert slow.level == "warn"
    assert "nes-py, several times slower" in slow.found
    assert none.level == "fail"
    assert slow.remedy == none.remedy == "pip install stable-retro"


def test_learner_device_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert host.check_gpu("cpu").level == "ok"
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name() in host.check_gpu("cuda").found
        return
    check = host.check_gpu("cuda")
    assert (check.level, check.remedy) == ("fail", "set learner.device=cpu")
    assert host.check_gpu("auto").level == "ok"
    monkeypatch.setattr(host, "NVIDIA_DRIVER", tmp_path)
    check = host.check_gpu("auto")
    assert (check.level, "although a driver is installed" in check.found) == ("warn", True)


def test_memory_that_shards_already_occupy_counts_as_available() -> None:
    assert host.check_memory(settings(replay__arena_bytes=1 << 20), 1, 0).level == "ok"
    check = host.check_memory(settings(replay__arena_bytes=999 * 10**12), 1, 0)
    assert check.level == "fail"
    assert "replay needs 999000.0 GB" in check.found
    assert "lower replay.arena_bytes" in check.remedy
    total = psutil.virtual_memory().total
    all_memory = settings(replay__arena_bytes=total - 10**7, replay__capacity=100_000)
    check = host.check_memory(all_memory, 1, 0)
    assert (check.level, "lower replay.arena_bytes" in check.remedy) == ("warn", True)
    assert host.check_memory(all_memory, 1, 10**15).level == "ok"


def test_disks_must_have_space_and_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run, snapshots = tmp_path / "not" / "yet", tmp_path / "snapshots"
    (snapshots / "replay-0").mkdir(parents=True)
    both = {"run__dir": str(run), "replay__snapshot_dir": str(snapshots)}
    found = list(host.check_disks(settings(**both), ["replay", "learner"], 1, network_bytes=10**7))
    assert [(check.name, check.level) for check in found] == [("disk", "ok"), ("disk, replay", "ok")]
    assert not run.exists()
    assert f"{run} needs up to 0.7 GB" in found[0].found  # 13 checkpoints
    large = settings(**both, replay__arena_bytes=999 * 10**12, learner__keep_checkpoints=10**9)
    found = list(host.check_disks(large, ["replay", "learner"], 1, network_bytes=10**7))
    assert [(check.name, check.level) for check in found] == [("disk", "fail"), ("disk, replay", "fail")]
    assert [check.remedy for check in found] == [
        "free disk space, or set another run.dir",
        "free disk space, or set another replay.snapshot_dir",
    ]
    large = settings(run__dir=str(run), replay__arena_bytes=10**18)
    (check,) = host.check_disks(large, ["replay"], 1, 1, together=True)
    assert (check.name, check.level, check.remedy) == (
        "disk, replay",
        "fail",
        "free disk space, or set another run.dir",
    )
    (check,) = host.check_disks(settings(run__dir=str(tmp_path / "file" / "run")), ["learner"], 1, 1)
    assert (check.level, check.found) == ("fail", f"{tmp_path / 'file'} cannot be written")
    assert list(host.check_disks(settings(), ["actor"], 0, 1)) == []


def test_snapshots_already_written_count_as_free_space(tmp_path: Path) -> None:
    needed = shutil.disk_usage(tmp_path).free + 10**9
    assert host.check_disk("disk", tmp_path, needed, 0, "run.dir").level == "fail"
    assert host.check_disk("disk", tmp_path, needed, 2 * 10**9, "run.dir").level == "ok"


def test_the_limit_on_open_files_must_allow_the_connections() -> None:
    ran = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "open files|ok|limit 700, enough for 300 actors|",
        "open files|fail|limit 499, but 500 are needed with 200 actors|ulimit -n 500",
        "open files|fail|limit 499, but 500 are needed with 200 actors|raise the hard limit (LimitNOFILE= of systemd, "
        "limits.conf)",
    ]
