"""deploy/systemd: units that systemd understands, and that call the programs with options they know."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from apex_zmq.cli.program import EXIT_BAD_INPUT
from apex_zmq.config.loading import load

from ..conftest import ROOT
from .conftest import Resolve

UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
SYSTEM = Path("/lib/systemd/system")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A root directory with the units, as docs/DEPLOYMENTS.md installs them, and those that come with systemd."""
    if shutil.which("systemd-analyze") is None or not SYSTEM.is_dir():
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    found = re.search(r"\d+", subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout)
    assert found
    if int(found[0]) < 252:
        pytest.skip("systemd-analyze verify --root needs systemd 252")
    shutil.copytree(SYSTEM, tmp_path / "lib/systemd/system", symlinks=True)
    shutil.copytree(ROOT / "bin", tmp_path / "opt/apex_zmq/bin")
    units = tmp_path / "etc/systemd/system"
    shutil.copytree(UNITS, units, ignore=shutil.ignore_patterns("*.env"))
    if int(found[0]) < 254:
        (units / "apex-.service.d" / "20-backoff.conf").unlink()  # as the file itself says
    return tmp_path


def verify(root: Path) -> subprocess.CompletedProcess[str]:
    names = [service.name.replace("@.", "@1.") for service in SERVICES]
    command = ["systemd-analyze", "verify", f"--root={root}", "--man=no", *names]
    return subprocess.run(command, capture_output=True, text=True)


def test_units_verify(installed: Path) -> None:
    verified = verify(installed)
    assert (verified.returncode, verified.stderr) == (0, "")


def install_torchrun(root: Path) -> Path:
    directory = root / "etc/systemd/system/apex-learner.service.d"
    directory.mkdir()
    return Path(shutil.copy(UNITS / "torchrun.conf", directory))


def test_units_verify_with_a_learner_on_several_gpus(installed: Path) -> None:
    torchrun = installed / "opt/apex_zmq/.venv/bin/torchrun"
    torchrun.parent.mkdir(parents=True)
    torchrun.touch(0o755)
    dropped_in = install_torchrun(installed)
    verified = verify(installed)
    assert (verified.returncode, verified.stderr) == (0, "")
    dropped_in.write_text(dropped_in.read_text() + "NoSuchKey=1\n")
    assert "NoSuchKey" in verify(installed).stderr


def test_error_in_a_shared_drop_in_is_detected(installed: Path) -> None:
    with (installed / "etc/systemd/system/apex-.service.d/10-confine.conf").open("a") as file:
        file.write("NoSuchKey=1\n")
    assert "NoSuchKey" in verify(installed).stderr


def directive(service: Path, key: str) -> str:
    found = re.search(rf"^{key}=(.+)$", service.read_text().replace("\\\n", ""), re.MULTILINE)
    assert found, f"{service.name} has no {key}"
    return found[1]


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_unit_commands_use_valid_options(service: Path, resolve: Resolve) -> None:
    variables = dict(re.findall(r"^(\w+)=(.*)$", (UNITS / "apex.env").read_text(), re.MULTILINE))
    variables["APEX_CONFIG"] = str(ROOT / Path(variables["APEX_CONFIG"]).relative_to("/opt/apex_zmq"))
    command = re.sub(r"\$\{?(\w+)\}?", lambda name: variables[name[1]], directive(service, "ExecStart"))
    config = resolve(shlex.split(command.replace("%i", "0")), variables)
    if service.name != "apex-eval.service":  # which a checkpoint configures
        assert config.env == load(variables["APEX_CONFIG"]).env
        assert config.addresses.batches == variables["APEX_BATCHES"]


def test_torchrun_drop_in_runs_the_learner_command_of_the_unit() -> None:
    torchrun, _, program = directive(UNITS / "torchrun.conf", "ExecStart").partition(" --no-python ")
    assert " ".join(program.split()) == " ".join(directive(UNITS / "apex-learner.service", "ExecStart").split())
    parsed = get_args_parser().parse_args([*shlex.split(torchrun)[1:], "--no-python", "program"])
    assert (parsed.standalone, parsed.nproc_per_node) == (True, "gpu")


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_units_do_not_restart_after_bad_input(service: Path) -> None:
    if service.name != "apex-eval.service":  # waits for the first checkpoint
        assert directive(service, "RestartPreventExitStatus") == str(EXIT_BAD_INPUT)
