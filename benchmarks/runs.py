"""The training runs of docs/results/, the commands that train them, and the places of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apex_zmq.envs.games import MARIO, stages
from apex_zmq.rundir.checkpoint import BEST
from benchmarks.csv_files import read_csv
from benchmarks.rows import PEERS_PYTHON, ROOT

RESULTS = ROOT / "docs/results"
RUNS = ROOT / "build/learning"
MODELS = ROOT / "models"
CONFIG, RECIPE = "configs/mario-cpu.yaml", "configs/mario.yaml"  # of World 1-1; of any stage
PEERS_PROGRAM = (str(PEERS_PYTHON.relative_to(ROOT)), "-m", "benchmarks.peers.sb3_mario")  # from the project's root
SAVE_EVERY = 1_500  # updates, about 50 s
SELECTION_SEED, FRESH_SEED = 20_000, 30_000  # of evaluations; training's are below 1,000
TRIAL_MINUTES = {"ablation": 25.0, "sweep": 15.0, "fine-tuning": 40.0, "experiment": 25.0}
GAME_MINUTES = 60.0
REPEATED: tuple[str, ...] = ()  # stages of the game that are also trained with the seeds below
REPEATED_SEEDS = (2, 3, 4)


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


def game_run(stage: str, seed: int = 1) -> Run:
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
    *(game_run(stage) for stage in stages(MARIO)),
    *(game_run(stage, seed) for stage in REPEATED for seed in REPEATED_SEEDS),
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


def episodes_file(name: str, directory: Path = RESULTS) -> Path:
    """Where the episodes of a run are."""
    return directory / f"{name}.csv.gz"


def evaluations_file(name: str, directory: Path = RESULTS) -> Path:
    """Where the evaluations of a run are."""
    return directory / f"{name}-eval.csv.gz"


def about_file(name: str, directory: Path = RESULTS) -> Path:
    """Where the description of a run is; it exists once the run has finished."""
    return directory / f"{name}.json"


def model_of(name: str, directory: Path = MODELS) -> Path:
    """Where the model of a stage of the game is, if it was good enough."""
    return directory / name.replace("game", "mario") / BEST


def command(run: Run, directory: Path) -> list[str]:
    """The command line that trains a run into a directory; its working directory is the project's root."""
    common = ["--config", run.config, "--seed", str(run.seed)]
    if run.algorithm != "apex":
        peer = [*PEERS_PROGRAM, "train", run.algorithm]
        return [*peer, *common, "--minutes", f"{run.minutes:g}", "--directory", str(directory)]
    settings = {"learner.keep_checkpoints": "0", "learner.save_every": str(SAVE_EVERY), **run.settings}
    changed = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    start = [] if run.init_from is None else ["--init-from", str(best_checkpoint(run.init_from).relative_to(ROOT))]
    budget = ["--max-minutes", f"{run.minutes:g}"]
    return ["bin/apex-train", *common, *start, *budget, *changed, "--run-dir", str(directory)]


def best_checkpoint(name: str) -> Path:
    """The best checkpoint of a run, which is the one evaluated on fresh seeds."""
    evaluations = read_csv(evaluations_file(name))
    return RUNS / name / next(row["checkpoint"] for row in evaluations if row["seed"] == str(FRESH_SEED))
