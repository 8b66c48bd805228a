"""Write a picture of TensorBoard's Custom Scalars page of a run, taken by headless Chromium.

python -m benchmarks.screenshot checkpoints/RUN docs/images/tensorboard.png
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = (1500, 720)  # pixels
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    f"--window-size={SIZE[0]},{SIZE[1]}",
    # Milliseconds on the page's clock, which stands still while a request is pending: the picture shows loaded charts.
    "--virtual-time-budget=10000",
]


def find_chromium() -> str | None:
    """Path of the Chromium executable; None: not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def tensorboard(directory: Path) -> Iterator[str]:
    """URL of a TensorBoard server of one run, which has read the whole run before it answers."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", directory.name, "--port", "0"]
    command += ["--load_fast=false", "--reload_interval=0", "--reload_task=blocking"]
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
            raise RuntimeError("TensorBoard ended before it served the run")
    finally:
        process.terminate()
        process.communicate()


def screenshot(executable: str, directory: Path, picture: Path) -> None:
    """Write a PNG of the Custom Scalars page of a run.

    Raises: subprocess.CalledProcessError when Chromium fails.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tensorboard(directory) as url:
        taken = [f"--user-data-dir={profile}", f"--screenshot={picture.resolve()}", f"{url}#custom_scalars"]
        subprocess.run([executable, *FLAGS, *taken], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    arguments = parser.parse_args()
    executable = find_chromium()
    if executable is None:
        sys.exit("chromium is missing; install it (Debian: apt-get install chromium)")
    screenshot(executable, arguments.run.resolve(), arguments.picture)


if __name__ == "__main__":
    main()
