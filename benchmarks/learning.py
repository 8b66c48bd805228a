"""Train the queue of runs, one after another: python -m benchmarks.learning [NAME ...] [--list] [--commit].

Each run of `QUEUE` without results is trained with the machine to itself, then its checkpoints are evaluated. An
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from apex_zmq.envs.games import MARIO, stages
from apex_zmq.envs.info import MARIO_COLUMNS
from apex_zmq.rundir.checkpoint import BEST, load
from apex_zmq.rundir.episodes import COLUMNS, EPISODES
from apex_zmq.watch.stats import LOW_EPSILON
from benchmarks.csv_files import read_csv, write_csv
from benchmarks.export import export
from benchmarks.rows import PEERS_PYTHON, ROOT, machine

RESULTS = ROOT / "docs/results"
RUNS = ROOT / "build/learning"
MODELS = ROOT / "models"
CONFIG, RECIPE = "configs/mario-cpu.yaml", "configs/mario.yaml"  # of World 1-1; of any stage
PEERS_PROGRAM = (str(PEERS_PYTHON.relative_to(ROOT)), "-m", "benchmarks.peers.sb3_mario")  # from the project's root
SAVE_EVERY = 1_500  # updates, about 50 s
SELECTION_SEED, FRESH_SEED = 20_000, 30_000  # of evaluations; training's are below 1,000
GAMES = 100  # episodes of an evaluation
EVALUATE_EVERY = 5.0  # minutes
SOLVED = 0.9
PUBLISHED = 0.5  # of the noop episodes, that a model clears
CANDIDATES = 3  # checkpoints of a run of the recipe that are evaluated on the selection seed, the last ones
LEARNED, OF_LAST, AFTER_MINUTES = 36, 40, 5.0  # clears of low-epsilon episodes, and time left, before an early end
POLL_S = 5.0
SUBJECT_LENGTH = 72  # of a commit message
TRIAL_MINUTES = {"ablation": 25.0, "sweep": 15.0, "fine-tuning": 40.0, "experiment": 25.0}
GAME_MINUTES = 60.0
REPEATED: tuple[str, ...] = ()  # stages of the game that are also trained with the seeds below
REPEATED_SEEDS = (2, 3, 4)
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
    """One run of the queue.

    settings: changes to the config file, as for `--set`. init_from: name of the run whose best checkpoint supplies the
    initial parameters; None: random ones.
    """

    name: str
    group: Literal["headline", "sweep", "ablation", "peer", "stage", "fine-tuning", "game", "experiment", "atari"]
    seed: int
    minutes: float
    settings: Mapping[str, str] = field(default_factory=dict)
    algorithm: Literal["apex", "ppo", "dqn"] = "apex"
    init_from: str | None = None

    @property
    def config(self) -> str:
        """The config file, from the project's root."""
        return RECIPE if self.group in ("game", "experiment", "atari") else CONFIG


def _game(stage: str, seed: int = 1) -> Run:
    """A run of a stage of the game."""
    name = f"game-{stage}" if seed == 1 else f"game-{stage}-seed-{seed}"
    return Run(name, "game", seed, GAME_MINUTES, {"env.stages": f"[{stage}]"})


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
# Changes to the recipe, by the stage on which they are tried with two seeds.
EXPERIMENTS: dict[str, dict[str, dict[str, str]]] = {
    "1-3": {
        "recipe": {},
        "no-restarts": {"actor.restarts.share": "0"},
        "no-cuts": {"agent.cut_returns": "false"},
        "progress-in-the-air": {"env.reward.progress_standing": "false", "env.reward.progress_clip": "12"},
        "gamma-0.9": {"agent.gamma": "0.9"},
        "gamma-0.97": {"agent.gamma": "0.97"},
        "n-5": {"agent.n_step": "5"},
        "six-actions": {"env.actions": "[[right], [right, A], [right, B], [right, A, B], [A], [left]]"},
    },
    "1-1": {"recipe": {}, "no-restarts": {"actor.restarts.share": "0"}},
    "1-2": {"no-restarts": {"actor.restarts.share": "0"}},
    "2-1": {"no-restarts": {"actor.restarts.share": "0"}},
}
# Games whose first points are far from the start, with a key to fetch or pits to cross.
ATARI = ("MontezumaRevenge", "Pitfall")
ATARI_SETTINGS = {"env.clip_reward": "true", "env.max_episode_steps": "4500", "agent.gamma": "0.99"}
# Single random actions, as in the noop protocol but several times as many, for an agent that clears the stage already.
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
    *(_game(stage) for stage in stages(MARIO)),
    *(_game(stage, seed) for stage in REPEATED for seed in REPEATED_SEEDS),
    *(
        Run(f"experiment-{stage}-{name}-{seed}", "experiment", seed, 25.0, {"env.stages": f"[{stage}]", **changes})
        for stage, trials in EXPERIMENTS.items()
        for name, changes in trials.items()
        for seed in (1, 2)
    ),
    *(
        Run(f"atari-{game}-{name}", "atari", 1, 25.0, {"env.id": f"ALE/{game}-v5", **ATARI_SETTINGS, **changes})
        for game in ATARI
        for name, changes in {"restarts": {}, "no-restarts": {"actor.restarts.share": "0"}}.items()
    ),
]


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
    entries = () if run.group == "atari" else MARIO_COLUMNS
    if run.group == "atari":
        evaluations = []
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


def model_of(name: str, directory: Path = MODELS) -> Path:
    """Where the model of a stage of the game is, if it was good enough."""
    return directory / name.replace("game", "mario") / BEST


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


def episodes_file(name: str, directory: Path = RESULTS) -> Path:
    """Where the episodes of a run are."""
    return directory / f"{name}.csv.gz"


def evaluations_file(name: str, directory: Path = RESULTS) -> Path:
    """Where the evaluations of a run are."""
    return directory / f"{name}-eval.csv.gz"


def about_file(name: str, directory: Path = RESULTS) -> Path:
    """Where the description of a run is; it exists once the run has finished."""
    return directory / f"{name}.json"


def command(run: Run, directory: Path) -> list[str]:
    """The command line that trains a run into a directory; its working directory is the project's root."""
    common = ["--config", run.config, "--seed", str(run.seed)]
    if run.algorithm != "apex":
        peer = [*PEERS_PROGRAM, "train", run.algorithm]
        return [*peer, *common, "--minutes", f"{run.minutes:g}", "--directory", str(directory)]
    settings = {"learner.keep_checkpoints": "0", "learner.save_every": str(SAVE_EVERY), **run.settings}
    changed = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    start = [] if run.init_from is None else ["--init-from", str(_best(run.init_from).relative_to(ROOT))]
    budget = ["--max-minutes", f"{run.minutes:g}"]
    return ["bin/apex-train", *common, *start, *budget, *changed, "--run-dir", str(directory)]


def _best(name: str) -> Path:
    """The best checkpoint of a run, which is the one evaluated on fresh seeds."""
    evaluations = read_csv(evaluations_file(name))
    return RUNS / name / next(row["checkpoint"] for row in evaluations if row["seed"] == str(FRESH_SEED))


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
