"""Training runs, one after another: python -m benchmarks.learning [NAME ...] [--list] [--commit].

Every run of `QUEUE` that has no results yet is trained, alone on the machine; then its checkpoints are evaluated. What
an interrupted run left is thrown away and the run begins anew. Results of a run NAME, under docs/results/:

NAME.csv       every episode: minutes since the start, decisions so far, epsilon, stage, return, length, max_x, cleared
NAME-eval.csv  every evaluation of a checkpoint
NAME.json      the run itself: command, settings, seed, versions, machine

`python -m benchmarks.results` draws pictures and tables from them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from apex_zmq.envs.info import MARIO_COLUMNS
from apex_zmq.rundir.checkpoint import load
from apex_zmq.rundir.episodes import COLUMNS, EPISODES
from apex_zmq.watch.stats import LOW_EPSILON
from benchmarks.rows import PEERS_PYTHON, ROOT, machine

RESULTS = ROOT / "docs/results"
RUNS = ROOT / "build/learning"
CONFIG = "configs/mario-cpu.yaml"
PEERS_PROGRAM = (str(PEERS_PYTHON.relative_to(ROOT)), "-m", "benchmarks.peers.sb3_mario")  # from the project's root
SAVE_EVERY = 1_500  # updates, about 50 s
SELECTION_SEED, FRESH_SEED = 20_000, 30_000  # of evaluations; training's are below 1,000
GAMES = 100  # episodes of an evaluation
EVALUATE_EVERY = 5.0  # minutes
SOLVED = 0.9
TRIAL_MINUTES = {"ablation": 25.0, "sweep": 15.0, "fine-tuning": 40.0}
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


@dataclass(frozen=True)
class Run:
    """One line of the queue.

    settings: what differs from the config file, as for `--set`. init_from: the run whose best checkpoint this one
    starts from.
    """

    name: str
    group: Literal["headline", "sweep", "ablation", "peer", "stage", "fine-tuning"]
    seed: int
    minutes: float
    settings: Mapping[str, str] = field(default_factory=dict)
    algorithm: Literal["apex", "ppo", "dqn"] = "apex"
    init_from: str | None = None


def _trials(group: Literal["sweep", "ablation"], settings: Mapping[str, Mapping[str, str]]) -> list[Run]:
    return [Run(f"{group}-{name}", group, 1, TRIAL_MINUTES[group], changed) for name, changed in settings.items()]


SIMPLE = {"env.actions": "SIMPLE_MOVEMENT"}
SWEEP: dict[str, dict[str, str]] = {
    "single-steps": {"actor.repeat_zeta": "null"},
    "alpha-0.7": {"replay.alpha": "0.7"},
    "gamma-0.95": {"agent.gamma": "0.95"},
    "gamma-0.8": {"agent.gamma": "0.8"},
    "n-3": {"agent.n_step": "3"},
    "samples-9": {"replay.samples_per_insert": "9"},
    "samples-2.25": {"replay.samples_per_insert": "2.25"},
    "batch-128": {"learner.batch_size": "128", "learner.target_period": "250"},
    "rate-0.0005": {"learner.learning_rate": "0.0005"},
    "target-250": {"learner.target_period": "250"},
    "simple-movement": SIMPLE,
    "nature-84": {"agent.network": "nature", "env.frame_height": "84", "env.frame_width": "84"},
    "death-10": {"env.reward.death": "-10"},
    "rate-0.0001": {"learner.learning_rate": "0.0001"},
    "time-0.1": {"env.reward.time": "-0.1"},
}
ABLATIONS: dict[str, dict[str, str]] = {
    "no-layer-norm": {"agent.layer_norm": "false"},
    "no-double": {"learner.double": "false"},
    "no-dueling": {"agent.dueling": "false"},
    "no-priorities": {"replay.alpha": "0"},
    "one-step": {"agent.n_step": "1"},
    "no-ladder": {"actor.epsilon": "0.05", "actor.epsilon_alpha": "0"},
    "no-buttons": {"env.show_buttons": "false"},
}
STAGES: dict[str, dict[str, str]] = {
    "1-2": {"env.stages": "[1-2]"},
    "1-3": {"env.stages": "[1-3]"},
    "1-4": {"env.stages": "[1-4]"},
    "2-1": {"env.stages": "[2-1]"},
    "1-3-simple": {"env.stages": "[1-3]", **SIMPLE},
}
# Random actions as under noop, several times as many, for an agent that clears the stage already.
PERTURBED = {
    "actor.epsilon": "0.1",
    "actor.epsilon_alpha": "1.2",
    "actor.repeat_zeta": "null",
    "learner.learning_rate": "0.0001",
    "learner.learning_rate_decay": "20000",
}
QUEUE = [
    *(Run(f"headline-{seed}", "headline", seed, 45.0) for seed in (1, 2, 3)),
    Run("ppo-1", "peer", 1, 45.0, algorithm="ppo"),
    Run("dqn-1", "peer", 1, 45.0, algorithm="dqn"),
    Run("ppo-2", "peer", 2, 45.0, algorithm="ppo"),
    *_trials("ablation", ABLATIONS),
    *(Run(f"stage-{name}", "stage", 1, 45.0, settings) for name, settings in STAGES.items()),
    *_trials("sweep", SWEEP),
    Run("fine-tuning-1", "fine-tuning", 1, 40.0, PERTURBED, init_from="headline-1"),
]


class Checkpoint(NamedTuple):
    """One that a run has left behind."""

    minutes: float  # since the run was started
    decisions: int
    path: Path


def train(run: Run) -> None:
    """Train and evaluate, and put the results where they belong."""
    directory = RUNS / run.name
    shutil.rmtree(directory, ignore_errors=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with (RUNS / f"{run.name}.log").open("w") as log:
        subprocess.run(
            command(run, directory),
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": "1"} if run.algorithm == "apex" else {}),
        )
    episodes = _episodes(directory / EPISODES, started)
    checkpoints = _checkpoints(directory, started)
    if run.group in TRIAL_MINUTES:
        evaluations = [_row(run, checkpoints[-1], "noop", SELECTION_SEED, GAMES)]
    else:
        evaluations = evaluate(run, checkpoints, _first_clear(episodes))
    about = {
        "name": run.name,
        "group": run.group,
        "algorithm": run.algorithm,
        "seed": run.seed,
        "budget_minutes": run.minutes,
        "settings": dict(run.settings),
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True, cwd=ROOT).strip(),
        "command": " ".join(command(run, Path("DIRECTORY"))),
        "machine": machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    write_csv(RESULTS / f"{run.name}.csv", ("minutes", *COLUMNS[1:], *MARIO_COLUMNS), episodes)
    write_csv(RESULTS / f"{run.name}-eval.csv", EVALUATION, evaluations)
    (RESULTS / f"{run.name}.json").write_text(json.dumps(about, indent=1) + "\n")


def command(run: Run, directory: Path) -> list[str]:
    """What trains a run into a directory, from the project's root."""
    common = ["--config", CONFIG, "--seed", str(run.seed)]
    if run.algorithm != "apex":
        peer = [*PEERS_PROGRAM, "train", run.algorithm]
        return [*peer, *common, "--minutes", f"{run.minutes:g}", "--directory", str(directory)]
    settings = {"learner.keep_checkpoints": "0", "learner.save_every": str(SAVE_EVERY), **run.settings}
    changed = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    start = [] if run.init_from is None else ["--init-from", str(_best(run.init_from).relative_to(ROOT))]
    budget = ["--max-minutes", f"{run.minutes:g}"]
    return ["bin/apex-train", *common, *start, *budget, *changed, "--run-dir", str(directory)]


def _best(name: str) -> Path:
    """The checkpoint that was evaluated on fresh seeds."""
    with (RESULTS / f"{name}-eval.csv").open() as file:
        best = next(row["checkpoint"] for row in csv.DictReader(file) if row["seed"] == str(FRESH_SEED))
    return RUNS / name / best


def _episodes(path: Path, started: float) -> list[dict[str, Any]]:
    with path.open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [{**row, "minutes": f"{(float(row['time']) - started) / 60:.3f}"} for row in rows]


def _first_clear(episodes: Sequence[Mapping[str, Any]]) -> float:
    """Minutes to the first clear by a lane that hardly explores; before it no checkpoint is worth an evaluation."""
    low = (row for row in episodes if not row["epsilon"] or float(row["epsilon"]) <= LOW_EPSILON)
    return next((float(row["minutes"]) for row in low if row["cleared"] == "1"), float("inf"))


def _checkpoints(directory: Path, started: float) -> list[Checkpoint]:
    found = []
    for path in sorted(directory.glob("step-*")):
        # A peer's name holds its decisions, ours its updates.
        decisions = int(path.stem[5:]) if path.suffix == ".zip" else int(load(path).counters["decisions"])
        found.append(Checkpoint((path.stat().st_mtime - started) / 60, decisions, path))
    return found


def evaluate(run: Run, checkpoints: Sequence[Checkpoint], since: float) -> list[dict[str, Any]]:
    """Clear rates over the run, then the best one's on fresh seeds.

    By the selection seed: one checkpoint every five minutes from `since` minutes on, and all between the first of them
    that reaches 90% and its predecessor.
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
        measure(chosen or [len(checkpoints) - 1])
        solved = next((place for place, index in enumerate(chosen) if rows[index]["clear_rate"] >= SOLVED), None)
        if solved is not None:
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
        # PPO samples its actions, as it has learned to play.
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
    """The figures that an evaluating program prints of some games."""
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


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with these columns of the rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _commit(run: Run) -> None:
    files = [str(RESULTS / f"{run.name}{end}") for end in (".csv", "-eval.csv", ".json")]
    subprocess.run(["git", "add", *files], check=True, cwd=ROOT)
    subprocess.run(["git", "commit", "--quiet", "-m", f"Results of {run.name}", "--", *files], check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, also where they have results")
    parser.add_argument("--list", action="store_true", help="print the queue and what is done of it")
    parser.add_argument("--commit", action="store_true", help="commit the results of each run when it ends")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {run.name for run in QUEUE}:
        parser.error(f"no run {', '.join(sorted(unknown))} in the queue; see --list")
    for run in QUEUE:
        done = (RESULTS / f"{run.name}.json").exists()
        if arguments.list:
            print(f"{'done' if done else 'to do':6}{run.name:24}{run.minutes:4g} min  {dict(run.settings) or ''}")
        elif run.name in arguments.names or (not arguments.names and not done):
            print(run.name, file=sys.stderr, flush=True)
            train(run)
            if arguments.commit:
                _commit(run)


if __name__ == "__main__":
    main()
