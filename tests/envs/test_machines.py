from __future__ import annotations

import importlib.util
import logging
from typing import Literal

import pytest

from apex_zmq.config import settings
from apex_zmq.envs.interface import EnvError
from apex_zmq.envs.machines import MachinePerLane, SharedMachine, make_machines
from apex_zmq.envs.make import make_lanes

PACKAGE = {"fceumm": "stable_retro", "nes-py": "nes_py"}


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))


def test_auto_is_fceumm(caplog: pytest.LogCaptureFixture) -> None:
    machines = make_machines("auto")
    assert isinstance(machines, SharedMachine)
    assert caplog.records == []
    machines.close()


def test_auto_falls_back_to_nes_py_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hide(monkeypatch, "stable_retro")
    machines = make_machines("auto")
    assert isinstance(machines, MachinePerLane)
    machines.start(0, "1-1")
    machines.close()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "playing on nes-py" in record.message
    assert "pip install stable-retro" in record.message
    assert "\n" not in record.message


@pytest.mark.parametrize("kind", ["fceumm", "nes-py"])
def test_requested_emulator_is_not_replaced_by_another(
    monkeypatch: pytest.MonkeyPatch, kind: Literal["fceumm", "nes-py"]
) -> None:
    hide(monkeypatch, PACKAGE[kind])
    with pytest.raises(EnvError, match=PACKAGE[kind]):
        make_lanes(settings.Env(emulator=kind), 1, 0).reset(0)


@pytest.mark.parametrize("kind", ["fceumm", "nes-py"])
@pytest.mark.parametrize("missing", ["emulator", "gym_super_mario_bros"])
def test_missing_package_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch, kind: str, missing: str) -> None:
    package = PACKAGE[kind] if missing == "emulator" else missing
    hide(monkeypatch, package)
    with pytest.raises(EnvError, match=f"{package}.*pip install {package.replace('_', '-')}"):
        make_machines(kind).start(0, "1-1")
