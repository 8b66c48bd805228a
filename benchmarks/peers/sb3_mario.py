"""Train PPO or DQN of stable-baselines3 in our environment, and evaluate checkpoints under our protocols."""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path

import psutil

from apex_zmq.cli import options
from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.envs.games import WORLDS, check_env
from apex_zmq.errors import ConfigError, UserError


def main() -> int:
    parser = options.Parser("sb3_mario", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    trains = commands.add_parser("train", help="write episodes.csv and a checkpoint a minute")
    trains.add_argument("algorithm", choices=("ppo", "dqn"))
    trains.add_argument("--minutes", type=float, required=True, help="wall clock from the start of the process")
    trains.add_argument("--directory", type=Path, required=True, help="made for the run")
    plays = commands.add_parser("evaluate", help="the counterpart of bin/apex-eval")
    plays.add_argument("checkpoint", type=Path)
    plays.add_argument("--algorithm", choices=("ppo", "dqn"), required=True)
    plays.add_argument("--protocol", choices=("greedy", "noop", "sticky"), default="noop")
    plays.add_argument("--episodes", type=int, default=100)
    plays.add_argument("--stochastic", action="store_true", help="sample PPO's policy instead of its likeliest action")
    plays.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    for command, seed in ((trains, 0), (plays, 10_000)):
        command.add_argument("--config", type=Path, required=True, help="settings; env and agent are used")
        command.add_argument("--seed", type=int, default=seed)
    arguments = parser.parse_args()
    try:
        config = loading.load(arguments.config, addressed=False)
        if config.env.id not in WORLDS:
            raise ConfigError(f"{arguments.config}: env.id must be one of {', '.join(WORLDS)}")
        check_env(config.env)
        if arguments.seed < 0:
            raise ConfigError("--seed must be at least 0")
        # tensorboard's own switch: without it, it loads TensorFlow, which is here for Reverb.
        sys.modules["tensorboard.compat.notf"] = types.ModuleType("tensorboard.compat.notf")
        return (_train if arguments.command == "train" else _evaluate)(arguments, config)
    except UserError as error:
        print(f"sb3_mario: error: {error}", file=sys.stderr)
        return 2


def _train(arguments: argparse.Namespace, config: Config) -> int:
    if arguments.minutes <= 0:
        raise ConfigError("--minutes must be more than 0")
    if arguments.directory.exists():
        raise ConfigError(f"{arguments.directory} exists; give a new --directory")
    from benchmarks.peers import sb3_agents

    arguments.directory.mkdir(parents=True)
    begin, seconds = psutil.Process().create_time(), 60 * arguments.minutes
    sb3_agents.train(arguments.algorithm, config, arguments.seed, arguments.directory, begin, seconds)
    return 0


def _evaluate(arguments: argparse.Namespace, config: Config) -> int:
    if arguments.episodes < 1:
        raise ConfigError("--episodes must be at least 1")
    if arguments.stochastic and arguments.algorithm == "dqn":
        raise ConfigError("--stochastic goes with --algorithm ppo")
    if not arguments.checkpoint.is_file():
        raise ConfigError(f"no checkpoint {arguments.checkpoint}; `train` writes step-*.zip")
    from benchmarks.peers import sb3_agents

    figures = sb3_agents.evaluate(
        arguments.algorithm,
        arguments.checkpoint,
        config,
        arguments.protocol,
        arguments.episodes,
        arguments.seed,
        arguments.stochastic,
    )
    print(json.dumps(figures) if arguments.json else "\n".join(f"{name:12} {value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
