"""Train the queue of runs, one after another: python -m benchmarks.learning [NAME ...] [--list] [--commit].

Each run of `runs.QUEUE` without results is trained with the machine to itself, then its checkpoints are evaluated. An
interrupted run is deleted and started again. A run of the game's stages ends early once it has learned its stage. The
results of run NAME are written to docs/results/ as the run ends:

NAME.csv.gz       one row per episode: minutes, decisions, epsilon, stage, return, length, max_x, cleared
NAME-eval.csv.gz  one row per evaluation of a checkpoint
NAME.json         command, settings, seed, commit, versions and machine; written last, so it marks a finished run

The best checkpoint of a stage of the game becomes models/mario-STAGE if it clears half of the noop episodes, unless
that model has a card of its own; repeats with other seeds make no models.

With --commit the queue ends with one commit of all finished runs that are not committed yet. After a crash the results
are in the working tree, and the next queue commits them.

`python -m benchmarks.results` makes the tables and pictures from these files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from apex_zmq.envs.info import MARIO_COLUMNS
from apex_zmq.rundir.checkpoint import load
from apex_zmq.rundir.episodes import COLUMNS, EPISODES
from apex_zmq.watch.stats import LOW_EPSILON
from benchmarks.csv_files import read_csv, write_csv
from benchmarks.curves import SOLVED
from benchmarks.export import export
from benchmarks.rows import ROOT, machine
from benchmarks.runs import (
    CONFIG,
    FRESH_SEED,
    PEERS_PROGRAM,
    QUEUE,
    RESULTS,
    RUNS,
    SELECTION_SEED,
    TRIAL_MINUTES,
    Run,
    about_file,
    command,
    episodes_file,
    evaluations_file,
    model_of,
)

GAMES = 100  # episodes of an evaluation
EVALUATE_EVERY = 5.0  # minutes
PUBLISHED = 0.5  # of the noop episodes, that a model clears
CANDIDATES = 3  # checkpoints of a run of the recipe that are evaluated on the selection seed, the last ones
LEARNED, OF_LAST, AFTER_MINUTES = 36, 40, 5.0  # clears of low-epsilon episodes, and time left, before an early end
POLL_S = 5.0
SUBJECT_LENGTH = 72  # of a commit message
EVALUATION = (
    "minutes",
    "decisions",
    "checkpoint",
    "protocol",
    "seed",
    "episodes",
    "clear_rate",
    "mean_x",
    "mean_return",
)


class Checkpoint(NamedTuple):
    """A checkpoint that a run has written."""

    minutes: float  # since the run was started
    decisions: int
    path: Path


def train(run: Run) -> None:
    """Train a run, evaluate its checkpoints and write its result files.

    Raises: subprocess.CalledProcessError when training or an evaluation fails.
    """
    directory = RUNS / run.name
    shutil.rmtree(directory, ignore_errors=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with (RUNS / f"{run.name}.log").open("w") as log:
        training = subprocess.Popen(
            command(run, directory),
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": "1"} if run.algorithm == "apex" else {}),
        )
    early = run.group == "game" and _end_early(training, directory / EPISODES)
    if training.wait() != 0:
        raise subprocess.CalledProcessError(training.returncode, training.args)
    episodes = _episodes(directory / EPISODES, started)
    checkpoints = _checkpoints(directory, started)
    entries: Sequence[str] = MARIO_COLUMNS
    if run.group == "atari":
        entries, evaluations = (), []
    elif run.group in TRIAL_MINUTES:
        evaluations = [_row(run, checkpoints[-1], "noop", SELECTION_SEED, GAMES)]
    else:
        evaluations = evaluate(run, checkpoints, _first_clear(episodes))
    about = {
        "name": run.name,
        "group": run.group,
        "algorithm": run.algorithm,
        "seed": run.seed,
        "budget_minutes": run.minutes,
        "ended_early": early,
        "settings": dict(run.settings),
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True, cwd=ROOT).strip(),
        "command": " ".join(command(run, Path("DIRECTORY"))),
        "machine": machine(),
    }
    if run.group == "game":
        _publish(run, evaluations)
    RESULTS.mkdir(exist_ok=True)
    about_file(run.name).unlink(missing_ok=True)
    write_csv(episodes_file(run.name), ("minutes", *COLUMNS[1:], *entries), episodes)
    write_csv(evaluations_file(run.name), EVALUATION, evaluations)
    about_file(run.name).write_text(json.dumps(about, indent=1) + "\n")


def _publish(run: Run, evaluations: Sequence[Mapping[str, Any]]) -> None:
    noop = next(row for row in evaluations if (row["seed"], row["protocol"]) == (FRESH_SEED, "noop"))
    model = model_of(run.name)
    if run.seed == 1 and noop["clear_rate"] >= PUBLISHED and not (model.parent / "README.md").exists():
        export(RUNS / run.name / str(noop["checkpoint"]), model)


def learned(rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether the last 40 low-epsilon episodes of a run, in the order of their ends, cleared 36 times."""
    low = [row["cleared"] == "1" for row in rows if float(row["epsilon"]) <= LOW_EPSILON][-OF_LAST:]
    return len(low) == OF_LAST and sum(low) >= LEARNED


def _end_early(training: subprocess.Popen[bytes], episodes: Path) -> bool:
    """Interrupt a run five minutes after it has learned its stage; whether it came to that before it ended."""
    while training.poll() is None:
        if episodes.exists() and learned(read_csv(episodes)[:-1]):  # the last row may be half-written
            with suppress(subprocess.TimeoutExpired):
                training.wait(AFTER_MINUTES * 60)
                return False
            training.send_signal(signal.SIGINT)
            return True
        time.sleep(POLL_S)
    return False


def _episodes(path: Path, started: float) -> list[dict[str, Any]]:
    return [{**row, "minutes": f"{(float(row['time']) - started) / 60:.3f}"} for row in read_csv(path)]


def _first_clear(episodes: Sequence[Mapping[str, Any]]) -> float:
    """Minutes to the first clear by a low-epsilon lane; earlier checkpoints are not evaluated. Infinite: no clear."""
    low = (row for row in episodes if not row["epsilon"] or float(row["epsilon"]) <= LOW_EPSILON)
    return next((float(row["minutes"]) for row in low if row["cleared"] == "1"), float("inf"))


def _checkpoints(directory: Path, started: float) -> list[Checkpoint]:
    found = []
    for path in sorted(directory.glob("step-*")):
        # The file name of a peer's checkpoint counts decisions, that of ours counts updates.
        decisions = int(path.stem[5:]) if path.suffix == ".zip" else int(load(path).counters["decisions"])
        found.append(Checkpoint((path.stat().st_mtime - started) / 60, decisions, path))
    return found


def evaluate(run: Run, checkpoints: Sequence[Checkpoint], since: float) -> list[dict[str, Any]]:
    """Evaluate the checkpoints of a run on the selection seed, then the best of them on fresh seeds.

    On the selection seed: one checkpoint every five minutes from minute `since` on, and all checkpoints between the
    first of these that clears 90% and its predecessor; of a run of the game only the last three of the former.

    Returns: rows with the columns of `EVALUATION`.
    """
    rows: dict[int, dict[str, Any]] = {}

    def measure(indices: Sequence[int]) -> None:
        todo = [index for index in indices if index not in rows]
        measured = pool.map(lambda index: _row(run, checkpoints[index], "noop", SELECTION_SEED, GAMES), todo)
        rows.update(zip(todo, measured, strict=True))

    chosen: list[int] = []
    for index, checkpoint in enumerate(checkpoints):
        last = checkpoints[chosen[-1]].minutes if chosen else max(since - EVALUATE_EVERY, 0.0)
        if checkpoint.minutes >= last + EVALUATE_EVERY or (chosen and checkpoint is checkpoints[-1]):
            chosen.append(index)
    with ThreadPoolExecutor(max_workers=2) as pool:
        chosen = chosen[-CANDIDATES:] if run.group == "game" else chosen
        measure(chosen or [len(checkpoints) - 1])
        solved = next((place for place, index in enumerate(chosen) if rows[index]["clear_rate"] >= SOLVED), None)
        if solved is not None and run.group != "game":
            measure(range(chosen[solved - 1] if solved else 0, chosen[solved]))
        best = checkpoints[max(rows, key=lambda index: (rows[index]["clear_rate"], rows[index]["mean_x"]))]
        games = (("greedy", 1), ("noop", GAMES), ("sticky", GAMES))
        fresh = list(pool.map(lambda played: _row(run, best, played[0], FRESH_SEED, played[1]), games))
    return [*(rows[index] for index in sorted(rows)), *fresh]


def _row(run: Run, checkpoint: Checkpoint, protocol: str, seed: int, episodes: int) -> dict[str, Any]:
    if run.algorithm == "apex":
        program = ["bin/apex-eval", "--checkpoint", str(checkpoint.path)]
    else:
        program = [*PEERS_PROGRAM, "evaluate", str(checkpoint.path), "--algorithm", run.algorithm, "--config", CONFIG]
        # PPO samples its actions, as in training.
        program += ["--stochastic"] * (run.algorithm == "ppo" and protocol != "greedy")
    figures = play(program, protocol, seed, episodes)
    return {
        **{name: figures[name] for name in ("protocol", "seed", "episodes", "clear_rate")},
        "minutes": f"{checkpoint.minutes:.2f}",
        "decisions": checkpoint.decisions,
        "checkpoint": checkpoint.path.name,
        "mean_x": f"{figures['mean_x']:.1f}",
        "mean_return": f"{figures['mean_return']:.2f}",
    }


def play(program: Sequence[str], protocol: str, seed: int, episodes: int) -> dict[str, Any]:
    """Run an evaluation program and return the figures that it prints as JSON."""
    ran = subprocess.run(
        [*program, "--protocol", protocol, "--episodes", str(episodes), "--seed", str(seed), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def uncommitted(directory: Path = RESULTS) -> list[str]:
    """Names of the finished runs whose results differ from those committed, in the order in which they ended."""
    status = ["git", "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "."]
    listed = subprocess.check_output(status, text=True, cwd=directory).split("\0")
    changed = {Path(entry[3:]).name for entry in listed if entry}  # two letters and a space precede each path
    finished = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [path.stem for path in finished if changed.intersection(_files(path.stem))]


def commit(names: Sequence[str], directory: Path = RESULTS) -> None:
    """Commit the results of these runs, and nothing else, as one commit."""
    files = [file for name in names for file in _files(name)]
    models = (model_of(name, directory.parents[1] / "models") for name in names)
    files += [str(model.parent) for model in models if model.exists()]  # also a deleted evaluation
    subject, body = commit_message(names)
    subprocess.run(["git", "add", "--", *files], check=True, cwd=directory)
    subprocess.run(["git", "commit", "--quiet", "-m", subject, "-m", body, "--", *files], check=True, cwd=directory)


def commit_message(names: Sequence[str]) -> tuple[str, str]:
    """Subject of at most 72 characters and body; the body lists the names when the subject has no room for all."""
    subject = f"results: add {', '.join(names)}"
    if len(subject) <= SUBJECT_LENGTH:
        return subject, ""
    for count in range(len(names) - 1, 0, -1):
        subject = f"results: add {', '.join(names[:count])} and {len(names) - count} more"
        if len(subject) <= SUBJECT_LENGTH:
            break
    return subject, "\n".join(names)


def _files(name: str) -> list[str]:
    return [of(name).name for of in (episodes_file, evaluations_file, about_file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="train only these runs, also those with results")
    parser.add_argument("--list", action="store_true", help="print the queue and which of its runs have results")
    parser.add_argument("--commit", action="store_true", help="make one commit of the results when the queue ends")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {run.name for run in QUEUE}:
        parser.error(f"no run {', '.join(sorted(unknown))} in the queue; see --list")
    if arguments.list:
        for run in QUEUE:
            done = "done" if about_file(run.name).exists() else "to do"
            print(f"{done:6}{run.name:24}{run.minutes:4g} min  {dict(run.settings) or ''}")
        return
    try:
        for run in QUEUE:
            if run.name in arguments.names or (not arguments.names and not about_file(run.name).exists()):
                print(run.name, file=sys.stderr, flush=True)
                train(run)
    finally:  # a run that fails or is interrupted does not keep the finished ones from being committed
        if arguments.commit and (names := uncommitted()):
            commit(names)


if __name__ == "__main__":
    main()
