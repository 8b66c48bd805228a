"""Train World 1-1 for two minutes; write a learning curve, a film of one episode and a table of the roles.

python -m benchmarks.demo build/demo
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

from apex_zmq.rundir.checkpoint import load
from apex_zmq.rundir.episodes import EPISODES
from benchmarks.csv_files import read_csv
from benchmarks.curves import Floats, moving_mean
from benchmarks.rows import ROOT

CONFIG = ROOT / "configs/mario-cpu.yaml"
TOP_AT = 0.6  # share of the time after which apex-top is run
WINDOW = 50  # episodes


def train(directory: Path, minutes: float) -> str:
    """Train, and return the output of apex-top during the run."""
    options = ["--run-dir", str(directory), "--max-minutes", str(minutes), "--set", "telemetry.log_interval_s=5"]
    begin, shown = time.monotonic(), ""
    with subprocess.Popen(
        [ROOT / "bin/apex-train", "--config", CONFIG, *options], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            print(line, end="", flush=True)
            if not shown and time.monotonic() - begin > TOP_AT * 60 * minutes:
                shown = top(directory)
    if run.returncode:
        sys.exit(run.returncode)
    return shown


def top(directory: Path) -> str:
    """Output of apex-top on a live run."""
    command = [str(ROOT / "bin/apex-top"), "--once", "--config", str(directory / "config.yaml")]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def read(directory: Path) -> dict[str, Floats]:
    """Unix time, decisions and largest x of the episodes of a run, float64 [E] each, in the order of their ends."""
    rows = read_csv(directory / EPISODES)
    return {name: np.array([float(row[name]) for row in rows]) for name in ("time", "decisions", "max_x")}


def draw(episodes: dict[str, Floats], path: Path) -> None:
    """Draw the largest x of each episode, and its moving mean."""
    minutes, x = (episodes["time"] - episodes["time"][0]) / 60, episodes["max_x"]
    figure, axis = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axis.plot(minutes, x, ".", color="tab:blue", alpha=0.3, label="an episode")
    axis.plot(minutes, moving_mean(x, WINDOW), color="tab:red", linewidth=2, label=f"mean of the last {WINDOW}")
    axis.set_xlabel("minutes since the first episode ended")
    axis.set_ylabel("largest x in World 1-1, pixels (the flag is at 3,161)")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def film(directory: Path, path: Path) -> dict[str, Any]:
    """Write a video of one greedy episode; return its figures."""
    options = ["--episodes", "1", "--protocol", "greedy", "--video", str(path), "--json"]
    played = subprocess.run(
        [ROOT / "bin/apex-eval", "--checkpoint", directory, *options], stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, Any] = json.loads(played.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="output directory; the run of an earlier demo in it is deleted")
    parser.add_argument("--minutes", type=float, default=1.5, metavar="X", help="minutes of training (default: 1.5)")
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    shutil.rmtree(directory / "run", ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)

    shown = train(directory / "run", arguments.minutes)
    (directory / "top.txt").write_text(shown)
    episodes = read(directory / "run")
    draw(episodes, directory / "learning.png")
    figures = film(directory / "run", directory / "game.mp4")
    updates = load(directory / "run").counters["updates"]

    x = episodes["max_x"]
    print(f"\n{shown}")
    print(f"learning curve  {directory / 'learning.png'}")
    print(f"film            {directory / 'game.mp4'}")
    print(f"the roles       {directory / 'top.txt'}, as above")
    print(f"the run         {directory / 'run'}")
    print(f"{episodes['decisions'][-1]:,.0f} decisions in {len(x)} episodes, {updates:,.0f} updates")
    print(f"largest x, mean of {WINDOW} episodes: {x[:WINDOW].mean():.0f} at first, {x[-WINDOW:].mean():.0f} at last")
    print(f"largest x of all episodes: {x.max():.0f}; of the greedy one in the film: {figures['best_x']}")


if __name__ == "__main__":
    main()
