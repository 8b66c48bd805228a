"""Watching a run: the real window, on a virtual display."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .conftest import ROOT, StartProgram

CARTPOLE = str(ROOT / "configs" / "cartpole.yaml")
RUN = ("--config", CARTPOLE, "--run-dir", "run", "--set", "replay.min_size=200", "--render")


class Screen:
    """Xvfb, and what is on it."""

    def __init__(self, directory: Path) -> None:
        command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1024x768x24", "-fbdir", str(directory)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.name = f":{self.process.stdout.readline().strip()}"
        self._memory = directory / "Xvfb_screen0"

    def colours(self) -> set[bytes]:
        """The colours on it, BGR."""
        pixels = np.frombuffer(self._memory.read_bytes()[-1024 * 768 * 4 :], np.uint8).reshape(-1, 4)
        return {pixel.tobytes() for pixel in np.unique(pixels[:, :3], axis=0)}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb: apt-get install xvfb")
    (tmp_path / "screen").mkdir()
    screen = Screen(tmp_path / "screen")
    monkeypatch.setenv("DISPLAY", screen.name)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    yield screen
    screen.end()


def test_a_run_is_shown_and_goes_on_without_its_display(screen: Screen, start: StartProgram) -> None:
    assert screen.colours() == {bytes(3)}
    train = start("train", *RUN)
    train.wait_for("playing 8 lanes, the last one in a window$")
    train.wait_for(r"updates [1-9]")
    assert bytes((40, 180, 240)) in screen.colours()  # the golden bar of the action taken
    screen.end()
    train.wait_for("actor-0 ended with code")
    train.wait_for("playing 8 lanes$")  # without one
    train.interrupt()
    assert train.wait() == 0, train.output
