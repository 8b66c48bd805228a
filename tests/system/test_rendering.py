"""Watching a run: real windows, on virtual displays."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from apex_zmq.config import loading
from apex_zmq.net.sockets import Inbox, Links
from apex_zmq.rundir import checkpoint
from apex_zmq.wire.codec import Kind
from apex_zmq.wire.messages import Status, decode_relayed_status

from ..conftest import ROOT, StartProgram

CARTPOLE = str(ROOT / "configs" / "cartpole.yaml")
RUN = ("--config", CARTPOLE, "--run-dir", "run", "--num-actors", "1", "--set", "replay.min_size=200")
GOLD = bytes((40, 180, 240))  # BGR, of the action taken


class Screen:
    """Xvfb, and what is on it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1024x768x24", "-fbdir", str(directory)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.number = int(self.process.stdout.readline())
        self._memory = directory / "Xvfb_screen0"

    def colours(self) -> set[bytes]:
        """The colours on it, BGR."""
        pixels = np.frombuffer(self._memory.read_bytes()[-1024 * 768 * 4 :], np.uint8).reshape(-1, 4)
        return {pixel.tobytes() for pixel in np.unique(pixels[:, :3], axis=0)}

    def close_windows(self) -> None:
        """What a window manager does when somebody presses the button: WM_DELETE_WINDOW, in the X protocol itself."""
        with closing(socket.socket(socket.AF_UNIX)) as x, x.makefile("rb") as answers:
            x.connect(f"/tmp/.X11-unix/X{self.number}")

            def ask(request: bytes) -> bytes:
                """The reply to a request, whose variable part counts in words."""
                x.sendall(request)
                head = answers.read(32)
                return head + answers.read(4 * struct.unpack_from("<I", head, 4)[0])

            def atom(name: bytes) -> int:
                padded = name + bytes(-len(name) % 4)
                reply = ask(struct.pack("<BBHHxx", 16, 0, 2 + len(padded) // 4, len(name)) + padded)
                return int(struct.unpack_from("<I", reply, 8)[0])

            x.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
            (words,) = struct.unpack("<6xH", answers.read(8))
            about = answers.read(4 * words)
            vendor, formats = struct.unpack_from("<16xH3xB", about)
            (root,) = struct.unpack_from("<I", about, 32 + vendor + -vendor % 4 + 8 * formats)
            protocols, delete = atom(b"WM_PROTOCOLS"), atom(b"WM_DELETE_WINDOW")
            tree = ask(struct.pack("<BxHI", 15, 2, root))
            for window in struct.unpack_from(f"<{struct.unpack_from('<H', tree, 16)[0]}I", tree, 32):
                message = struct.pack("<BBHII5I", 33, 32, 0, window, protocols, delete, 0, 0, 0, 0)
                x.sendall(struct.pack("<BBHII", 25, 0, 11, window, 0) + message)
            atom(b"WM_PROTOCOLS")  # once this is answered, all before it has been done

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def screens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Screen]]:
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb: apt-get install xvfb")
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    with ExitStack() as stack:
        made = [Screen(tmp_path / f"screen-{number}") for number in range(2)]
        for screen in made:
            stack.callback(screen.end)
        yield made


def decisions(statuses: Inbox[Status], name: str) -> float:
    """The next that is heard of an actor."""
    while (status := statuses.receive(timeout_s=60)) is not None:
        if status.name.startswith(name):
            return status.metrics.get("decisions", 0.0)
    raise AssertionError("silence")


@pytest.mark.long
def test_run_continues_after_losing_its_window_or_display(
    screens: list[Screen], start: StartProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = screens
    monkeypatch.setenv("DISPLAY", f":{ours.number}")
    train = start("train", *RUN, "--render")
    train.wait_for("playing 8 lanes, the last one in a window$")

    config = loading.from_tree(checkpoint.load(tmp_path / "run").config, "checkpoint")
    (tmp_path / "actor.yaml").write_text(loading.to_yaml(config))
    monkeypatch.setenv("DISPLAY", f":{theirs.number}")
    actor = start("actor", "--config", "actor.yaml", "--render")
    actor.wait_for("playing 8 lanes, the last one in a window$")

    assert GOLD in ours.colours()
    ours.end()
    train.wait_for("actor-0 ended with code")
    theirs.close_windows()
    actor.wait_for("window closed; training continues$")
    statuses: Inbox[Status] = Links(config).subscribe("parameters", {Kind.RELAYED_STATUS: decode_relayed_status})
    name = f"actor-{socket.gethostname()[:40]}"
    before = decisions(statuses, name)
    while decisions(statuses, name) <= before:
        pass
    statuses.close()
    train.wait_for("playing 8 lanes$")  # without a window
    actor.interrupt()
    assert actor.wait() == 0, actor.output
    train.interrupt()
    assert train.wait() == 0, train.output
