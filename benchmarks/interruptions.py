"""Compare the returns of runs that are killed and resumed with those of uninterrupted runs.

python -m benchmarks.interruptions trains CartPole twice per seed: uninterrupted, and with launcher and all roles ended
by SIGKILL at random moments of the first nine tenths and resumed each time. The final return is the mean of the last
low-epsilon episodes. A short trial: `--seeds 1 --kills 3 --updates 3000`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from apex_zmq.rundir.checkpoint import load
from apex_zmq.rundir.episodes import EPISODES
from apex_zmq.watch.stats import LOW_EPSILON
from benchmarks.csv_files import read_csv
from benchmarks.rows import ROOT, Row, table, versus

CONFIG = ROOT / "configs/cartpole.yaml"
LAST = 100  # low-epsilon episodes that make up the final return
BAR = 0.9


def measure(seeds: int, kills: int, updates: int, directory: Path) -> Row:
    interrupted, alone = [], []
    for seed in range(1, seeds + 1):
        moments = sorted(random.Random(seed).uniform(0.02, 0.9) * updates for _ in range(kills))
        alone.append(final_return(seed, updates, [], directory / f"alone-{seed}"))
        interrupted.append(final_return(seed, updates, moments, directory / f"killed-{seed}"))
        print(f"seed {seed}: {interrupted[-1]:.1f} with {kills} kills, {alone[-1]:.1f} without", file=sys.stderr)
    what = f"CartPole, final return after {updates:,} updates, the run killed {kills} times; peer: not killed"
    return versus("interruptions", what, interrupted, alone, BAR, "return")


def final_return(seed: int, updates: int, kill_at: Sequence[float], directory: Path) -> float:
    """Return of a run after `updates`; it is killed when its log first reaches each of the counts in `kill_at`."""
    command = [str(ROOT / "bin/apex-train"), "--config", str(CONFIG), "--run-dir", str(directory)]
    command += ["--seed", str(seed), "--max-updates", str(updates), "--set", "telemetry.log_interval_s=0.5"]
    command += ["--set", f"learner.save_every={max(1, updates // 30)}", "--set", "replay.snapshot_interval_s=10"]
    resume: list[str] = []
    for moment in kill_at:
        if not kill_run(subprocess.Popen([*command, *resume], stdout=subprocess.PIPE, text=True), moment):
            raise RuntimeError(f"{directory} ended before it could be killed at update {moment:.0f}")
        resume = ["--resume"]
    subprocess.run([*command, *resume], stdout=subprocess.DEVNULL, check=True)
    assert load(directory).counters["updates"] == updates
    rows = read_csv(directory / EPISODES)
    returns = [float(row["return"]) for row in rows if float(row["epsilon"]) <= LOW_EPSILON]
    return statistics.fmean(returns[-LAST:])


def kill_run(launcher: subprocess.Popen[str], moment: float) -> bool:
    """Kill all processes of a run once its log reaches `moment` updates; False: the run ended before."""
    assert launcher.stdout is not None
    with launcher:
        for line in launcher.stdout:
            found = re.search(r" updates (\d+) ", line)
            if found is not None and int(found[1]) >= moment:
                # The roles are killed first: after their launcher's death they would shut down in an orderly way.
                processes = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
                for process in processes:
                    process.kill()
                psutil.wait_procs(processes)  # the run directory is locked until its learner has ended
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--kills", type=int, default=10, help="kills per interrupted run (default: 10)")
    parser.add_argument("--updates", type=int, default=10_000, help="updates per run (default: 10000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apex-") as directory:
        os.environ["TMPDIR"] = directory  # holds the files that killed launchers leave
        row = measure(arguments.seeds, arguments.kills, arguments.updates, Path(directory))
    print(json.dumps([row.as_json()], indent=1) if arguments.json else table([row]))


if __name__ == "__main__":
    main()
