"""Opens TensorBoard's Custom Scalars page of a run in headless Chromium and takes a picture of it.

python -m benchmarks.screenshot checkpoints/RUN docs/images/tensorboard.png
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SIZE = (1500, 720)  # pixels
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
# Chromium reads commands from descriptor 3 and writes answers to 4.
WITH_PIPES = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
# {chart title: lines drawn} of the first category once every chart has one, until then null.
CHARTS_DRAWN = """
(() => {
  const deep = (root, selector) => [...root.querySelectorAll("*")].flatMap(element => [
    ...(element.matches(selector) ? [element] : []),
    ...(element.shadowRoot ? deep(element.shadowRoot, selector) : []),
  ]);
  const [category] = deep(document, "tf-category-paginated-view");
  const cards = category ? deep(category, "tf-custom-scalar-multi-line-chart-card") : [];
  const lines = card => deep(card.shadowRoot, ".line-plot:not(.ghost) path.line")
    .filter(path => (path.getAttribute("d") ?? "").includes("L")).length;
  const title = card => deep(card.shadowRoot, "tf-card-heading")[0]?.displayName ?? "";
  const drawn = Object.fromEntries(cards.map(card => [title(card), lines(card)]));
  return cards.length && Object.values(drawn).every(lines => lines > 0) ? drawn : null;
})()
"""


class PageError(RuntimeError):
    """A command that the browser could not carry out."""


class Chromium:
    """A headless Chromium with one page, driven by the DevTools protocol."""

    def __init__(self, executable: str, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        arguments = [*FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", WITH_PIPES, str(commands), str(answers), executable, *arguments],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._received = b""
        self._number = 0
        self._session: str | None = None

    def open(self, url: str) -> None:
        """Show a page."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        width, height = SIZE
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=url)

    def wait_for(self, expression: str) -> Any:
        """The value of a JavaScript expression once it is not null."""
        while True:
            with suppress(PageError):  # between two documents there is none to ask
                value = self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]
                if value is not None:
                    return value
            time.sleep(0.2)

    def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']}")
                return answer["result"]
        raise RuntimeError(f"{method}: Chromium has ended")

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            message, end, self._received = self._received.partition(b"\0")
            if end:
                yield json.loads(message)
                continue
            chunk = os.read(self._answers, 1 << 20)
            if not chunk:
                return
            self._received = message + chunk

    def close(self) -> None:
        """End the browser."""
        os.close(self._commands)  # it ends when nobody can command it any more
        os.close(self._answers)
        self._process.wait()


def find_chromium() -> str | None:
    """Where Chromium is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def tensorboard(directory: Path) -> Iterator[str]:
    """A TensorBoard server of one run; its URL."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", directory.name, "--port", "0", "--load_fast=false"]
    process = subprocess.Popen(
        command, cwd=directory.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            raise RuntimeError("TensorBoard has ended")
    finally:
        process.terminate()
        process.communicate()


def screenshot(executable: str, directory: Path, picture: Path) -> dict[str, int]:
    """Write a picture of the Custom Scalars page; lines drawn by chart of its first category."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tensorboard(directory) as url:
        chromium = Chromium(executable, Path(profile))
        try:
            chromium.open(f"{url}#custom_scalars")
            drawn: dict[str, int] = chromium.wait_for(CHARTS_DRAWN)
            picture.write_bytes(chromium.picture())
        finally:
            chromium.close()
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    arguments = parser.parse_args()
    executable = find_chromium()
    if executable is None:
        sys.exit("chromium is missing; install it (Debian: apt-get install chromium)")
    for title, lines in screenshot(executable, arguments.run.resolve(), arguments.picture).items():
        print(f"{title}: {lines} lines")


if __name__ == "__main__":
    main()
